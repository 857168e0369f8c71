"""Repair of a data dir's tables, after Kaldi's ``utils/fix_data_dir.sh``.

Tables are sorted, repeated lines and blank lines are removed, and so are entries whose
id is not in all tables. ``spk2utt`` is made again. The old tables are kept in
``.backup``.
"""

from __future__ import annotations

import codecs
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from speechllm.data.kaldi_table import TRANSLATION_TABLE, required_tables, table_line
from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_open

BACKUP = ".backup"
_NEEDED = ("text", "utt2spk", "utt2lang")
_SHOWN = 3  # ids in a message


@dataclass
class _Table:
    """A table in memory: its entries, its content on disk, and what was repaired."""

    path: Path
    content: bytes
    rows: dict[str, str] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)

    def remove(self, ids: set[str], reason: str) -> None:
        """Remove the entries of some ids."""
        if found := sorted(ids & self.rows.keys()):
            for key in found:
                del self.rows[key]
            self.changes.append(f"removed {len(found)} ({reason}): {_some(found)}")

    def encode(self) -> bytes:
        """Return the content that the table should have."""
        lines = (table_line(key, self.rows[key]) for key in sorted(self.rows))
        return "".join(lines).encode()


def fix_data_dir(directory: str | Path) -> list[str]:
    """Sort the tables of a data dir and remove entries that are not in all of them.

    Translations may be missing for some utterances. Recordings that no segment uses are
    removed, too. An id with several different values is removed everywhere, since it is
    not known which is right. Tables that change are kept in ``.backup`` (``.backup.2``
    and so on, if there is one).

    Args:
        directory: the data dir, of any origin.

    Returns:
        One line for each change; empty if there was nothing to repair.

    Raises:
        UserError: a needed table is missing or not UTF-8, or no utterance is left.
    """
    directory = Path(directory)
    paths = required_tables(directory, *_NEEDED)
    if not (directory / "wav.scp").is_file():
        raise UserError(f"{directory / 'wav.scp'}: the table does not exist")
    tables = {name: _read(path) for name, path in paths.items()}
    recordings = _read(directory / "wav.scp")
    if "segments" not in tables:
        tables["wav.scp"] = recordings
    _keep_common(directory, tables, recordings)
    speakers = _invert(tables["utt2spk"], directory / "spk2utt")
    changed = [
        table
        for table in (*tables.values(), recordings, speakers)
        if table.encode() != table.content
    ]
    unique = list({table.path: table for table in changed}.values())
    _back_up(directory, unique)
    for table in unique:
        with atomic_open(table.path, "wb") as stream:
            stream.write(table.encode())
    return [
        f"{table.path}: {'; '.join(table.changes) or 'sorted'}"
        for table in sorted(unique, key=lambda table: table.path)
    ]


def _keep_common(
    directory: Path, tables: dict[str, _Table], recordings: _Table
) -> None:
    """Remove entries of utterances and recordings that are not in all tables."""
    if segments := tables.get("segments"):
        lost = {
            key
            for key, value in segments.rows.items()
            if value.split(None, 1)[:1] == [] or value.split()[0] not in recordings.rows
        }
        segments.remove(lost, "their recording is not in wav.scp")
    complete = {n: t for n, t in tables.items() if not TRANSLATION_TABLE.match(n)}
    common = set.intersection(*(set(table.rows) for table in complete.values()))
    if not common:
        names = ", ".join(sorted(complete))
        raise UserError(
            f"{directory}: no utterance is in all of {names}; nothing changed"
        )
    for table in tables.values():
        table.remove(set(table.rows) - common, "not in all tables")
    if segments:
        used = {value.split(None, 1)[0] for value in segments.rows.values()}
        recordings.remove(set(recordings.rows) - used, "no segment uses them")


def _read(path: Path) -> _Table:
    """Read a table in any order; repeated ids keep their value if it is the same.

    Raises:
        UserError: it is not UTF-8.
    """
    table = _Table(path, path.read_bytes())
    conflicts: set[str] = set()
    repeated = blank = 0
    for key, value in _entries(table):
        if not key:
            blank += 1
        elif key not in table.rows:
            table.rows[key] = value
        elif table.rows[key] == value:
            repeated += 1
        else:
            conflicts.add(key)
    for count, kind in ((blank, "blank"), (repeated, "repeated")):
        if count:
            table.changes.append(f"removed {count} {kind} lines")
    table.remove(conflicts, "several different values")
    return table


def _entries(table: _Table) -> Iterator[tuple[str, str]]:
    lines = table.content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    for number, line in enumerate(lines, 1):
        if number == len(lines) and not line:
            return
        key, *rest = line.split(None, 1) or [b""]
        try:
            yield key.decode(), rest[0].rstrip().decode() if rest else ""
        except UnicodeDecodeError:
            raise UserError(
                f"{table.path}:{number}: not UTF-8; convert the file, for instance "
                "with iconv"
            ) from None


def _invert(utt2spk: _Table, path: Path) -> _Table:
    """Return ``spk2utt`` made from ``utt2spk``."""
    table = _Table(path, path.read_bytes() if path.is_file() else b"")
    utterances: dict[str, list[str]] = {}
    for utterance, speaker in sorted(utt2spk.rows.items()):
        if len(speaker.split()) != 1:
            raise UserError(
                f"{utt2spk.path}: utterance {utterance} needs exactly one speaker"
            )
        utterances.setdefault(speaker, []).append(utterance)
    table.rows = {speaker: " ".join(ids) for speaker, ids in utterances.items()}
    table.changes.append("made from utt2spk")
    return table


def _back_up(directory: Path, tables: list[_Table]) -> None:
    """Copy the old tables into a new folder."""
    old = [table.path for table in tables if table.path.is_file()]
    if not old:
        return
    folder = directory / BACKUP
    number = 1
    while os.path.lexists(folder):
        number += 1
        folder = directory / f"{BACKUP}.{number}"
    folder.mkdir()
    for path in old:
        shutil.copy2(path, folder)


def _some(ids: list[str]) -> str:
    """Return the first ids of a list, for a message."""
    return ", ".join(ids[:_SHOWN]) + (", …" if len(ids) > _SHOWN else "")
