"""Inference backends: select the fastest matrix and convolution kernels.

On a CPU, PyTorch multiplies float32 matrices with MKL, which uses wide vector
instructions on Intel processors only. oneDNN, part of PyTorch too, uses them on all,
and with weights packed in its layout a few rows cost little more than one. Packed
linear layers on an AMD Zen 5 core are 2 times as fast with 128 rows, 2.4 times with 16
and 1.5 times with one. Convolutions are packed too, with channels-last inputs and
outputs: HuBERT's positional convolution is 2 times as fast, its convolutions over the
waveform 1.25 times. Grouped-query attention does not copy the keys and values for each
query head.

In bfloat16 the same layers are packed where the processor multiplies it (AVX-512 BF16,
AMX): on an AMD EPYC core with AVX-512 BF16 packed layers are twice as fast as packed
ones in float32, and with up to 8 rows 1.5 to 2 times as fast as unpacked in bfloat16.

On a GPU the LLM's decoding steps are CUDA graphs
(:mod:`speechllm.decoding.step_graphs`): on an H200 they take a seventh of the time with
one row of GPT-NeoX 3.6B in bfloat16, or of a Llama of 1.1 B in 4 bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from speechllm.decoding.step_graphs import supports_step_graphs
from speechllm.decoding.vllm_engine import (
    VLLM,
    VLLMLanguageModel,
    check_vllm,
    start_vllm,
)
from speechllm.models.llm import avoid_cudnn_attention
from speechllm.models.speech_llm import SpeechLLM
from speechllm.utils.errors import UserError
from speechllm.utils.machine import cpu_name

# A packed layer needs a kernel for each shape of its input, of about 0.6 MiB. PyTorch
# keeps the last 1,024 of each thread and oneDNN the last 1,024 of the process, so
# memory grew over hours of audio. Both read these limits at the first kernel; values
# that the user set are kept. A step of the LLM needs 5 kernels; making one takes 1 ms.
for _name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
    os.environ.setdefault(_name, "64")

# model families with standard grouped-query attention
GROUPED = ("llama", "mistral", "qwen2", "qwen3")

ENGINES = {
    "auto": "weights packed for oneDNN on a CPU, CUDA graphs on a GPU",
    "eager": "unmodified PyTorch and transformers",
    "vllm": "as auto, but the LLM runs in vLLM (speechllm.decoding.vllm_engine)",
}


class PackedLinear(nn.Module):
    """Linear layer for inference, with its weight packed for oneDNN."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    @property
    def weight(self) -> Tensor:
        """Unpacked weight ``(out_features, in_features)``."""
        return self.packed.to_dense()

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.weight

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``(…, in_features)`` to ``(…, out_features)``."""
        return torch.ops.mkldnn._linear_pointwise(
            inputs, self.packed, self.bias, "none", [], ""
        )


def device_name(device: str) -> str:
    """Return the name of a GPU, or of the CPU with its number of threads."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    if device != "cpu":
        return device
    threads = torch.get_num_threads()
    return f"{cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"


def check_engine(engine: str, dtype: str, device: str) -> None:
    """Raise UserError if the engine is unknown or not available."""
    if engine not in ENGINES:
        raise UserError(f"unknown engine {engine!r}: one of {', '.join(ENGINES)}")
    if engine == VLLM:
        check_vllm(dtype, device)


def place_model(model: SpeechLLM, device: str, engine: str) -> None:
    """Move a model to its device and prepare it for inference, in place.

    Raises:
        UserError: vLLM cannot load the LLM.
    """
    if engine == VLLM and model.llm is not None:
        model.llm = start_vllm(model.llm, device)
    model.to(device=device)
    choose_engine(model, engine)


def choose_engine(model: nn.Module, engine: str = "auto") -> None:
    """Prepare a model on its device for inference, in place.

    Args:
        model: with ``vllm``, all but its LLM.
        engine: one of ``ENGINES``.
    """
    if engine == "eager":
        return
    avoid_cudnn_attention()
    llm = model.llm if isinstance(model, SpeechLLM) else None
    if isinstance(llm, VLLMLanguageModel):
        llm = None
    if llm is not None:
        llm.step_graphs = supports_step_graphs(llm)
    is_on_cpu = next(model.parameters()).device.type == "cpu"
    if is_on_cpu and torch.backends.mkldnn.is_available():
        pack_layers(model)
        if llm is not None:
            group_attention(llm.causal_lm)


def group_attention(causal_lm: nn.Module) -> None:
    """Set :func:`grouped_attention` in an LLM of a family in ``GROUPED``."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    if causal_lm.config.model_type in GROUPED:
        AttentionInterface.register("grouped", grouped_attention)
        AttentionMaskInterface.register("grouped", eager_mask)
        causal_lm.set_attn_implementation("grouped")


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **unused,
) -> tuple[Tensor, None]:
    """Compute grouped-query attention without copying keys and values.

    The query heads of a group are treated as further positions of a single head. The
    signature is that of transformers' ``AttentionInterface``.

    Args:
        query: ``(batch, heads, new positions, dim)``.
        key, value: ``(batch, groups, positions, dim)``.
        attention_mask: ``(batch, 1, new positions, positions)``, added to the scores.
        scaling: factor of the scores.

    Returns:
        Outputs ``(batch, new positions, heads, dim)``, and None for the weights.
    """
    batch, heads, new, dim = query.shape
    grouped = (batch, key.shape[1], -1, dim)  # (batch, groups, heads * new, dim)
    scores = (query * scaling).reshape(grouped) @ key.transpose(2, 3)
    scores = scores.view(batch, heads, new, -1)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(3, dtype=torch.float32).to(value.dtype)
    outputs = weights.view(batch, key.shape[1], -1, key.shape[2]) @ value
    return outputs.view(batch, heads, new, dim).transpose(1, 2), None


def is_packable(weight: Tensor) -> bool:
    """Return whether oneDNN has kernels for the weight's precision on this CPU."""
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32


def pack_layers(module: nn.Module) -> None:
    """Pack the linear layers and 1-d convolutions of a module, in place."""
    for name, child in module.named_children():
        # not subclasses: quantised or adapted layers compute something else
        if type(child) is nn.Linear and is_packable(child.weight):
            setattr(module, name, PackedLinear(child))
        elif isinstance(child, nn.Conv1d) and (
            is_packable(child.weight)
            and child.padding_mode == "zeros"
            and isinstance(child.padding, tuple)
        ):
            child.forward = packed_convolution(child)
        elif not hasattr(child, "lora_A"):  # adapters of 4-bit layers, read by peft
            pack_layers(child)


def packed_convolution(convolution: nn.Conv1d) -> Callable[[Tensor], Tensor]:
    """Return the forward function of a convolution with its weight packed for oneDNN.

    The function maps ``(batch, in_channels, frames)`` to ``(batch, out_channels,
    frames)``; its output is channels-last in memory.

    Args:
        convolution: with numeric zero padding.
    """
    assert isinstance(convolution.padding, tuple)
    (padding,), (stride,) = convolution.padding, convolution.stride
    (dilation,), groups = convolution.dilation, convolution.groups
    shape = (0, padding), (1, stride), (1, dilation), groups
    weight = convolution.weight.detach()[:, :, None].to_mkldnn()
    packed = torch.ops.aten.mkldnn_reorder_conv2d_weight(weight, *shape)

    def forward(inputs: Tensor) -> Tensor:
        inputs = inputs[:, :, None].contiguous(memory_format=torch.channels_last)
        outputs = torch.ops.mkldnn._convolution_pointwise(
            inputs, packed, convolution.bias, *shape, "none", [], ""
        )
        return outputs[:, :, 0]

    return forward
