"""Replacements for unused parts of ESPnet 202511 with heavy dependencies.

``espnet2.tasks.abs_task`` imports ESPnet's adapters, which import a speech enhancement
front end and torchaudio, and the collection of attention weights for plots, which
imports a speech synthesiser. tools/install.sh installs torchaudio only with 202611,
which requires it and is imported as it is. ``training/options.py`` refuses both.
"""

from __future__ import annotations

import sys
import types
from importlib.metadata import PackageNotFoundError, version


def install_replacements() -> None:
    """Install the replacements if ESPnet is 202511 or older.

    Must run before ``espnet2.tasks`` is imported.
    """
    try:
        if int(version("espnet")[:6]) >= 202611:
            return
    except PackageNotFoundError:
        return
    for package, function in (
        ("layers", "create_adapter"),
        ("main_funcs", "calculate_all_attentions"),
    ):
        name = f"espnet2.{package}.{function}"
        if name not in sys.modules:
            sys.modules[name] = types.ModuleType(name)
            setattr(sys.modules[name], function, None)
