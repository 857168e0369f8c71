"""The ESPnet task and everything that training needs (stages 7 to 9)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from speechllm.training.espnet_compat import install_replacements
from speechllm.utils.errors import UserError, reason_of

if TYPE_CHECKING:
    from speechllm.training.task import SpeechLLMTask

install_replacements()  # before any module here imports espnet2.tasks


def load_task() -> type[SpeechLLMTask]:
    """Import ESPnet and return the task.

    Raises:
        UserError: ESPnet is not installed or cannot be imported.
    """
    try:
        import espnet2.tasks.abs_task  # noqa: F401
    except ModuleNotFoundError as error:
        command = "pip install 'speechllm[train]'"
        if sys.version_info < (3, 12):
            command += " && pip install --no-deps espnet==202511"
        reason = reason_of(error)
        raise UserError(f"training needs ESPnet ({reason}); {command}") from error
    except OSError as error:  # a shared library of torchaudio
        raise UserError(
            f"ESPnet cannot be imported ({reason_of(error)}); install torch and "
            "torchaudio of the same build, both for the CPU or both for CUDA"
        ) from error
    from speechllm.training.task import SpeechLLMTask

    return SpeechLLMTask
