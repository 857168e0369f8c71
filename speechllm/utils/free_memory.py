"""Return of free memory to the operating system."""

from __future__ import annotations

import ctypes


def return_free_memory() -> None:
    """Return freed memory to the operating system, where the C library is glibc.

    Between blocks in use glibc keeps what was freed. Where large tensors of changing
    sizes are made and freed, as for one group of utterances after the other, that part
    grows with their number.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # not glibc; TypeError: on Windows
        pass
