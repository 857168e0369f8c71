"""Europarl-ST 1.1: debates of the European Parliament (Iranzo-Sánchez et al. 2020).

Source: https://www.mllp.upv.es/europarl-st, arXiv 1911.03167. Licence: CC BY-NC 4.0.
Speech, transcripts and translations in nine languages; each pair of a spoken and a
target language has a folder::

    v1.1/<src>/audios/<speech>.m4a                 a speech
    v1.1/<src>/<tgt>/<set>/segments.lst            <speech> <start> <end>, seconds
    v1.1/<src>/<tgt>/<set>/segments.<src>          transcripts, line by line
    v1.1/<src>/<tgt>/<set>/segments.<tgt>          translations, line by line
    v1.1/<src>/<tgt>/<set>/speeches.lst            the speeches of the set
    v1.1/<src>/<tgt>/<set>/speakers.lst            their speakers, line by line

with the sets ``train``, ``train-noisy``, ``dev`` and ``test``. Audio that was converted
to ``wav`` or ``flac`` next to the ``m4a`` files, or instead of them, is used.

Output: a data dir per set, with ``segments``, the transcript in ``text`` and
translations in ``text.<lang>``. Utterance ids are
``<speaker>-<speech>-<start in ms>-<end in ms>``. Segments with the same times in
several pairs are one utterance with several translations. Texts are unchanged except
for invisible characters.

Dropped and listed in ``dropped.tsv``: segments that are empty, that start after the end
of their speech, that are listed twice, or whose speech has no file. A segment that ends
after its speech is dropped from training sets; in dev and test, which stay whole, it
ends with its speech. With several pairs, speeches of test (of any prepared pair) are
dropped from dev, and those of test and dev from training sets.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from speechllm.audio.io import MAX_OVERSHOOT_SECONDS
from speechllm.corpora._download import download, unpack_tar
from speechllm.corpora._texts import clean_text, read_lines
from speechllm.data.data_dir import fill_data_dir
from speechllm.data.kaldi_table import DATA_DIR, Dropped, read_dropped
from speechllm.data.statistics import statistics
from speechllm.utils.errors import UserError
from speechllm.utils.folders import atomic_directory

URL = "https://www.mllp.upv.es/europarl-st/v1.1.tar.gz"
LANGUAGES = ("de", "en", "es", "fr", "it", "nl", "pl", "pt", "ro")
SETS = ("train", "dev", "test")
NOISY = "train-noisy"
_ORDER = ("test", "dev", "train", NOISY)  # sets that lose nothing to others first
_SUFFIXES = (".wav", ".flac", ".m4a")
_UNSAFE = re.compile(r"[^\w.]")
_SHORTEST_SECONDS = 5e-4  # a data dir's times have three decimals


class Segment(NamedTuple):
    """A line of ``segments.lst``: name of the speech, start and end in seconds."""

    speech: str
    start: float
    end: float


@dataclass
class _Set:
    """A set's tables over all pairs."""

    name: str
    segments: dict[str, str] = field(default_factory=dict)
    recordings: dict[str, str] = field(default_factory=dict)
    speakers: dict[str, str] = field(default_factory=dict)
    languages: dict[str, str] = field(default_factory=dict)
    transcripts: dict[str, str] = field(default_factory=dict)
    translations: dict[str, dict[str, str]] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)

    @property
    def training(self) -> bool:
        return self.name.startswith("train")

    def drop(self, utterance: str, reason: str, detail: str = "") -> None:
        self.dropped.append(Dropped(utterance, "prepare_data", reason, detail))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, default=Path("data"), help="folder of the data dirs"
    )
    parser.add_argument(
        "--europarl_st_dir",
        type=Path,
        required=True,
        help="folder that holds v1.1, or en, de, …",
    )
    parser.add_argument(
        "--src_lang", nargs="+", required=True, help="spoken languages, such as en"
    )
    parser.add_argument(
        "--tgt_lang", nargs="+", required=True, help="target languages, such as de fr"
    )
    parser.add_argument(
        "--noisy", action="store_true", help=f"prepare the set {NOISY}, too"
    )
    parser.add_argument(
        "--download", action="store_true", help="download the corpus if it is missing"
    )
    parser.add_argument(
        "--url", default=URL, help="address of the archive [%(default)s]"
    )


def run(args: argparse.Namespace) -> None:
    if args.download:
        download_europarl_st(args.europarl_st_dir, args.url)
    sets = [*SETS, NOISY] if args.noisy else SETS
    prepare_europarl_st(
        args.europarl_st_dir, args.output, args.src_lang, args.tgt_lang, sets
    )
    print("| set | utterances | hours | left out |\n| --- | ---: | ---: | ---: |")
    for name in sets:
        total = statistics(args.output / name)[-1]
        dropped = len(read_dropped(args.output / name))
        print(
            f"| {name} | {total['utterances']} | {total['minutes'] / 60:.1f} "
            f"| {dropped} |"
        )


def download_europarl_st(folder: str | Path, url: str = URL) -> None:
    """Download and unpack the corpus; what is there is not downloaded again.

    The publisher states no checksum. The archive may be removed afterwards.

    Raises:
        UserError: the server refuses the file or cannot be reached, the archive is
            damaged, or the disk is too small.
    """
    folder = Path(folder)
    archive = folder / url.rpartition("/")[2]
    if archive.is_file() or _find_root(folder) is None:
        download(url, archive)
        unpack_tar(archive, folder)


def prepare_europarl_st(
    europarl_st_dir: str | Path,
    output_dir: str | Path,
    sources: Iterable[str],
    targets: Iterable[str],
    sets: Iterable[str] = SETS,
) -> None:
    """Write a data dir for each set below ``output_dir``, all or none.

    Args:
        europarl_st_dir: folder that holds ``v1.1``, or the spoken languages.
        output_dir: folder of the data dirs.
        sources: spoken languages, two-letter codes.
        targets: languages of the translations; all pairs are prepared.
        sets: names of sets.

    Raises:
        UserError: the corpus has no such pair, a file is missing, a list and its texts
            differ in length, a line cannot be read, or nothing of a set can be used.
    """
    root = _find_root(Path(europarl_st_dir))
    if root is None:
        raise UserError(
            f"{europarl_st_dir}: no folder <language>/audios in it, nor in v1.1; give "
            "the folder of the unpacked corpus, or download it with --download true"
        )
    pairs = _find_pairs(root, sources, targets)
    held_out: dict[str, str] = {}  # speech -> the set that it belongs to
    gathered = []
    for name in sorted(dict.fromkeys(sets), key=_ORDER.index):
        one = _Set(name)
        speeches: set[str] = set()
        for source, target in pairs:
            speeches |= _add_pair(one, root, source, target, held_out)
        if not one.segments:
            first = one.dropped[0] if one.dropped else None
            why = f"{first.reason}: {first.detail}" if first else "the lists are empty"
            raise UserError(
                f"{root}: no segment of {name} can be used; {why}; unpack the whole "
                "corpus"
            )
        if not one.training:
            held_out |= {speech: name for speech in speeches if speech not in held_out}
        gathered.append(one)
    with ExitStack() as stack:
        for one in gathered:
            folder = Path(output_dir) / one.name
            new = stack.enter_context(atomic_directory(folder, DATA_DIR, [root]))
            translations = {
                f"text.{language}": texts
                for language, texts in one.translations.items()
            }
            tables = {
                "wav.scp": one.recordings,
                "segments": one.segments,
                "utt2spk": one.speakers,
                "utt2lang": one.languages,
                "text": one.transcripts,
                **translations,
            }
            fill_data_dir(new, tables, one.dropped)


def _find_root(folder: Path) -> Path | None:
    """Find the folder of the spoken languages."""
    for root in (folder, folder / "v1.1"):
        if any((root / language / "audios").is_dir() for language in LANGUAGES):
            return root
    return None


def _find_pairs(
    root: Path, sources: Iterable[str], targets: Iterable[str]
) -> list[tuple[str, str]]:
    """Return the pairs of different languages; raise UserError if one is missing."""
    sources, targets = list(dict.fromkeys(sources)), list(dict.fromkeys(targets))
    pairs = [(src, tgt) for src in sources for tgt in targets if src != tgt]
    for source, target in pairs:
        if not (root / source / target).is_dir():
            there = sorted(p.name for p in (root / source).glob("??") if p.is_dir())
            spoken = sorted(p.parent.name for p in root.glob("*/audios"))
            raise UserError(
                f"{root / source / target}: no such folder; spoken languages are "
                f"{' '.join(spoken)}, translations of {source} are "
                f"{' '.join(there) or 'none'}"
            )
    if not pairs:
        raise UserError(
            f"--src_lang {' '.join(sources)} --tgt_lang {' '.join(targets)}: no pair "
            "of two languages; name a target language other than the spoken one"
        )
    return pairs


def read_segments(path: str | Path) -> list[Segment]:
    """Read a list of segments.

    Raises:
        UserError: the file is missing, or a line is not ``<speech> <start> <end>``.
    """
    segments = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            speech, start, end = line.split()
            segments.append(Segment(speech, float(start), float(end)))
        except ValueError:
            raise UserError(
                f"{path}:{number}: expected '<speech> <start> <end>' with times in "
                f"seconds, not {line[:60]!r}; unpack the corpus again"
            ) from None
    return segments


def _add_pair(
    one: _Set, root: Path, source: str, target: str, held_out: dict[str, str]
) -> set[str]:
    """Add the segments of a pair to a set; return its speeches."""
    folder = root / source / target / one.name
    segments = read_segments(folder / "segments.lst")
    transcripts = _read_texts(folder / f"segments.{source}", len(segments))
    translations = _read_texts(folder / f"segments.{target}", len(segments))
    speaker_of = _read_speakers(folder)
    audio = _Audio(root / source / "audios")
    table = one.translations.setdefault(target, {})
    seen: set[str] = set()
    for segment, text, translation in zip(
        segments, transcripts, translations, strict=True
    ):
        recording = _recording(source, segment.speech)
        speaker = speaker_of.get(segment.speech, recording)
        utterance = f"{speaker}-{recording}-{_times(segment)}"
        if not one.training:
            segment = audio.clamp(segment)
        problem = audio.problem(segment)
        if held_out.get(segment.speech, one.name) != one.name:
            problem = f"speech also in {held_out[segment.speech]}", segment.speech
        if utterance in seen:
            problem = "listed twice", segment.speech
        seen.add(utterance)
        if problem:
            one.drop(utterance, *problem)
            continue
        times = f"{segment.start:.3f} {segment.end:.3f}"
        one.segments[utterance] = f"{recording} {times}"
        one.recordings[recording] = os.path.abspath(audio.path(segment.speech))
        one.speakers[utterance] = speaker
        one.languages[utterance] = source
        one.transcripts.setdefault(utterance, text)
        if translation:
            table[utterance] = translation
    return {segment.speech for segment in segments}


def _read_texts(path: Path, count: int) -> list[str]:
    texts = [clean_text(line) for line in read_lines(path)]
    if len(texts) != count:
        raise UserError(
            f"{path}: {len(texts)} lines for {count} segments of segments.lst; unpack "
            "the corpus again"
        )
    return texts


def _read_speakers(folder: Path) -> dict[str, str]:
    """Return the speaker of each speech, as a name without special characters."""
    speeches = list(read_lines(folder / "speeches.lst"))
    speakers = list(read_lines(folder / "speakers.lst"))
    if len(speeches) != len(speakers):
        raise UserError(
            f"{folder}: {len(speeches)} lines in speeches.lst, {len(speakers)} in "
            "speakers.lst; unpack the corpus again"
        )
    pairs = zip(speeches, speakers, strict=True)
    return {
        speech.strip(): _UNSAFE.sub("_", speaker.strip())
        for speech, speaker in pairs
        if speaker.strip()
    }


def _recording(source: str, speech: str) -> str:
    """Return a recording's id; the corpus's own names begin with the language."""
    name = _UNSAFE.sub("_", speech)
    return name if name.startswith(f"{source}.") else f"{source}.{name}"


def _times(segment: Segment) -> str:
    return "-".join(
        f"{max(round(1000 * second), 0):07d}" if math.isfinite(second) else "nan"
        for second in (segment.start, segment.end)
    )


class _Audio:
    """The speeches of a language: their files and lengths."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.paths: dict[str, Path] = {}
        self.lengths: dict[str, float | tuple[str, str]] = {}

    def path(self, speech: str) -> Path:
        """Return the file of a speech, the last of the possible ones if none exists."""
        if speech not in self.paths:
            names = [self.folder / f"{speech}{suffix}" for suffix in _SUFFIXES]
            self.paths[speech] = next(filter(Path.is_file, names), names[-1])
        return self.paths[speech]

    def clamp(self, segment: Segment) -> Segment:
        """End a segment with its speech, if it begins before the speech's end."""
        length = self.length(segment.speech)
        if isinstance(length, tuple) or segment.start + _SHORTEST_SECONDS > length:
            return segment
        return segment._replace(end=min(segment.end, length))

    def problem(self, segment: Segment) -> tuple[str, str] | None:
        """Return why a segment cannot be used, as (reason, detail), or None."""
        times = f"{segment.start:g} to {segment.end:g} s"
        if not (
            0 <= segment.start and segment.start + _SHORTEST_SECONDS <= segment.end
        ):
            return "empty segment", times
        length = self.length(segment.speech)
        if isinstance(length, tuple):
            return length
        if segment.start >= length or segment.end > length + MAX_OVERSHOOT_SECONDS:
            return (
                "past the end of its speech",
                f"{times}; {segment.speech}: {length:.2f} s",
            )
        return None

    def length(self, speech: str) -> float | tuple[str, str]:
        """Return a speech's length in seconds, or (reason, detail) if it has none."""
        if speech not in self.lengths:
            self.lengths[speech] = self._measure(self.path(speech))
        return self.lengths[speech]

    def _measure(self, path: Path) -> float | tuple[str, str]:
        from speechllm.audio.ffmpeg import stated_seconds
        from speechllm.audio.io import audio_info

        if not path.is_file():
            return "no audio file", str(path)
        try:
            if path.suffix == ".m4a":
                return stated_seconds(str(path))
            return audio_info(path).seconds
        except UserError as error:
            return "unreadable audio", str(error)
