"""Replacements for unused parts of ESPnet with heavy dependencies.

``espnet2.tasks.abs_task`` imports ESPnet's adapters, which import a speech enhancement
front end and torchaudio, whose wheel needs CUDA libraries; the adapters here are
peft's. It also imports the collection of attention weights for plots, which imports a
speech synthesiser, numba and scipy.stats and so costs seconds at every start.
"""

from __future__ import annotations

import sys
import types

from speechllm.utils.errors import UserError


def install_replacements() -> None:
    """Install the replacements; must run before ``espnet2.tasks`` is imported."""
    for package, function in (
        ("layers", create_adapter),
        ("main_funcs", calculate_all_attentions),
    ):
        name = f"espnet2.{package}.{function.__name__}"
        if name not in sys.modules:
            sys.modules[name] = types.ModuleType(name)
            setattr(sys.modules[name], function.__name__, function)


def create_adapter(*args, **options) -> None:
    """Raise UserError: ESPnet's own adapters are not supported."""
    raise UserError("--use_adapter: name LoRA under llm_conf instead (tuning: lora)")


def calculate_all_attentions(*args, **options) -> None:
    """Raise UserError: plots of attention weights are not supported."""
    raise UserError("--num_att_plot: only 0; attention weights are not collected here")
