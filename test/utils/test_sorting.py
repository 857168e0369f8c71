"""Sorting with temporary files, compared with sorting in memory."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechllm.utils import sorting
from speechllm.utils.sorting import sort_on_disk

FIELD = st.text(st.characters(codec="utf-8", min_codepoint=32), max_size=4)


@given(st.lists(st.tuples(FIELD, FIELD)), st.integers(1, 20))
def test_records_are_in_the_order_of_sorted(tmp_path_factory, records, characters):
    folder = tmp_path_factory.mktemp("sort")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "_CHUNK_CHARACTERS", characters)
        assert list(sort_on_disk(iter(records), folder)) == sorted(records)
    assert os.listdir(folder) == []


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    assert list(sort_on_disk([(name,), ("a",)], tmp_path)) == [("a",), (name,)]


def test_line_feeds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line feed"):
        list(sort_on_disk([("a", "b\nc")], tmp_path))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(mode: str, **options: object) -> object:
        return open("/dev/full", "w", encoding="utf-8")

    monkeypatch.setattr(sorting.tempfile, "TemporaryFile", full)
    with pytest.raises(OSError, match="No space left") as error:
        list(sort_on_disk([("a",)], tmp_path))
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path))
