"""The TSV files of Common Voice, which CoVoST 2 uses too.

A header line with column names, then one row per clip with tab-separated fields.
Columns are found by name, since releases differ in number and order: 4.0 has
``client_id path sentence up_votes down_votes age gender accent``, 5.0 adds ``locale
segment`` in another order, 13.0 adds ``variant`` and 17.0 ``sentence_id`` and
``sentence_domain`` (Mozilla's changelog); ``accent`` became ``accents`` in between.
Mozilla's releases were written by different programs: some quote a field that contains
a quotation mark and double the marks inside, some write it as it is; none has tabs or
line breaks in a field. So every line is a row, every tab separates two fields, and the
marks around a field are removed only if the whole field is quoted
(``\"""Yes,"" he said."`` is ``"Yes," he said.``, but ``"Yes," he said.``
stays).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from speechllm.utils.errors import UserError

SPEAKER_LENGTH = 16  # of 128 hexadecimal digits: 64 bits identify a speaker


def read_clips(
    tsv_path: str | Path,
    columns: Iterable[str],
    on_bad_row: Callable[[int, str], None] | None = None,
) -> Iterator[dict[str, str]]:
    """Yield the rows of a TSV as {column: field}, with the requested columns.

    White space at the ends of a field is removed. The file is streamed.

    Args:
        tsv_path: the TSV, in UTF-8 (a byte-order mark and CR LF are accepted).
        columns: the requested columns, in any order; the file may have others.
        on_bad_row: called with line number and problem of a row that is not UTF-8 or
            whose number of fields differs from the header's; the row is skipped.
            Without it, such a row is an error.

    Raises:
        UserError: the file does not exist, is empty or lacks a column (the message
            lists those it has), or a row is bad. The message names file and line.
    """
    path = Path(tsv_path)
    columns = list(columns)
    if not path.is_file():
        raise UserError(f"{path}: no such file; unpack the whole corpus")
    with open(path, "rb") as stream:
        header = _read_header(path, stream.readline())
        places = [(column, _find(path, header, column)) for column in columns]
        for number, line in enumerate(stream, 2):
            try:
                fields = line.decode("utf-8").rstrip("\r\n").split("\t")
                problem = ""
            except UnicodeDecodeError as error:
                problem = f"not UTF-8 (byte 0x{error.object[error.start]:02x})"
            else:
                if fields == [""]:
                    continue
                if len(fields) != len(header):
                    problem = f"{len(fields)} fields where the header has {len(header)}"
            if not problem:
                yield {column: unquote(fields[place]) for column, place in places}
            elif on_bad_row is None:
                raise UserError(f"{path}:{number}: {problem}")
            else:
                on_bad_row(number, problem)


def clip_name(path: str) -> str:
    """Return the name of a clip's file from the field ``path``.

    The oldest releases omit the extension; some copies put folders before the name.
    """
    name = os.path.basename(path)
    return f"{name}.mp3" if name and "." not in name else name


def unquote(field: str) -> str:
    """Remove the quotation marks around a field if the whole field is quoted."""
    field = field.strip()
    if len(field) >= 2 and field[0] == field[-1] == '"':
        inside = field[1:-1]
        if '"' not in inside.replace('""', ""):
            return inside.replace('""', '"').strip()
    return field


def _read_header(path: Path, line: bytes) -> list[str]:
    try:
        header = line.decode("utf-8-sig").rstrip("\r\n").split("\t")
    except UnicodeDecodeError:
        raise UserError(
            f"{path}:1: not UTF-8; this is not the TSV of a Common Voice release"
        ) from None
    if header == [""]:
        raise UserError(f"{path}: the file is empty; unpack the corpus again")
    return [unquote(name) for name in header]


def _find(path: Path, header: list[str], column: str) -> int:
    if header.count(column) == 1:
        return header.index(column)
    what = "is listed twice" if column in header else "is missing"
    raise UserError(
        f"{path}:1: the column '{column}' {what}; the header has: {', '.join(header)}"
    )
