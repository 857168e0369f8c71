"""Corpora: one module each, from the corpus on disk to data dirs.

A corpus module offers ``add_arguments(parser)`` and ``run(args)``; its name is the
one that ``python -m speechllm.bin.prepare_data`` takes. Its docstring says how the
corpus lies on disk and what comes out.
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
