"""Import ESPnet's task and trainer without the part of ESPnet that we do not use.

``espnet2.tasks.abs_task`` imports ESPnet's adapters, which import a speech
enhancement front end, which imports torchaudio, whose wheel needs CUDA libraries. Our
adapters come from peft, so ESPnet's are kept out. Import this module before
``espnet2.tasks``.
"""

from __future__ import annotations

import sys
import types

from speechllm.errors import UserError


def create_adapter(*args, **options) -> None:
    """Refuse ESPnet's own adapters."""
    raise UserError("--use_adapter: name LoRA under llm_conf instead (tuning: lora)")


_NAME = "espnet2.layers.create_adapter"
if _NAME not in sys.modules:
    sys.modules[_NAME] = types.ModuleType(_NAME)
    sys.modules[_NAME].create_adapter = create_adapter
