"""Memory that was freed goes back to the operating system."""

from __future__ import annotations

import platform

import pytest

from speechllm.benchmarks.resources import MEBIBYTE, process_memory
from speechllm.utils.free_memory import return_free_memory

glibc = platform.libc_ver()[0] == "glibc"


@pytest.mark.skipif(not glibc, reason="the C library is not glibc")
def test_memory_between_blocks_in_use_is_returned():
    blocks = [bytearray(b"x" * 100_000) for _ in range(2000)]
    kept = blocks[::20]  # glibc cannot shrink the heap below the last of them
    del blocks
    before = process_memory("VmRSS")
    return_free_memory()
    assert before - process_memory("VmRSS") > 100 * MEBIBYTE
    assert all(block.count(b"x") == 100_000 for block in kept)


def test_another_c_library_is_no_error(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    return_free_memory()
