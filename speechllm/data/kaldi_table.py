"""Kaldi tables: reading, writing and joining.

A table is a text file with one entry ``<id> <value>`` per line, UTF-8, LF, sorted by
the bytes of the id, with unique ids. The format is Kaldi's
(https://kaldi-asr.org/doc/data_prep.html); :mod:`speechllm.data.data_dir` lists the
tables of a data dir. ``dropped.tsv``, which lists the utterances that were left out of
a data dir, is ours.
"""

from __future__ import annotations

import codecs
import math
import re
import reprlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

from speechllm.audio.io import SAMPLING_RATE
from speechllm.utils.errors import UserError
from speechllm.utils.folders import FolderKind
from speechllm.utils.io import atomic_open

DROPPED = "dropped.tsv"
DATA_DIR = FolderKind("data dir", (DROPPED,))
TRANSLATION_TABLE = re.compile(r"^text\.([a-z]{2,3})$")
_VALIDATE = "python -m speechllm.bin.data_dir validate lists the differences"
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


@dataclass(frozen=True)
class Dropped:
    """An utterance or translation that was left out, a line of ``dropped.tsv``.

    Attributes:
        id: of the utterance.
        stage: name of the stage that left it out.
        reason: the same words for all such cases; statistics count by it.
        detail: particulars of the case.
        language: spoken language, where it is known; in sets of several languages it
            tells which of them lack the utterance.
    """

    id: str
    stage: str
    reason: str
    detail: str = ""
    language: str = ""

    def line(self) -> str:
        """Return the line, tab-separated, with white space in fields collapsed."""
        fields = [self.id, self.stage, self.reason, self.detail]
        if self.language:
            fields.append(self.language)
        return "\t".join(" ".join(field.split()) for field in fields) + "\n"


def iterate_table(path: str | Path) -> Iterator[tuple[str, str]]:
    """Yield (id, value) of a table in order; the value of a bare id is ``""``.

    A byte-order mark at its head is skipped.

    Raises:
        UserError: the table is missing, not UTF-8, or has an empty line, a repeated id
            or ids out of order; the message has file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: the table does not exist")
    previous = ""
    number = 0
    with open(path, "rb") as stream:
        try:
            for number, line in enumerate(stream, 1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                parts = line.split(None, 1)  # ASCII white space only
                if not parts:
                    raise UserError(f"{path}:{number}: the line is empty; remove it")
                key = parts[0].decode("utf-8")
                if key <= previous:
                    raise _order_error(path, number, key, previous)
                previous = key
                yield key, parts[1].rstrip().decode("utf-8") if len(parts) > 1 else ""
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}:{number}: not UTF-8 (byte 0x{error.object[error.start]:02x}); "
                "convert the file, for instance with iconv"
            ) from None


def read_table(path: str | Path) -> dict[str, str]:
    """Read a table into a dict; see :func:`iterate_table` for the errors."""
    return dict(iterate_table(path))


def in_speaker_order(path: str | Path) -> bool:
    """Tell if ``utt2spk`` has its speakers in order, as well as its utterances."""
    speakers = (speaker for _, speaker in iterate_table(path))
    return all(one <= following for one, following in pairwise(speakers))


def speaker_groups(path: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the speakers of ``utt2spk`` in order, with the utterances of each.

    If the table has them in this order, only one speaker's utterances are in memory.
    """
    if in_speaker_order(path):
        for speaker, entries in groupby(iterate_table(path), lambda entry: entry[1]):
            yield speaker, [utterance for utterance, _ in entries]
        return
    gathered = defaultdict(list)
    for utterance, speaker in iterate_table(path):
        gathered[speaker].append(utterance)
    yield from sorted(gathered.items())


def join_tables(
    paths: Mapping[str, Path], base: str
) -> Iterator[tuple[str, dict[str, str]]]:
    """Join sorted tables: yield (id, {name: value}) for each id of table ``base``.

    The dict has no entry for a table without the id. Memory does not grow with the
    tables.

    Raises:
        UserError: a table is damaged, see :func:`iterate_table`, or has an id that
            ``base`` lacks.
    """
    others = {name: iterate_table(path) for name, path in paths.items() if name != base}
    heads = {name: next(table, None) for name, table in others.items()}

    def refuse(name: str, key: str) -> UserError:
        return UserError(f"{paths[name]}: {key} is not in {paths[base]}; {_VALIDATE}")

    for key, value in iterate_table(paths[base]):
        row = {base: value}
        for name, table in others.items():
            head = heads[name]
            if head is None or head[0] > key:
                continue
            if head[0] < key:
                raise refuse(name, head[0])
            row[name] = head[1]
            heads[name] = next(table, None)
        yield key, row
    for name, head in heads.items():
        if head is not None:
            raise refuse(name, head[0])


class IdCheck:
    """Check that tables of a data dir have the same utterances, as they are read.

    Translations may be there for some utterances only.
    """

    def __init__(self) -> None:
        self.seen: dict[str, tuple[int, int]] = {}  # number of ids, and their digest

    def watch(
        self, name: str, entries: Iterable[tuple[str, str]]
    ) -> Iterator[tuple[str, str]]:
        """Yield the entries of table ``name``."""
        count, digest = 0, 0
        for key, value in entries:
            count, digest = count + 1, digest ^ hash(key)
            yield key, value
        self.seen[name] = count, digest

    def require_same(self, place: str | Path) -> None:
        """Raise UserError, with ``place`` in front, if the tables differ."""
        for name, seen in self.seen.items():
            if seen != self.seen["utt2spk"] and not TRANSLATION_TABLE.match(name):
                raise UserError(
                    f"{place}: {name} and utt2spk have different utterances; "
                    f"{_VALIDATE}"
                )


def write_table(path: str | Path, mapping: Mapping[str, str]) -> None:
    """Write a sorted table atomically.

    Raises:
        UserError: an id or value is not valid, see :func:`table_line`.
    """
    with atomic_open(path) as stream:
        for key in sorted(mapping):
            stream.write(table_line(key, mapping[key]))


def write_stream(
    path: Path,
    entries: Iterable[tuple[str, str]],
    name: str = "",
    same_twice: bool = False,
) -> int:
    """Write sorted entries into a table and count them.

    Args:
        path: table of a new data dir.
        entries: ids and values.
        name: table in the message; by default the name of the file.
        same_twice: write identical entries once.

    Raises:
        UserError: an id is repeated.
    """
    count = 0
    previous: tuple[str | None, str | None] = (None, None)
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


@contextmanager
def open_tables(
    folder: Path, names: Sequence[str]
) -> Iterator[Callable[[str, Sequence[str]], None]]:
    """Open tables of a new data dir, to be written line by line in parallel.

    Yields:
        A function that takes an id and its value in each table and writes the lines;
        see :func:`table_line` for its errors.
    """
    with ExitStack() as stack:
        files = [
            stack.enter_context(
                open(folder / name, "w", encoding="utf-8", newline="\n")
            )
            for name in names
        ]

        def write(key: str, values: Sequence[str]) -> None:
            for stream, value in zip(files, values, strict=True):
                stream.write(table_line(key, value))

        yield write


def table_line(key: str, value: str) -> str:
    """Return one line of a table.

    Raises:
        UserError: the id is empty or has white space, or the value has a line break.
    """
    if not key or len(key.split()) != 1 or key.strip() != key:
        shown = reprlib.repr(key)
        raise UserError(f"{shown} cannot be an id: it is empty or has white space")
    if "\n" in value or "\r" in value:
        shown = reprlib.repr(value)
        raise UserError(f"the value of {key!r} has a line break: {shown}")
    return f"{key} {value}\n" if value else f"{key}\n"


def parse_segment(value: str) -> tuple[str, float, float]:
    """Split a value of ``segments`` into recording, start and end in seconds.

    Raises:
        ValueError: another number of fields, or times that are not numbers.
    """
    recording, start, end = value.split()
    if "_" in start + end or not (start + end).isascii():
        raise ValueError(value)  # which float() would accept
    return recording, float(start), float(end)


def table_paths(directory: str | Path) -> dict[str, Path]:
    """Return the paths of a data dir's tables over utterances, by name.

    Raises:
        UserError: the data dir does not exist.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: the data dir does not exist")
    paths = {name: directory / name for name in _UTTERANCE_TABLES}
    paths |= {p.name: p for p in directory.iterdir() if TRANSLATION_TABLE.match(p.name)}
    return {name: path for name, path in sorted(paths.items()) if path.is_file()}


def required_tables(directory: str | Path, *needed: str) -> dict[str, Path]:
    """Return the paths of a data dir's tables, see :func:`table_paths`.

    Raises:
        UserError: the data dir does not exist, or lacks one of the ``needed`` tables.
    """
    paths = table_paths(directory)
    for name in needed:
        if name not in paths:
            raise UserError(f"{Path(directory) / name}: the table does not exist")
    return paths


def translation_languages(directory: str | Path) -> list[str]:
    """Return the sorted language codes of a data dir's ``text.<lang>`` tables."""
    matches = map(TRANSLATION_TABLE.match, table_paths(directory))
    return sorted(match[1] for match in matches if match)


def durations_and_texts(directory: Path) -> Iterator[tuple[str, float, str]]:
    """Yield utterance, duration in seconds and transcript of a data dir.

    Raises:
        UserError: a table is missing or damaged, or a duration is unknown.
    """
    paths = required_tables(directory, "text", "utt2spk")
    for key, row in join_tables(paths, "utt2spk"):
        yield key, utterance_seconds(directory, key, row), row.get("text", "")


def read_num_samples(directory: str | Path) -> dict[str, int]:
    """Read the lengths of a folder's audio in samples, from ``utt2num_samples``.

    Raises:
        UserError: the table is missing or damaged, or a length is not a number.
    """
    path = Path(directory) / "utt2num_samples"
    return {
        name: num_samples(path, name, value) for name, value in read_table(path).items()
    }


def num_samples(path: Path, key: str, value: str) -> int:
    """Return the number of samples of a value of ``utt2num_samples``.

    Args:
        path, key: table and id, for the message.

    Raises:
        UserError: it is not a number of samples.
    """
    if not re.fullmatch("[0-9]{1,15}", value):
        raise UserError(f"{path}: {value!r} of {key} is not a number of samples")
    return int(value)


def utterance_seconds(directory: Path, key: str, row: Mapping[str, str]) -> float:
    """Return the duration of an utterance from a row of :func:`join_tables`.

    It comes from ``utt2num_samples``, else ``utt2dur``, else ``segments``.

    Args:
        directory: data dir, for the message.
        key: id of the utterance, for the message.
        row: its values by table.

    Raises:
        UserError: the duration is unknown or not a number from 0 on.
    """
    if "utt2num_samples" in row:
        path = directory / "utt2num_samples"
        return num_samples(path, key, row["utt2num_samples"]) / SAMPLING_RATE
    name = next((name for name in ("utt2dur", "segments") if name in row), None)
    if name is None:
        raise UserError(
            f"{directory}: the duration of {key} is unknown; format the audio first "
            "(utt2num_samples) or give utt2dur"
        )
    try:
        if name == "utt2dur":
            seconds = float(row[name])
        else:
            _, start, end = parse_segment(row[name])
            seconds = end - start
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise UserError(
            f"{directory / name}: {row[name]!r} of {key} is not a duration in seconds"
        )
    return seconds


def read_dropped(path: str | Path) -> list[Dropped]:
    """Read ``dropped.tsv`` of a data dir; an empty list if it is missing."""
    path = Path(path) / DROPPED
    if not path.exists():
        return []
    with open(path, encoding="utf-8-sig") as stream:
        return [Dropped(*line.rstrip("\n").split("\t")) for line in stream]


def write_dropped(directory: str | Path, dropped: Iterable[Dropped]) -> None:
    """Write ``dropped.tsv``, sorted by id."""
    with atomic_open(Path(directory) / DROPPED) as stream:
        for entry in sorted(dropped, key=lambda entry: (entry.id, entry.stage)):
            stream.write(entry.line())


def _order_error(path: Path, number: int, key: str, previous: str) -> UserError:
    if key == previous:
        return UserError(f"{path}:{number}: {key} is repeated; ids must be unique")
    return UserError(
        f"{path}:{number}: {key} comes after {previous}; sort the file with "
        f"'LC_ALL=C sort -k1,1 -o {path} {path}'"
    )
