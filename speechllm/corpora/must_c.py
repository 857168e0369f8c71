"""MuST-C (Cattoni et al. 2021): English TED talks with transcripts and translations.

Licence: CC BY-NC-ND 4.0. Versions 1, 2 and 3 have the same layout, one folder per
language::

    en-de/data/<set>/wav/ted_767.wav        a talk
    en-de/data/<set>/txt/<set>.yaml         the list of segments, one per line
    en-de/data/<set>/txt/<set>.en           their transcripts, line by line
    en-de/data/<set>/txt/<set>.de           their translations, line by line

with the sets ``train``, ``dev``, ``tst-COMMON`` and ``tst-HE``. A line of the list is

    - {duration: 3.5, offset: 16.08, speaker_id: spk.767, wav: ted_767.wav}

(version 2 also has the counts ``rW`` and ``uW``).

Output: a data dir per set, with ``segments``, the transcript in ``text`` and
translations in ``text.<lang>``. Utterance ids are
``<speaker>-<talk>-<start in ms>-<end in ms>``. Segments with the same times in several
languages are one utterance with several translations. Texts are unchanged except for
invisible characters.

Dropped and listed in ``dropped.tsv``: segments that are empty, that start after the end
of their talk, or whose talk has no file. A segment that ends after its talk is dropped
from ``train``; in the other sets, which stay whole, it ends with its talk. From
``train``, talks that are in another set (of any prepared language) and segments without
speech, such as "(Applause)", are dropped; from ``dev``, talks that are in a test set.

With ``espnet``, segments and texts are those of ESPnet's recipe (``egs2/must_c/st1``):
segments below 0.2 s are lengthened to 0.2 s about their middle, segments that are
listed more than once are dropped (all copies), punctuation is normalised by Moses'
script, and nothing is dropped for its talk or for lack of speech. ESPnet's tokenised
and lower-cased texts are not made: tokenizers and scorers here take plain text.
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from speechllm.audio.io import MAX_OVERSHOOT_SECONDS
from speechllm.corpora._texts import clean_text, count_lines, read_lines
from speechllm.data.data_dir import write_spk2utt
from speechllm.data.kaldi_table import (
    DATA_DIR,
    Dropped,
    read_dropped,
    write_dropped,
    write_table,
)
from speechllm.data.statistics import statistics
from speechllm.utils.errors import UserError, reason_of
from speechllm.utils.folders import atomic_directory

SOURCE = "en"
SETS = ("train", "dev", "tst-COMMON", "tst-HE")
_FIELDS = ("wav", "speaker_id", "offset", "duration")
_SIMPLE_VALUE = r"[^\s'\"{}\[\],:#&*!|>%@`][^'\"{}\[\],:#]*"
_SIMPLE_LINE = re.compile(
    rf"- ?\{{(\w+: {_SIMPLE_VALUE}(?:, \w+: {_SIMPLE_VALUE})*)\}}\s*"
)
_SOUNDS = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|[♪♫]")  # (Applause), [Music], ♫
_UNSAFE = re.compile(r"[^\w.]")
_SHORTEST_SECONDS = 0.2  # to which ESPnet lengthens segments


class Segment(NamedTuple):
    """A line of the list: file, speaker, start and end in seconds."""

    wav: str
    speaker: str
    start: float
    end: float


@dataclass
class _Set:
    """A set's tables over all languages while its lists are read."""

    name: str
    espnet: bool = False
    segments: dict[str, str] = field(default_factory=dict)  # utterance -> value
    lines: dict[str, list[str | None]] = field(default_factory=dict)  # by language
    recordings: dict[str, str] = field(default_factory=dict)
    talks: set[str] = field(default_factory=set)
    dropped: list[Dropped] = field(default_factory=list)

    def drop(self, utterance: str, reason: str, detail: str = "") -> None:
        self.dropped.append(Dropped(utterance, "prepare_data", reason, detail))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, default=Path("data"), help="folder of the data dirs"
    )
    parser.add_argument(
        "--must_c_dir", type=Path, required=True, help="folder with en-de, en-fr, …"
    )
    parser.add_argument(
        "--tgt_lang", nargs="+", required=True, help="target languages, such as de fr"
    )
    parser.add_argument("--sets", nargs="+", default=SETS, help="sets to prepare")
    parser.add_argument(
        "--espnet",
        action="store_true",
        help="segments and texts of ESPnet's recipe: lengthen segments below 0.2 s, "
        "drop repeated ones, normalise punctuation (needs sacremoses)",
    )


def run(args: argparse.Namespace) -> None:
    prepare_must_c(args.must_c_dir, args.output, args.tgt_lang, args.sets, args.espnet)
    print("| set | utterances | hours | left out |\n| --- | ---: | ---: | ---: |")
    for name in args.sets:
        total = statistics(args.output / name)[-1]
        dropped = len(read_dropped(args.output / name))
        print(
            f"| {name} | {total['utterances']} | {total['minutes'] / 60:.1f} "
            f"| {dropped} |"
        )


def prepare_must_c(
    must_c_dir: str | Path,
    output_dir: str | Path,
    languages: Iterable[str],
    sets: Iterable[str] = SETS,
    espnet: bool = False,
) -> None:
    """Write a data dir for each set below ``output_dir``, all or none.

    Args:
        must_c_dir: folder with ``en-<lang>`` for each of the languages.
        output_dir: folder of the data dirs.
        languages: target languages, two-letter codes.
        sets: names of sets.
        espnet: prepare segments and texts as ESPnet's recipe does.

    Raises:
        UserError: a file is missing, a list and its texts differ in length, a line
            cannot be read, all talks of a set lack their file, or ``espnet`` is given
            and sacremoses is not installed.
    """
    if espnet:
        _punctuation_normalizer(SOURCE)  # before anything is read
    languages = list(dict.fromkeys(languages))
    sets = list(dict.fromkeys(sets))
    for name in sets:  # before anything is written
        for language in languages:
            _check_texts(Path(must_c_dir), name, language)
    taken: dict[str, str] = {}  # talk -> the test or dev set it belongs to
    with ExitStack() as stack:
        for name in sorted(sets, key=_training_last):
            held_out = {} if espnet or name.startswith("tst") else taken
            gathered = _Set(name, espnet)
            _gather(gathered, Path(must_c_dir), languages, held_out)
            taken |= dict.fromkeys(gathered.talks, name)
            folder = Path(output_dir) / name
            new = stack.enter_context(atomic_directory(folder, DATA_DIR, [must_c_dir]))
            _write(new, gathered, Path(must_c_dir))


def read_segments(path: str | Path) -> list[Segment]:
    """Read a list of segments.

    Published lists have one mapping per line and are read line by line, which is
    faster; any other YAML is read by libyaml's parser.

    Raises:
        UserError: the file is not such a list, or a segment lacks a field.
    """
    path = Path(path)
    try:
        return list(_segments(path, _simple_rows(path)))
    except _NotSimpleError:
        return list(_segments(path, _parsed_rows(path)))


def _segments(
    path: Path, rows: Iterable[tuple[int, dict[str, str]]]
) -> Iterator[Segment]:
    names: dict[str, str] = {}  # files and speakers repeat: keep one string for each
    for number, row in rows:
        try:
            wav, speaker, offset, duration = (row[name] for name in _FIELDS)
            start, length = float(offset), float(duration)
        except KeyError as error:
            raise UserError(f"{path}:{number}: the segment has no {error}") from None
        except ValueError:
            raise UserError(
                f"{path}:{number}: offset {offset!r} and duration {duration!r} are "
                "not both numbers"
            ) from None
        if not wav or not speaker:
            missing = "wav" if speaker else "speaker_id"
            raise UserError(f"{path}:{number}: the segment's {missing} is empty")
        wav, speaker = names.setdefault(wav, wav), names.setdefault(speaker, speaker)
        yield Segment(wav, speaker, start, start + length)


class _NotSimpleError(Exception):
    """Raised if a list does not have one mapping per line."""


def _simple_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, fields as strings) of a list with one mapping per line."""
    for number, line in enumerate(read_lines(path), 1):
        match = _SIMPLE_LINE.fullmatch(line)
        if match:
            pairs = (pair.split(": ") for pair in match[1].split(", "))
            yield number, {key: value.rstrip() for key, value in pairs}
        elif line.strip():
            raise _NotSimpleError


def _parsed_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the same from the events of a YAML parser, one segment at a time."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    fields: dict[str, str] | None = None  # of the current segment
    key, line = None, 1
    try:
        with open(path, "rb") as stream:
            for event in yaml.parse(stream, loader):
                line = event.start_mark.line + 1
                if isinstance(event, yaml.MappingStartEvent) and fields is None:
                    fields, first = {}, line
                elif isinstance(event, yaml.MappingEndEvent):
                    yield first, fields
                    fields = None
                elif isinstance(event, yaml.ScalarEvent) and fields is not None:
                    if key is None:
                        key = event.value
                    else:
                        fields[key], key = event.value, None
                elif isinstance(event, yaml.NodeEvent) and (
                    fields is not None or not isinstance(event, yaml.SequenceStartEvent)
                ):
                    raise UserError(
                        f"{path}:{line}: expected a list of segments, each with "
                        f"{', '.join(_FIELDS)}"
                    )
    except yaml.YAMLError as error:
        problem = reason_of(error)
        raise UserError(f"{path}:{line}: not YAML: {problem}") from None


def _training_last(name: str) -> tuple[int, str]:
    return {"train": 2, "dev": 1}.get(name, 0), name


def _files(must_c_dir: Path, name: str, language: str) -> tuple[Path, Path, Path, Path]:
    """Return a set's folder of talks, list, transcripts and translations."""
    folder = must_c_dir / f"en-{language}" / "data" / name
    texts = folder / "txt"
    return (
        folder / "wav",
        texts / f"{name}.yaml",
        texts / f"{name}.{SOURCE}",
        texts / f"{name}.{language}",
    )


def _check_texts(must_c_dir: Path, name: str, language: str) -> None:
    """Raise UserError if files of a set are missing or its texts differ in length."""
    wavs, listed, *texts = _files(must_c_dir, name, language)
    for path in (listed, *texts, wavs):
        if path.exists():
            continue
        there = sorted(p.name for p in must_c_dir.glob("en-*") if p.is_dir())
        found = ", ".join(there) or "no folder en-…"
        raise UserError(
            f"{path}: not found; {must_c_dir} contains {found}. Give the folder that "
            f"contains en-{language}, with the whole of MuST-C unpacked"
        )
    counts = {path: count_lines(path) for path in texts}
    if len(set(counts.values())) > 1:
        _raise_unequal_lengths(counts)


def _raise_unequal_lengths(counts: dict[Path, int]) -> None:
    listing = ", ".join(f"{path} {count}" for path, count in counts.items())
    raise UserError(
        f"parallel files differ in their number of lines: {listing}; unpack them again"
    )


def _gather(
    gathered: _Set, must_c_dir: Path, languages: list[str], held_out: dict[str, str]
) -> None:
    """Read the lists of one set in all languages and select the segments to keep."""
    name = gathered.name
    sizes: dict[str, int] = {}
    for language in languages:
        wavs, listed, transcripts, _ = _files(must_c_dir, name, language)
        segments = read_segments(listed)
        if gathered.espnet:
            segments = [_lengthen(segment) for segment in segments]
        lines = count_lines(transcripts)
        if len(segments) != lines:
            _raise_unequal_lengths({listed: len(segments), transcripts: lines})
        talks = _Talks(wavs, language, gathered.recordings, sizes)
        ids = [_utterance(one, talks.recording(one.wav)) for one in segments]
        repeated = {key for key, count in Counter(ids).items() if count > 1}
        seen: Counter[str] = Counter()
        kept = gathered.lines[language] = []
        for utterance, segment in zip(ids, segments, strict=True):
            if utterance in repeated:
                seen[utterance] += 1
                if seen[utterance] > 1:
                    utterance += f"-{seen[utterance]}"
            if name != "train":
                segment = talks.clamp(segment)
            problem = talks.problem(segment)
            if gathered.espnet and ids[len(kept)] in repeated:
                problem = ("listed more than once", segment.wav)
            talk = Path(segment.wav).stem
            if held_out.get(talk, name) != name:
                problem = (f"talk also in {held_out[talk]}", segment.wav)
            gathered.talks.add(talk)
            if problem:
                gathered.drop(utterance, *problem)
                kept.append(None)
                continue
            recording = talks.recording(segment.wav)
            value = f"{recording} {segment.start:.3f} {segment.end:.3f}"
            # the same string in all languages and tables saves memory
            kept.append(utterance)
            gathered.segments.setdefault(utterance, value)
        if not any(kept):
            first = gathered.dropped[0] if gathered.dropped else None
            why = f"{first.reason}: {first.detail}" if first else "the list is empty"
            raise UserError(
                f"{listed}: none of its segments can be used; {why}; unpack the whole "
                "corpus"
            )


def _lengthen(segment: Segment) -> Segment:
    """Lengthen a segment below 0.2 s about its middle, within the talk's start."""
    missing = _SHORTEST_SECONDS - (segment.end - segment.start)
    if not 0 < missing < math.inf:
        return segment
    start, end = segment.start - missing / 2, segment.end + missing / 2
    return segment._replace(start=max(start, 0.0), end=end)


def _utterance(segment: Segment, recording: str) -> str:
    """Return a segment's utterance id, which repeated segments share."""
    start, end = (
        f"{max(round(1000 * second), 0):07d}" if math.isfinite(second) else "nan"
        for second in (segment.start, segment.end)
    )
    return f"{_UNSAFE.sub('_', segment.speaker)}-{recording}-{start}-{end}"


class _Talks:
    """The talks of one language: names and lengths of their recordings."""

    def __init__(
        self,
        folder: Path,
        language: str,
        recordings: dict[str, str],
        sizes: dict[str, int],
    ) -> None:
        self.folder = folder
        self.language = language
        self.recordings = recordings  # of all languages: recording -> path
        self.sizes = sizes
        self.names: dict[str, str] = {}
        self.lengths: dict[str, float | tuple[str, str]] = {}

    def recording(self, wav: str) -> str:
        """Return a recording's name; languages share files of the same size."""
        if wav not in self.names:
            path = self.folder / wav
            name = _UNSAFE.sub("_", Path(wav).stem)
            size = path.stat().st_size if path.is_file() else -1
            if self.sizes.setdefault(name, size) not in (size, -1):
                name = f"{name}.{self.language}"
            if size >= 0:
                self.sizes[name] = size
                self.recordings.setdefault(name, os.path.abspath(path))
            self.names[wav] = name
        return self.names[wav]

    def problem(self, segment: Segment) -> tuple[str, str] | None:
        """Return why a segment cannot be used, as (reason, detail), or None."""
        times = f"{segment.start:g} to {segment.end:g} s"
        if not (0 <= segment.start and segment.start + 5e-4 <= segment.end):
            return "empty segment", times
        length = self.length(segment.wav)
        if isinstance(length, tuple):
            return length
        if segment.start >= length or segment.end > length + MAX_OVERSHOOT_SECONDS:
            return "past the end of its talk", f"{times}; {segment.wav}: {length:.2f} s"
        return None

    def clamp(self, segment: Segment) -> Segment:
        """End a segment with its talk, if it begins before the talk's end."""
        length = self.length(segment.wav)
        if isinstance(length, tuple) or not segment.start + 5e-4 <= length:
            return segment
        return segment._replace(end=min(segment.end, length))

    def length(self, wav: str) -> float | tuple[str, str]:
        """Return a talk's length in seconds, or (reason, detail) if it has none."""
        if wav not in self.lengths:
            self.lengths[wav] = self._measure(wav)
        return self.lengths[wav]

    def _measure(self, wav: str) -> float | tuple[str, str]:
        from speechllm.audio.io import audio_info

        path = self.folder / wav
        if not path.is_file():
            return "no audio file", str(path)
        try:
            return audio_info(path).seconds
        except UserError as error:
            return "unreadable audio", str(error)


def _write(new: Path, gathered: _Set, must_c_dir: Path) -> None:
    """Write the tables of a set into a folder, one after the other to save memory."""
    name, segments = gathered.name, gathered.segments
    transcripts: dict[str, str] = {}
    clean = _cleaner(gathered, SOURCE)
    drops_sounds = name == "train" and not gathered.espnet
    for language, kept in gathered.lines.items():
        path = _files(must_c_dir, name, language)[2]
        for utterance, line in zip(kept, read_lines(path), strict=True):
            if utterance is None or utterance in transcripts:
                continue
            text = clean(line)
            if drops_sounds and text and not _SOUNDS.sub("", text).strip():
                if segments.pop(utterance, None):
                    gathered.drop(utterance, "no speech", text)
            elif utterance in segments:
                transcripts[utterance] = text
    write_table(new / "text", transcripts)
    del transcripts
    for language, kept in gathered.lines.items():
        path = _files(must_c_dir, name, language)[3]
        clean = _cleaner(gathered, language)
        texts = (
            (utterance, clean(line))
            for utterance, line in zip(kept, read_lines(path), strict=True)
            if utterance in segments
        )
        translations = {utterance: text for utterance, text in texts if text}
        write_table(new / f"text.{language}", translations)
        del translations
    write_table(new / "segments", segments)
    used = {value.split(" ", 1)[0] for value in segments.values()}
    scp = {key: path for key, path in gathered.recordings.items() if key in used}
    write_table(new / "wav.scp", scp)
    write_table(new / "utt2lang", dict.fromkeys(segments, SOURCE))
    speakers = {utterance: utterance.split("-", 1)[0] for utterance in segments}
    write_table(new / "utt2spk", speakers)
    del speakers
    write_spk2utt(new)
    write_dropped(new, gathered.dropped)


def _cleaner(gathered: _Set, language: str) -> Callable[[str], str]:
    """Return the function that prepares the texts of a language."""
    if not gathered.espnet:
        return clean_text
    normalize = _punctuation_normalizer(language)
    return lambda text: clean_text(normalize(clean_text(text)))


def _punctuation_normalizer(language: str) -> Callable[[str], str]:
    """Return Moses' punctuation normalisation of a language.

    Raises:
        UserError: sacremoses is not installed.
    """
    try:
        from sacremoses import MosesPunctNormalizer
    except ImportError:
        raise UserError(
            "sacremoses, which normalises punctuation as in ESPnet's recipe, is not "
            "installed; run 'pip install sacremoses'"
        ) from None
    return MosesPunctNormalizer(lang=language).normalize
