"""Precision of weights and of matrix products."""

from __future__ import annotations

import platform

import torch
from torch import Tensor

from speechllm.utils.machine import cpu_vendor

X86 = ("x86_64", "AMD64")  # as Linux and Windows call it


def resolve_dtype(name: str) -> torch.dtype:
    """Convert ``float32``, ``bfloat16``, ``float16``, ``auto`` or ``4bit`` to a dtype.

    ``auto`` is bfloat16 if the hardware multiplies it faster than float32, else
    float32. With ``4bit`` it is that of all that is not quantised: bfloat16 if there is
    a GPU, else float32.

    Raises:
        ValueError: another name.
    """
    if name == "4bit":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    if name != "auto":
        if name not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"dtype {name!r}: float32, bfloat16, float16 or auto")
        return getattr(torch, name)
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = is_bfloat16_fast_on_cpu()
    return torch.bfloat16 if fast else torch.float32


def to_float64_device(values: Tensor) -> Tensor:
    """Return a tensor that can be cast to float64: of Apple's GPU a copy on the CPU."""
    return values.cpu() if values.device.type == "mps" else values


def is_bfloat16_fast_on_cpu() -> bool:
    """Return whether this CPU multiplies bfloat16 faster than float32.

    AMX, AMD's AVX-512 BF16 and the BF16 instructions of ARM do. oneDNN also takes
    bfloat16 on every x86 processor with AVX-512. Without AMX Intel's instructions for
    it are no faster, and it has to be converted: two cores of a Xeon have 160 GFLOP/s
    in bfloat16 and 293 in float32, and training takes 1.5 to 1.6 times as long.
    """
    if not torch.backends.mkldnn.is_available():  # PyTorch for macOS has no oneDNN
        return False
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine() not in X86 or torch.cpu._is_amx_tile_supported():
        return True
    return torch.cpu._is_avx512_bf16_supported() and cpu_vendor() == "AuthenticAMD"
