"""4-bit weights of bitsandbytes: layers, and what a machine must have for them."""

from __future__ import annotations

import torch
from torch import nn

from speechllm.models.adaptation import linear_layers


def quantize_layers(causal_lm: nn.Module) -> None:
    """Replace the linear layers but the head by 4-bit ones, as transformers does.

    For weights that are not in a folder of transformers. Each is quantised from its own
    precision, one at a time, on the GPU if there is one.

    Raises:
        ValueError: there are no linear layers, or this machine misreads one.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = linear_layers(causal_lm, without=[causal_lm.get_output_embeddings()])
    if not names:
        raise ValueError(f"{type(causal_lm).__name__} has no linear layers to quantise")
    for name in names:
        layer = causal_lm.get_submodule(name)
        size = layer.in_features, layer.out_features, layer.bias is not None
        with torch.device("meta"):
            quantized = Linear4bit(*size, torch.bfloat16, quant_type="nf4")
        weight = Params4bit(layer.weight.data, quant_type="nf4", module=quantized)
        quantized.weight, quantized.bias = weight.to(device), layer.bias
        causal_lm.set_submodule(name, quantized)
    check_cpu_layers(causal_lm)


def is_4bit(weight: torch.Tensor) -> bool:
    """Return whether bitsandbytes quantised a weight to 4 bits."""
    return getattr(weight, "quant_state", None) is not None


def check_cpu_layers(causal_lm: nn.Module) -> None:
    """Work around defects of bitsandbytes' CPU kernels (0.50.2).

    They misread rows that are not a multiple of the block size of 64, and in
    evaluation mode repack weights with scales rounded to bfloat16.

    Raises:
        ValueError: a layer on the CPU has such rows.
    """
    for name, layer in causal_lm.named_modules():
        if not hasattr(layer, "support_avx512bf16_for_cpu"):
            continue
        layer.support_avx512bf16_for_cpu = False
        if layer.in_features % 64 and layer.weight.device.type == "cpu":
            raise ValueError(
                "4-bit weights on a CPU need layers of a multiple of 64 inputs; "
                f"{name} has {layer.in_features}: use whole weights (tuning: lora)"
            )


def quantization_obstacle(wanted: str = "qlora") -> str | None:
    """Return the reason why this machine has no 4-bit weights, or None if it has.

    Args:
        wanted: the option that needs them, for the message.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        from bitsandbytes import functional

        weights, state = functional.quantize_4bit(
            torch.ones(64, 64, device=device),
            quant_type="nf4",
            compress_statistics=True,
        )
        functional.dequantize_4bit(weights, state)
    except ImportError:
        return f"{wanted} needs bitsandbytes: pip install 'speechllm[qlora]'"
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        return f"{wanted}: bitsandbytes has no 4-bit weights on this {device}: {reason}"
    return None
