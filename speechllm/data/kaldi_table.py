"""Kaldi tables (``<id> <value>`` lines): reading, writing and joining them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_open

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
TRANSLATION_TABLE = re.compile(r"^text\.([a-z]{2,3})$")


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
    paths |= {p.name: p for p in directory.iterdir() if TRANSLATION_TABLE.match(p.name)}
    return {name: path for name, path in sorted(paths.items()) if path.is_file()}


def translation_languages(directory: str | Path) -> list[str]:
    """Return the codes of the ``text.<lang>`` tables of a data dir, sorted."""
    matches = map(TRANSLATION_TABLE.match, table_paths(directory))
    return sorted(match[1] for match in matches if match)


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


def durations_and_texts(directory: Path) -> Iterator[tuple[str, float, str]]:
    paths = table_paths(directory)
    if "text" not in paths:
        raise UserError(f"{directory / 'text'}: the table does not exist")
    for key, row in join_tables(paths, "utt2spk"):
        yield key, utterance_seconds(directory, key, row), row.get("text", "")


def utterance_seconds(directory: Path, key: str, row: Mapping[str, str]) -> float:
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


def write_stream(
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
