"""Sorting of more records than fit into memory."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from speechllm.utils.io import name_full_disk

_CHUNK_CHARACTERS = 1 << 25  # sorted in memory at a time


def sort_on_disk(
    records: Iterable[Sequence[str]], folder: Path
) -> Iterator[tuple[str, ...]]:
    """Yield records in order; memory holds a part of them, temporary files the rest.

    Args:
        records: each has at least one field. Fields have no line feed, and none but the
            last has a character below the space.
        folder: for the temporary files, which have no names and so vanish with the
            process.

    Raises:
        ValueError: a field has a line feed.
    """
    with name_full_disk(folder), ExitStack() as stack:
        files = []
        for chunk in _chunks(records):
            file = tempfile.TemporaryFile(
                "w+",
                encoding="utf-8",
                errors="surrogateescape",
                newline="\n",
                dir=folder,
            )
            files.append(stack.enter_context(file))
            file.writelines(chunk)
            file.seek(0)
        for line in heapq.merge(*map(_lines, files)):
            yield tuple(line.split("\t"))


def _chunks(records: Iterable[Sequence[str]]) -> Iterator[list[str]]:
    """Yield sorted lists of lines."""
    lines: list[str] = []
    size = 0
    for record in records:
        line = "\t".join(record)
        if "\n" in line:
            raise ValueError(f"a field has a line feed: {record!r}")
        lines.append(line + "\n")
        size += len(line)
        if size >= _CHUNK_CHARACTERS:
            lines.sort()
            yield lines
            lines, size = [], 0
    lines.sort()
    yield lines


def _lines(file: IO[str]) -> Iterator[str]:
    for line in file:
        yield line.removesuffix("\n")
