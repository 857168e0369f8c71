"""MuST-C (Cattoni et al. 2021): English TED talks, transcribed and translated.

Versions 1, 2 and 3 lie alike on disk, one folder for each language::

    en-de/data/<set>/wav/ted_767.wav        a talk
    en-de/data/<set>/txt/<set>.yaml         one line for each segment
    en-de/data/<set>/txt/<set>.en           its transcript, same line
    en-de/data/<set>/txt/<set>.de           its translation, same line

with the sets ``train``, ``dev``, ``tst-COMMON`` and ``tst-HE``. A line of the list is

    - {duration: 3.5, offset: 16.08, speaker_id: spk.767, wav: ted_767.wav}

(version 2 has the counts ``rW`` and ``uW`` too). Licence: CC BY-NC-ND 4.0.

What comes out: a data dir for each set, with ``segments``, the transcript in ``text``
and the translations in ``text.<lang>``. Utterance
``<speaker>-<talk>-<start in ms>-<end in ms>``; segments that languages cut alike are
one utterance with several translations, the others have one. Texts stay as they are,
but for marks that nobody sees.

Left out and listed in ``dropped.tsv``: segments that are empty, that lie behind the
end of their talk, or whose talk has no file. From ``train`` also talks that are in
another of the sets (of any language that is prepared with it), from ``dev`` those
that are in a test set, and from ``train`` segments in which nobody speaks, such as
"(Applause)".
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from speechllm.audio.io import MAX_OVERSHOOT_SECONDS
from speechllm.corpora._texts import clean_text, count_lines, read_lines
from speechllm.data.data_dir import write_spk2utt
from speechllm.data.kaldi_table import Dropped, read_dropped, write_dropped, write_table
from speechllm.data.statistics import statistics
from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_directory

SOURCE = "en"
SETS = ("train", "dev", "tst-COMMON", "tst-HE")
_FIELDS = ("wav", "speaker_id", "offset", "duration")
_SIMPLE_VALUE = r"[^\s'\"{}\[\],:#&*!|>%@`][^'\"{}\[\],:#]*"
_SIMPLE_LINE = re.compile(
    rf"- ?\{{(\w+: {_SIMPLE_VALUE}(?:, \w+: {_SIMPLE_VALUE})*)\}}\s*"
)
_SOUNDS = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|[♪♫]")  # (Applause), [Music], ♫
_UNSAFE = re.compile(r"[^\w.]")


class Segment(NamedTuple):
    """A line of the list: file, speaker, and the times in seconds."""

    wav: str
    speaker: str
    start: float
    end: float


@dataclass
class _Set:
    """What is gathered of one set, over its languages."""

    name: str
    segments: dict[str, str] = field(default_factory=dict)  # utterance → value
    lines: dict[str, list[str | None]] = field(default_factory=dict)  # by language
    recordings: dict[str, str] = field(default_factory=dict)
    talks: set[str] = field(default_factory=set)
    dropped: list[Dropped] = field(default_factory=list)

    def drop(self, utterance: str, reason: str, detail: str = "") -> None:
        self.dropped.append(Dropped(utterance, "prepare_data", reason, detail))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, default=Path("data"), help="for data dirs"
    )
    parser.add_argument(
        "--must_c_dir", type=Path, required=True, help="folder with en-de, en-fr, …"
    )
    parser.add_argument(
        "--tgt_lang", nargs="+", required=True, help="languages, such as de fr"
    )
    parser.add_argument("--sets", nargs="+", default=SETS, help="sets to prepare")


def run(args: argparse.Namespace) -> None:
    prepare_must_c(args.must_c_dir, args.output, args.tgt_lang, args.sets)
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
) -> None:
    """Write a data dir for each set below ``output_dir``, all of them or none.

    Args:
        must_c_dir: folder that holds ``en-<lang>`` for each of the languages.
        output_dir: folder of the data dirs.
        languages: languages translated into, two-letter codes.
        sets: names of sets.

    Raises:
        UserError: a file is missing, a list and its texts differ in length, a line
            cannot be read, or no talk of a set has its file.
    """
    languages = list(dict.fromkeys(languages))
    sets = list(dict.fromkeys(sets))
    for name in sets:  # before anything is written
        for language in languages:
            _check_texts(Path(must_c_dir), name, language)
    taken: dict[str, str] = {}  # talk → set that tests or validates with it
    with ExitStack() as stack:
        for name in sorted(sets, key=_training_last):
            held_out = {} if name.startswith("tst") else taken
            gathered = _gather(Path(must_c_dir), name, languages, held_out)
            taken |= dict.fromkeys(gathered.talks, name)
            new = stack.enter_context(atomic_directory(Path(output_dir) / name))
            _write(new, gathered, Path(must_c_dir))


def read_segments(path: str | Path) -> list[Segment]:
    """Read a list of segments.

    Lists as they are published have one mapping a line and are read line by line; any
    other YAML goes through libyaml's parser.

    Raises:
        UserError: the file is no such list, or a segment lacks a field.
    """
    path = Path(path)
    try:
        return list(_segments(path, _simple_rows(path)))
    except _NotSimpleError:
        return list(_segments(path, _parsed_rows(path)))


def _segments(
    path: Path, rows: Iterable[tuple[int, dict[str, str]]]
) -> Iterator[Segment]:
    names: dict[str, str] = {}  # files and speakers repeat: keep one string of each
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
    """The list is not written one mapping a line."""


def _simple_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, fields as strings) of a list with one mapping a line."""
    for number, line in enumerate(read_lines(path), 1):
        match = _SIMPLE_LINE.fullmatch(line)
        if match:
            pairs = (pair.split(": ") for pair in match[1].split(", "))
            yield number, {key: value.rstrip() for key, value in pairs}
        elif line.strip():
            raise _NotSimpleError


def _parsed_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The same by YAML's own rules, from the parser's events, one segment at a time."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    fields: dict[str, str] | None = None  # of the segment that is being read
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
        problem = " ".join(str(error).split())
        raise UserError(f"{path}:{line}: not YAML: {problem}") from None


def _training_last(name: str) -> tuple[int, str]:
    return {"train": 2, "dev": 1}.get(name, 0), name


def _files(must_c_dir: Path, name: str, language: str) -> tuple[Path, Path, Path, Path]:
    """The folder of talks, the list, the transcripts and the translations of a set."""
    folder = must_c_dir / f"en-{language}" / "data" / name
    texts = folder / "txt"
    return (
        folder / "wav",
        texts / f"{name}.yaml",
        texts / f"{name}.{SOURCE}",
        texts / f"{name}.{language}",
    )


def _check_texts(must_c_dir: Path, name: str, language: str) -> None:
    """Refuse a set whose files are missing or whose texts differ in length."""
    wavs, listed, *texts = _files(must_c_dir, name, language)
    for path in (listed, *texts, wavs):
        if path.exists():
            continue
        there = sorted(p.name for p in must_c_dir.glob("en-*") if p.is_dir())
        found = f"holds {', '.join(there)}" if there else "holds no folder en-…"
        raise UserError(
            f"{path}: not there; {must_c_dir} {found}. Give the folder that holds "
            f"en-{language}, with MuST-C unpacked whole"
        )
    counts = {path: count_lines(path) for path in texts}
    if len(set(counts.values())) > 1:
        _refuse_lengths(counts)


def _refuse_lengths(counts: dict[Path, int]) -> None:
    listing = ", ".join(f"{path} {count}" for path, count in counts.items())
    raise UserError(
        f"these belong together line by line but differ in length: {listing}; unpack "
        "them anew"
    )


def _gather(
    must_c_dir: Path, name: str, languages: list[str], held_out: dict[str, str]
) -> _Set:
    """Read the lists of one set in all languages and decide which segments stay."""
    gathered = _Set(name)
    sizes: dict[str, int] = {}
    for language in languages:
        wavs, listed, transcripts, _ = _files(must_c_dir, name, language)
        segments = read_segments(listed)
        lines = count_lines(transcripts)
        if len(segments) != lines:
            _refuse_lengths({listed: len(segments), transcripts: lines})
        talks = _Talks(wavs, language, gathered.recordings, sizes)
        seen: Counter[str] = Counter()
        kept = gathered.lines[language] = []
        for segment in segments:
            utterance = _utterance(segment, talks.recording(segment.wav), seen)
            problem = talks.problem(segment)
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
            # one string for an utterance in all languages and tables
            kept.append(utterance)
            gathered.segments.setdefault(utterance, value)
        if not any(kept):
            first = gathered.dropped[0] if gathered.dropped else None
            why = f"{first.reason}: {first.detail}" if first else "the list is empty"
            raise UserError(f"{listed}: no segment of it can be used; {why}")
    return gathered


def _utterance(segment: Segment, recording: str, seen: Counter[str]) -> str:
    """Name a segment; one that is listed again gets a number."""
    start, end = (
        f"{max(round(1000 * second), 0):07d}" if math.isfinite(second) else "nan"
        for second in (segment.start, segment.end)
    )
    speaker = _UNSAFE.sub("_", segment.speaker)
    name = f"{speaker}-{recording}-{start}-{end}"
    seen[name] += 1
    return name if seen[name] == 1 else f"{name}-{seen[name]}"


class _Talks:
    """The files of one language's talks: names, lengths, and what is wrong."""

    def __init__(
        self,
        folder: Path,
        language: str,
        recordings: dict[str, str],
        sizes: dict[str, int],
    ) -> None:
        self.folder = folder
        self.language = language
        self.recordings = recordings  # of all languages: recording → path
        self.sizes = sizes
        self.names: dict[str, str] = {}
        self.lengths: dict[str, float | tuple[str, str]] = {}

    def recording(self, wav: str) -> str:
        """Name a talk's recording; languages share it where the files are alike."""
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
        """Say why a segment cannot be used: (reason, detail), or None."""
        times = f"{segment.start:g} to {segment.end:g} s"
        if not (0 <= segment.start and segment.start + 5e-4 <= segment.end):
            return "empty segment", times
        if segment.wav not in self.lengths:
            self.lengths[segment.wav] = self._length(segment.wav)
        length = self.lengths[segment.wav]
        if isinstance(length, tuple):
            return length
        if segment.start >= length or segment.end > length + MAX_OVERSHOOT_SECONDS:
            return "past the end of its talk", f"{times}; {segment.wav}: {length:.2f} s"
        return None

    def _length(self, wav: str) -> float | tuple[str, str]:
        from speechllm.audio.io import audio_info

        path = self.folder / wav
        if not path.is_file():
            return "no audio file", str(path)
        try:
            return audio_info(path).seconds
        except UserError as error:
            return "unreadable audio", str(error)


def _write(new: Path, gathered: _Set, must_c_dir: Path) -> None:
    """Write the tables of a set into a folder, one after the other to spare memory."""
    name, segments = gathered.name, gathered.segments
    transcripts: dict[str, str] = {}
    for language, kept in gathered.lines.items():
        path = _files(must_c_dir, name, language)[2]
        for utterance, line in zip(kept, read_lines(path), strict=True):
            if utterance is None or utterance in transcripts:
                continue
            text = clean_text(line)
            if name == "train" and text and not _SOUNDS.sub("", text).strip():
                if segments.pop(utterance, None):
                    gathered.drop(utterance, "no speech", text)
            elif utterance in segments:
                transcripts[utterance] = text
    write_table(new / "text", transcripts)
    del transcripts
    for language, kept in gathered.lines.items():
        path = _files(must_c_dir, name, language)[3]
        texts = (
            (utterance, clean_text(line))
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
