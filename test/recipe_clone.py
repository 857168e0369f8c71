"""Copies of recipes for tests."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]


def clone(root: Path, *names: str) -> Path:
    """Copy these recipes, and what they link to; return the new ``egs2``."""
    ignored = shutil.ignore_patterns("data", "dump*", "exp*", "downloads")
    for name in {"TEMPLATE", "mini_asterisk", "must_c", "reazonspeech", *names}:
        source, target = ROOT / "egs2" / name, root / "egs2" / name
        shutil.copytree(source / "speechllm1", target / "speechllm1", True, ignored)
    for shared in ("speechllm", "tools"):
        (root / shared).symlink_to(ROOT / shared)
    return root / "egs2"
