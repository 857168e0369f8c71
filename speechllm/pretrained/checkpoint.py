"""Reading of checkpoints as plain tensors, without running code from them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from speechllm.utils.errors import UserError, is_out_of_memory, reason_of


def is_hub_id(start: str) -> bool:
    """Return True if an initialisation is a hub id, not a local file or folder."""
    path = Path(start)
    return path.suffix not in (".pth", ".ckpt", ".safetensors") and not path.exists()


def load_tensors(path: str | Path, device: str = "cpu") -> dict:
    """Read named tensors from a safetensors or torch file, or what Lightning wrote.

    Args:
        path: the file, a folder with ``model.safetensors``, or a checkpoint of
            Lightning: ``.ckpt``, a file, or a folder of FSDP or DeepSpeed.
        device: torch device of the tensors.

    Raises:
        UserError: the file is missing, damaged, or contains more than tensors.
    """
    path = Path(path)
    of_lightning = path.suffix == ".ckpt"
    if path.is_dir() and not of_lightning:
        path = path / "model.safetensors"
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint")
    try:
        if of_lightning:
            from speechllm.pretrained.trainer_checkpoint import read_trainer_checkpoint

            state = read_trainer_checkpoint(path, device)
        elif path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path, device=device)
        else:
            import torch

            state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        if is_out_of_memory(error) or isinstance(error, UserError):
            raise
        reason = reason_of(error)
        if type(error).__name__ == "UnpicklingError":  # torch advises to run the code
            reason = (
                "damaged, or pickled with more than tensors; it is not read, since it "
                "could run code; use safetensors"
            )
        raise UserError(f"{path}: not a checkpoint of tensors: {reason}") from error
    if isinstance(state, dict):
        require_finite(state.items(), str(path))
    return state


def require_finite(tensors: Iterable[tuple[str, Any]], place: str) -> None:
    """Check that weights have no NaN or infinity.

    Raises:
        UserError: a tensor has one; names ``place`` and the tensor.
    """
    for name, tensor in tensors:
        if not getattr(tensor, "is_floating_point", bool)() or not tensor.numel():
            continue
        if tensor.is_meta:
            continue
        if not all(bound.isfinite() for bound in tensor.detach().aminmax()):
            raise UserError(
                f"{place}: {name} has values that are not finite (NaN, infinity); the "
                "training diverged or the file is damaged"
            )
