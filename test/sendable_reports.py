"""Plugin of pytest: reports that pytest-xdist can send, whatever a test says."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Write lone surrogates, as of file names, in a form that pytest-xdist can send.

    Otherwise an internal error ends all tests, which does not say which one failed.
    """
    return without_surrogates((yield))


def without_surrogates(value: Any) -> Any:
    """Return a report's data with lone surrogates written as in Python's source."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, (list, tuple)):
        return type(value)(map(without_surrogates, value))
    if isinstance(value, dict):
        return {
            without_surrogates(name): without_surrogates(part)
            for name, part in value.items()
        }
    return value
