"""Reading of checkpoints as plain tensors, without running code from them."""

from __future__ import annotations

from pathlib import Path

from speechllm.utils.errors import UserError


def is_hub_id(start: str) -> bool:
    """Return True if an initialisation is a hub id, not a local file or folder."""
    path = Path(start)
    return path.suffix not in (".pth", ".safetensors") and not path.exists()


def load_tensors(path: str | Path, device: str = "cpu") -> dict:
    """Read named tensors from a safetensors or torch file.

    Args:
        path: the file, or a folder with ``model.safetensors``.
        device: torch device of the tensors.

    Raises:
        UserError: the file is missing, damaged, or contains more than tensors.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path, device=device)
        import torch

        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: not a checkpoint of tensors: {error}") from error
