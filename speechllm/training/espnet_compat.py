"""Import ESPnet's task and trainer without the parts of ESPnet that we do not use.

``espnet2.tasks.abs_task`` imports ESPnet's adapters, which import a speech
enhancement front end, which imports torchaudio, whose wheel needs CUDA libraries. Our
adapters come from peft, so ESPnet's are kept out. So is what collects attention
weights for pictures: it imports a speech synthesiser, numba and scipy.stats, seconds
at every start. The package imports this module before ``espnet2.tasks``.
"""

from __future__ import annotations

import sys
import types

from speechllm.utils.errors import UserError


def create_adapter(*args, **options) -> None:
    """Refuse ESPnet's own adapters."""
    raise UserError("--use_adapter: name LoRA under llm_conf instead (tuning: lora)")


def calculate_all_attentions(*args, **options) -> None:
    """Refuse pictures of attention weights."""
    raise UserError("--num_att_plot: only 0; attention weights are not collected here")


for _package, _function in (
    ("layers", create_adapter),
    ("main_funcs", calculate_all_attentions),
):
    _name = f"espnet2.{_package}.{_function.__name__}"
    if _name not in sys.modules:
        sys.modules[_name] = types.ModuleType(_name)
        setattr(sys.modules[_name], _function.__name__, _function)
