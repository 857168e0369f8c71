"""Kaldi-style data directories: read, write, check, filter, combine, split.

A data dir holds tables, one entry a line, ``<id> <value>``, sorted by the bytes of
the id (``LC_ALL=C sort``), ids unique, UTF-8, LF:

=================  ==========================================================
``wav.scp``        recording → audio file (or ``command |``, where allowed)
``segments``       optional; utterance → recording, start, end (seconds).
                   Without it, utterances are recordings
``utt2spk``        utterance → speaker, and its inverse ``spk2utt``
``utt2lang``       utterance → two-letter code of the language spoken
``text``           utterance → transcript, in the language spoken
``text.<lang>``    utterance → translation into <lang>, for some utterances
``utt2speed``      optional; factor that formatting plays the utterance at
``utt2dur``        optional; seconds
``utt2num_samples``  optional; samples of the formatted audio
``dropped.tsv``    id, stage, reason, detail of all that was left out so far
=================  ==========================================================

A million utterances have to pass in a minute and in little memory, so tables are
streamed in step with each other, which their order makes possible, and at most a set
of ids is held.
"""

from __future__ import annotations

import heapq
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_directory, atomic_open

SAMPLING_RATE = 16000  # of formatted audio, to turn utt2num_samples into seconds
DROPPED = "dropped.tsv"
_UTTERANCE_TABLES = (
    "segments",
    "text",
    "text_ctc",
    "utt2dur",
    "utt2lang",
    "utt2num_samples",
    "utt2speed",
    "utt2spk",
    "utt2task",
)
_TRANSLATION = re.compile(r"^text\.([a-z]{2,3})$")
_ARCHIVE_OFFSET = re.compile(r"\.ark:\d+$")
_MAX_PROBLEMS_PER_FILE = 20


@dataclass(frozen=True)
class Dropped:
    """One thing that was left out: which, by what stage, and why."""

    id: str
    stage: str
    reason: str
    detail: str = ""

    def line(self) -> str:
        fields = (self.id, self.stage, self.reason, self.detail)
        return "\t".join(" ".join(field.split()) for field in fields) + "\n"


# --- tables -------------------------------------------------------------------------


def iterate_table(path: str | Path) -> Iterator[tuple[str, str]]:
    """Yield (id, value) of a table, in order; the value of a bare id is ``""``.

    Raises:
        UserError: naming file and line, when the table is missing, is not UTF-8, has
            an empty line, an id twice, or ids out of order.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: the table does not exist")
    previous = ""
    number = 0
    with open(path, "rb") as stream:
        try:
            for number, line in enumerate(stream, 1):
                parts = line.split(None, 1)  # ASCII white space only
                if not parts:
                    raise UserError(f"{path}:{number}: the line is empty; remove it")
                key = parts[0].decode("utf-8")
                if key <= previous:
                    _refuse_order(path, number, key, previous)
                previous = key
                yield key, parts[1].rstrip().decode("utf-8") if len(parts) > 1 else ""
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}:{number}: not UTF-8 (byte 0x{error.object[error.start]:02x}); "
                "convert the file, for instance with iconv"
            ) from None


def read_table(path: str | Path) -> dict[str, str]:
    """Read a whole table; the errors are those of :func:`iterate_table`."""
    return dict(iterate_table(path))


def write_table(path: str | Path, mapping: Mapping[str, str]) -> None:
    """Write a table sorted and at once; ids and values may not break its lines."""
    with atomic_open(path) as stream:
        for key in sorted(mapping):
            stream.write(table_line(key, mapping[key]))


def table_line(key: str, value: str) -> str:
    """Return one line of a table, or refuse an id or value that would break it."""
    if not key or len(key.split()) != 1 or key.strip() != key:
        raise UserError(f"{key!r} cannot be an id: it is empty or has white space")
    if "\n" in value or "\r" in value:
        raise UserError(f"the value of {key!r} has a line break: {value!r}")
    return f"{key} {value}\n" if value else f"{key}\n"


def read_dropped(path: str | Path) -> list[Dropped]:
    """Read the list of what was left out of a data dir; none when there is no list."""
    path = Path(path) / DROPPED
    if not path.exists():
        return []
    with open(path, encoding="utf-8") as stream:
        return [Dropped(*line.rstrip("\n").split("\t")) for line in stream]


def write_dropped(directory: str | Path, dropped: Iterable[Dropped]) -> None:
    """Write ``dropped.tsv``, sorted by id."""
    with atomic_open(Path(directory) / DROPPED) as stream:
        for entry in sorted(dropped, key=lambda entry: (entry.id, entry.stage)):
            stream.write(entry.line())


def join_tables(
    paths: Mapping[str, Path], base: str
) -> Iterator[tuple[str, dict[str, str]]]:
    """Walk sorted tables in step: (id, {name: value}) for each id of table ``base``.

    A table that lacks the id is absent from the dict. Entries of ids that ``base``
    lacks are skipped. Memory does not grow with the tables.
    """
    others = {name: iterate_table(path) for name, path in paths.items() if name != base}
    heads = {name: next(table, None) for name, table in others.items()}
    for key, value in iterate_table(paths[base]):
        row = {base: value}
        for name, table in others.items():
            head = heads[name]
            while head is not None and head[0] < key:
                head = next(table, None)
            heads[name] = head
            if head is not None and head[0] == key:
                row[name] = head[1]
        yield key, row


# --- directories --------------------------------------------------------------------


def table_paths(directory: str | Path) -> dict[str, Path]:
    """Return the tables keyed by utterance that a data dir has, by name."""
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: the data dir does not exist")
    paths = {name: directory / name for name in _UTTERANCE_TABLES}
    paths |= {p.name: p for p in directory.iterdir() if _TRANSLATION.match(p.name)}
    return {name: path for name, path in sorted(paths.items()) if path.is_file()}


def translation_languages(directory: str | Path) -> list[str]:
    """Return the codes of the ``text.<lang>`` tables of a data dir, sorted."""
    matches = map(_TRANSLATION.match, table_paths(directory))
    return sorted(match[1] for match in matches if match)


def write_data_dir(
    directory: str | Path,
    tables: Mapping[str, Mapping[str, str]],
    dropped: Iterable[Dropped] = (),
) -> None:
    """Write a whole data dir at once from dicts, one per table; adds ``spk2utt``."""
    with atomic_directory(directory) as new:
        fill_data_dir(new, tables, dropped)


def fill_data_dir(
    folder: Path,
    tables: Mapping[str, Mapping[str, str]],
    dropped: Iterable[Dropped] = (),
) -> None:
    """Write a data dir's tables into an empty folder; adds ``spk2utt``."""
    for name, table in tables.items():
        write_table(folder / name, table)
    write_spk2utt(folder)
    write_dropped(folder, dropped)


def write_spk2utt(directory: Path) -> None:
    """Write ``spk2utt`` as the inverse of ``utt2spk``."""
    utterances = defaultdict(list)
    for utterance, speaker in iterate_table(directory / "utt2spk"):
        utterances[speaker].append(utterance)
    with atomic_open(directory / "spk2utt") as stream:
        for speaker in sorted(utterances):
            stream.write(table_line(speaker, " ".join(utterances[speaker])))


def select_utterances(
    source: str | Path,
    target: str | Path,
    keep: Callable[[str], bool],
    dropped: Iterable[Dropped] = (),
) -> int:
    """Copy a data dir with only the utterances that ``keep`` accepts; count them.

    ``dropped`` is added to the source's list. The target appears whole or not at all
    and may be the source itself.
    """
    source = Path(source)
    paths = table_paths(source)
    count = 0
    with atomic_directory(target) as new:
        recordings = set() if "segments" in paths else None
        for name, path in paths.items():
            with open(new / name, "w", encoding="utf-8", newline="\n") as stream:
                for key, value in iterate_table(path):
                    if not keep(key):
                        continue
                    stream.write(table_line(key, value))
                    count += name == "utt2spk"
                    if name == "segments":
                        recordings.add(value.split(None, 1)[0])
        wanted = keep if recordings is None else recordings.__contains__
        with open(new / "wav.scp", "w", encoding="utf-8", newline="\n") as stream:
            for key, value in iterate_table(source / "wav.scp"):
                if wanted(key):
                    stream.write(table_line(key, value))
        write_spk2utt(new)
        write_dropped(new, [*read_dropped(source), *dropped])
    return count


# --- checks -------------------------------------------------------------------------


def validate_data_dir(
    directory: str | Path,
    check_files: bool = True,
    allow_pipes: bool = False,
) -> list[str]:
    """Check a data dir by Kaldi's rules and return what is wrong, file and line first.

    Empty transcripts are allowed here: filtering takes them out and lists them.

    Args:
        directory: the data dir.
        check_files: also look whether each audio file of ``wav.scp`` exists.
        allow_pipes: accept commands in ``wav.scp``.
    """
    directory = Path(directory)
    paths = table_paths(directory)
    problems = [
        f"{directory / name}: the table is missing"
        for name in ("wav.scp", "utt2spk", "utt2lang", "text", "spk2utt")
        if not (directory / name).is_file()
    ]
    if problems:
        return problems
    checks = [
        lambda: _check_wav_scp(directory / "wav.scp", check_files, allow_pipes),
        lambda: _check_speakers(directory),
        lambda: _check_languages(directory / "utt2lang"),
    ]
    if "utt2dur" in paths:
        checks.append(lambda: _check_durations(directory / "utt2dur"))
    if "segments" in paths:
        checks.append(lambda: _check_segments(directory))
    else:
        paths["wav.scp"] = directory / "wav.scp"
    for name in paths:
        if name != "utt2spk":
            subset = bool(_TRANSLATION.match(name))
            checks.append(
                lambda name=name, subset=subset: _compare_ids(
                    directory / "utt2spk", directory / name, subset
                )
            )
    for check in checks:
        found = 0
        try:
            for problem in check():
                if problem not in problems:
                    problems.append(problem)
                    found += 1
                if found == _MAX_PROBLEMS_PER_FILE:
                    problems.append("… and more of the same kind")
                    break
        except UserError as error:
            if str(error) not in problems:
                problems.append(str(error))
    return problems


def check_data_dir(
    directory: str | Path, check_files: bool = True, allow_pipes: bool = False
) -> None:
    """Raise a UserError with the first problem of a data dir, if it has any."""
    problems = validate_data_dir(directory, check_files, allow_pipes)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}")


def _check_wav_scp(path: Path, check_files: bool, allow_pipes: bool) -> Iterator[str]:
    empty = True
    for number, (key, value) in enumerate(iterate_table(path), 1):
        empty = False
        if not value:
            yield f"{path}:{number}: recording {key} has no file"
        elif value.endswith("|"):
            if not allow_pipes:
                yield f"{path}:{number}: recording {key} is a command, not a file"
        elif check_files and not os.path.isfile(value):
            archive = _ARCHIVE_OFFSET.sub(".ark", value)
            if archive == value or not os.path.isfile(archive):
                yield f"{path}:{number}: the file of {key} does not exist: {value}"
    if empty:
        yield f"{path}: the table has no entries"


def _check_speakers(directory: Path) -> Iterator[str]:
    path = directory / "utt2spk"
    counts = Counter()
    last = ""
    for number, (key, speaker) in enumerate(iterate_table(path), 1):
        if len(speaker.split()) != 1:
            yield f"{path}:{number}: utterance {key} needs exactly one speaker"
        elif speaker < last:
            yield (
                f"{path}:{number}: speaker {speaker} comes after {last}: begin "
                "utterance ids with the speaker, so that both sort alike"
            )
        last = speaker
        counts[speaker] += 1
    path = directory / "spk2utt"
    listed = Counter()
    for number, (speaker, value) in enumerate(iterate_table(path), 1):
        listed[speaker] = len(value.split())
        if listed[speaker] != counts[speaker]:
            yield (
                f"{path}:{number}: speaker {speaker} has {listed[speaker]} utterances "
                f"here and {counts[speaker]} in utt2spk"
            )
    for speaker in sorted(counts.keys() - listed.keys()):
        yield f"{path}: speaker {speaker} of utt2spk is missing"


def _check_languages(path: Path) -> Iterator[str]:
    for number, (key, language) in enumerate(iterate_table(path), 1):
        if not re.fullmatch("[a-z]{2,3}", language):
            yield f"{path}:{number}: {language!r} is no language code (utterance {key})"


def _check_durations(path: Path) -> Iterator[str]:
    for number, (key, seconds) in enumerate(iterate_table(path), 1):
        if not re.fullmatch(r"[0-9]+(\.[0-9]*)?(e[+-]?[0-9]+)?", seconds):
            yield f"{path}:{number}: {seconds!r} are no seconds (utterance {key})"


def _check_segments(directory: Path) -> Iterator[str]:
    path = directory / "segments"
    recordings = {key for key, _ in iterate_table(directory / "wav.scp")}
    for number, (key, value) in enumerate(iterate_table(path), 1):
        try:
            recording, start, end = parse_segment(value)
        except ValueError:
            yield f"{path}:{number}: utterance {key}: expected <recording> <start> <end>"
            continue
        if recording not in recordings:
            yield f"{path}:{number}: recording {recording} of {key} is not in wav.scp"
        if not 0 <= start < end:
            yield f"{path}:{number}: utterance {key} lasts from {start:g} to {end:g} s"


def _compare_ids(base: Path, other: Path, subset: bool) -> Iterator[str]:
    """Yield where the ids of ``other`` differ from those of ``base``."""
    expected = ((key, n) for n, (key, _) in enumerate(iterate_table(base), 1))
    found = ((key, n) for n, (key, _) in enumerate(iterate_table(other), 1))
    want, have = next(expected, None), next(found, None)
    while want or have:
        if have is None or (want is not None and want[0] < have[0]):
            if not subset:
                yield f"{base}:{want[1]}: utterance {want[0]} has no line in {other.name}"
            want = next(expected, None)
        elif want is None or have[0] < want[0]:
            yield f"{other}:{have[1]}: utterance {have[0]} is not in {base.name}"
            have = next(found, None)
        else:
            want, have = next(expected, None), next(found, None)


def _refuse_order(path: Path, number: int, key: str, previous: str) -> None:
    if key == previous:
        raise UserError(f"{path}:{number}: {key} is there twice; ids must be unique")
    raise UserError(
        f"{path}:{number}: {key} comes after {previous}; sort the file with "
        f"'LC_ALL=C sort -k1,1 -o {path} {path}'"
    )


def parse_segment(value: str) -> tuple[str, float, float]:
    """Split a value of ``segments`` into recording, start and end in seconds."""
    recording, start, end = value.split()
    return recording, float(start), float(end)


# --- operations ---------------------------------------------------------------------


def filter_data_dir(
    source: str | Path,
    target: str | Path,
    min_seconds: float = 0.0,
    max_seconds: float = float("inf"),
    min_text_length: int = 1,
    max_text_length: float = float("inf"),
) -> tuple[int, list[Dropped]]:
    """Leave out utterances that are too short or long, or whose text is.

    Lengths of text are in characters of the transcript. Durations come from
    ``utt2num_samples``, else ``utt2dur``, else ``segments``.

    Returns:
        The number of utterances kept, and what was dropped (also in ``dropped.tsv``).
    """
    dropped = []
    for key, seconds, text in _durations_and_texts(Path(source)):
        if not seconds >= min_seconds:  # also when it is NaN
            reason, detail = "too short", f"{seconds:.2f} s < {min_seconds:g} s"
        elif seconds > max_seconds:
            reason, detail = "too long", f"{seconds:.2f} s > {max_seconds:g} s"
        elif not text:
            reason, detail = "empty text", ""
        elif len(text) < min_text_length:
            reason, detail = "text too short", f"{len(text)} < {min_text_length}"
        elif len(text) > max_text_length:
            reason, detail = "text too long", f"{len(text)} > {max_text_length}"
        else:
            continue
        dropped.append(Dropped(key, "filter", reason, detail))
    gone = {entry.id for entry in dropped}
    kept = select_utterances(source, target, lambda key: key not in gone, dropped)
    if kept == 0:
        raise UserError(
            f"{source}: nothing passes the filter; see the reasons in "
            f"{Path(target) / DROPPED}"
        )
    return kept, dropped


def perturb_speed(
    source: str | Path, target: str | Path, factors: Iterable[float]
) -> None:
    """Write a data dir that holds each utterance once per speed factor.

    Factor 1 keeps ids; factor 0.9 makes utterance ``sp0.9-<utt>`` of speaker
    ``sp0.9-<spk>``, as Kaldi does, also of those that were left out so far.
    ``utt2speed`` tells the formatting stage.
    """
    factors = list(factors)
    if len(set(factors)) != len(factors) or any(factor <= 0 for factor in factors):
        raise UserError(f"speed factors must be positive and differ: {factors}")
    source = Path(source)
    paths = table_paths(source)
    if "utt2speed" in paths:
        raise UserError(f"{source}: the speeds are perturbed already (utt2speed)")
    segmented = "segments" in paths
    with atomic_directory(target) as new:
        for name, path in {**paths, "wav.scp": source / "wav.scp"}.items():
            if name == "utt2num_samples":
                continue  # formatting counts them anew
            if name == "wav.scp" and segmented:
                _write_stream(new / name, iterate_table(path))
                continue
            change = _CHANGE_WITH_SPEED.get(name, lambda value, factor: value)
            tables = [_at_speed(path, factor, change) for factor in factors]
            _write_stream(new / name, heapq.merge(*tables))
        speeds = [
            _at_speed(source / "utt2spk", factor, lambda value, factor: f"{factor:g}")
            for factor in factors
        ]
        _write_stream(new / "utt2speed", heapq.merge(*speeds))
        write_spk2utt(new)
        gone = read_dropped(source)
        write_dropped(
            new,
            (
                replace(entry, id=_speed_prefix(factor) + entry.id)
                for factor in factors
                for entry in gone
            ),
        )


def combine_data_dirs(sources: Iterable[str | Path], target: str | Path) -> int:
    """Merge data dirs into one and count the utterances.

    All must have the same tables, except translations, which may cover a part. If
    some have ``segments``, the others' utterances become whole-file segments only
    through formatting: combine such dirs after it.
    """
    sources = [Path(source) for source in sources]
    names = [set(table_paths(source)) for source in sources]
    everywhere = {name for name in set.union(*names) if not _TRANSLATION.match(name)}
    for source, present in zip(sources, names):
        if missing := everywhere - present:
            raise UserError(
                f"{source}: has no {min(missing)}, which another of the data "
                "dirs to combine has"
            )
    count = 0
    with atomic_directory(target) as new:
        for name in sorted(set.union(*names)):
            tables = [
                iterate_table(source / name)
                for source, present in zip(sources, names)
                if name in present
            ]
            written = _write_stream(new / name, heapq.merge(*tables), name)
            count = written if name == "utt2spk" else count
        scps = [iterate_table(source / "wav.scp") for source in sources]
        _write_stream(new / "wav.scp", heapq.merge(*scps), same_twice=True)
        write_spk2utt(new)
        write_dropped(new, [entry for s in sources for entry in read_dropped(s)])
    return count


def subset_data_dir(
    source: str | Path,
    target: str | Path,
    count: int | None = None,
    ids: Iterable[str] | None = None,
    seed: int = 0,
) -> int:
    """Keep ``count`` utterances drawn at random (by ``seed``), or those named.

    Raises:
        UserError: an id is not in the data dir, or there are fewer than ``count``.
    """
    everything = [key for key, _ in iterate_table(Path(source) / "utt2spk")]
    if ids is not None:
        chosen = set(ids)
        if unknown := chosen.difference(everything):
            raise UserError(f"{source}: has no utterance {min(unknown)}")
    else:
        if count is None or not 0 < count <= len(everything):
            raise UserError(
                f"{source}: cannot take {count} of {len(everything)} utterances"
            )
        chosen = set(random.Random(seed).sample(everything, count))
    return select_utterances(source, target, chosen.__contains__)


def split_table(path: str | Path, outputs: list[str | Path]) -> list[int]:
    """Split a table into consecutive parts of nearly equal size; return the sizes."""
    if not outputs:
        raise UserError(f"{path}: cannot split into no parts")
    with open(path, "rb") as stream:
        total = sum(1 for _ in stream)
    if total < len(outputs):
        raise UserError(f"{path}: cannot split {total} lines into {len(outputs)} parts")
    bounds = [total * part // len(outputs) for part in range(len(outputs) + 1)]
    table = iterate_table(path)
    for output, (first, last) in zip(outputs, pairwise(bounds)):
        with atomic_open(output) as stream:
            for _ in range(last - first):
                stream.write(table_line(*next(table)))
    return [last - first for first, last in pairwise(bounds)]


def statistics(directory: str | Path) -> list[dict]:
    """Count what a data dir holds per language spoken, and in all (``*``).

    Returns:
        For each language ``language``, ``utterances``, ``speakers``, ``minutes``,
        ``max_seconds``, ``characters`` and ``words`` (as white space parts them) of
        the transcripts, and ``lengths``: whole seconds → utterances as long.
    """
    directory = Path(directory)
    paths = table_paths(directory)
    rows: dict[str, _Count] = defaultdict(_Count)
    for key, row in join_tables(paths, "utt2spk"):
        seconds, text = _seconds(directory, key, row), row.get("text", "")
        rows[row.get("utt2lang", "?")].add(seconds, row["utt2spk"], text)
    everything = _Count()
    for count in rows.values():
        everything.merge(count)
    return [
        {"language": language, **count.row()}
        for language, count in [*sorted(rows.items()), ("*", everything)]
    ]


@dataclass
class _Count:
    """Sums over utterances."""

    utterances: int = 0
    seconds: float = 0.0
    max_seconds: float = 0.0
    characters: int = 0
    words: int = 0
    speakers: set[str] = field(default_factory=set)
    lengths: Counter[int] = field(default_factory=Counter)

    def add(self, seconds: float, speaker: str, text: str) -> None:
        self.utterances += 1
        self.seconds += seconds
        self.max_seconds = max(self.max_seconds, seconds)
        self.characters += len(text)
        self.words += len(text.split())
        self.speakers.add(speaker)
        self.lengths[int(seconds)] += 1

    def merge(self, other: _Count) -> None:
        self.utterances += other.utterances
        self.seconds += other.seconds
        self.max_seconds = max(self.max_seconds, other.max_seconds)
        self.characters += other.characters
        self.words += other.words
        self.speakers |= other.speakers
        self.lengths += other.lengths

    def row(self) -> dict:
        return {
            "utterances": self.utterances,
            "minutes": self.seconds / 60,
            "speakers": len(self.speakers),
            "max_seconds": self.max_seconds,
            "characters": self.characters,
            "words": self.words,
            "lengths": self.lengths,
        }


def _durations_and_texts(directory: Path) -> Iterator[tuple[str, float, str]]:
    paths = table_paths(directory)
    if "text" not in paths:
        raise UserError(f"{directory / 'text'}: the table does not exist")
    for key, row in join_tables(paths, "utt2spk"):
        yield key, _seconds(directory, key, row), row.get("text", "")


def _seconds(directory: Path, key: str, row: Mapping[str, str]) -> float:
    try:
        if "utt2num_samples" in row:
            return int(row["utt2num_samples"]) / SAMPLING_RATE
        if "utt2dur" in row:
            return float(row["utt2dur"])
        if "segments" in row:
            _, start, end = parse_segment(row["segments"])
            return end - start
    except ValueError:
        raise UserError(f"{directory}: the duration of {key} is no number") from None
    raise UserError(
        f"{directory}: the duration of {key} is unknown; format the audio first "
        "(utt2num_samples) or give utt2dur"
    )


def _speed_prefix(factor: float) -> str:
    return "" if factor == 1 else f"sp{factor:g}-"


_CHANGE_WITH_SPEED = {
    "utt2spk": lambda value, factor: _speed_prefix(factor) + value,
    "utt2dur": lambda value, factor: f"{float(value) / factor:.3f}",
}


def _at_speed(
    path: Path, factor: float, change: Callable[[str, float], str]
) -> Iterator[tuple[str, str]]:
    prefix = _speed_prefix(factor)
    for key, value in iterate_table(path):
        yield prefix + key, change(value, factor)


def _write_stream(
    path: Path,
    entries: Iterable[tuple[str, str]],
    name: str = "",
    same_twice: bool = False,
) -> int:
    """Write sorted entries of a new data dir, refusing the same id twice.

    With ``same_twice`` an entry that is repeated word for word is written once.
    """
    count, previous = 0, (None, None)
    with open(path, "w", encoding="utf-8", newline="\n") as stream:
        for entry in entries:
            if entry[0] == previous[0]:
                if same_twice and entry == previous:
                    continue
                raise UserError(
                    f"{entry[0]} is in two of the data dirs ({name or path.name}); "
                    "ids must be unique"
                )
            stream.write(table_line(*entry))
            previous = entry
            count += 1
    return count
