"""Corpora: one module or package each, which turns a corpus on disk into data dirs.

A corpus module defines ``add_arguments(parser)`` and ``run(args)``; its name is the
first argument of ``python -m speechllm.bin.prepare_data`` (stage 1). Its docstring
describes the corpus, its layout on disk and the data dirs.
"""

from __future__ import annotations

import pkgutil


def corpus_names() -> list[str]:
    """Return the names of the corpus modules, sorted, without importing them."""
    return sorted(
        module.name
        for module in pkgutil.iter_modules(__path__)
        if not module.name.startswith("_")
    )
