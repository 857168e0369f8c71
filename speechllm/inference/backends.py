"""How a trained model's products are computed: what is fastest on this machine.

On a CPU PyTorch multiplies float32 matrices by MKL, which keeps its wide vectors for
Intel's processors; oneDNN, which comes with PyTorch too, uses them on all, and with
weights that lie as its kernels read them a few rows cost little more than one. So
linear layers are packed for oneDNN: on an AMD Zen 5 core twice as fast with 128 rows,
2.4 times with 16 and 1.5 times with one. Convolutions are packed too, and read and
write frames as they lie, channels together: twice as fast over positions, in HuBERT,
and a quarter faster over the waveform. And where several query heads share their
keys, attention leaves these where they are, instead of copying them for each head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from speechllm.models.speech_llm import SpeechLLM
from speechllm.utils.errors import UserError

# families whose attention is the plain one, with query heads in groups
GROUPED = ("llama", "mistral", "qwen2", "qwen3")

ENGINES = {
    "auto": "oneDNN's packed weights on a CPU in float32, else as eager",
    "eager": "PyTorch and transformers as they are",
    "deepspeed": "the LLM in DeepSpeed-Inference, on an NVIDIA GPU",
}


class PackedLinear(nn.Module):
    """A linear layer for inference, its weight packed for oneDNN."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())

    @property
    def weight(self) -> Tensor:
        """The weight as it was (out_features, in_features)."""
        return self.packed.to_dense()

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.weight

    def forward(self, inputs: Tensor) -> Tensor:
        """(…, in_features) to (…, out_features)."""
        return torch.ops.mkldnn._linear_pointwise(
            inputs, self.packed, self.bias, "none", [], ""
        )


def choose_engine(model: SpeechLLM, engine: str = "auto") -> None:
    """Prepare a model, which lies on its device already, for inference.

    Args:
        engine: one of ``ENGINES``.

    Raises:
        UserError: an unknown engine, or one that this machine has not got.
    """
    if engine not in ENGINES:
        raise UserError(f"engine {engine!r}: one of {', '.join(ENGINES)}")
    parameter = next(model.parameters())
    if engine == "deepspeed":
        use_deepspeed(model)
    elif (
        engine == "auto"
        and parameter.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
    ):
        pack_layers(model)
        if getattr(model, "llm", None) is not None:
            group_attention(model.llm.causal_lm)


def group_attention(causal_lm: nn.Module) -> None:
    """Let an LLM of the families in ``GROUPED`` attend by :func:`grouped_attention`."""
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
    """Attention in which the query heads of a group are further queries of one head.

    Args:
        query: (batch, heads, new positions, dim)
        key, value: (batch, groups, positions, dim)
        attention_mask: (batch, 1, new positions, positions), added to the scores.

    Returns:
        (batch, new positions, heads, dim)
    """
    batch, heads, new, dim = query.shape
    grouped = (batch, key.shape[1], -1, dim)  # heads of a group one behind the other
    scores = (query * scaling).reshape(grouped) @ key.transpose(2, 3)
    scores = scores.view(batch, heads, new, -1)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(3, dtype=torch.float32).to(value.dtype)
    heard = weights.view(batch, key.shape[1], -1, key.shape[2]) @ value
    return heard.view(batch, heads, new, dim).transpose(1, 2), None


def pack_layers(module: nn.Module) -> None:
    """Pack each linear layer and convolution over time that is in float32."""
    for name, child in module.named_children():
        # subclasses (quantised, adapted) compute something else
        if type(child) is nn.Linear and child.weight.dtype == torch.float32:
            setattr(module, name, PackedLinear(child))
        elif isinstance(child, nn.Conv1d) and (
            (child.weight.dtype, child.padding_mode) == (torch.float32, "zeros")
            and isinstance(child.padding, tuple)
        ):
            child.forward = packed_convolution(child)
        else:
            pack_layers(child)


def packed_convolution(convolution: nn.Conv1d) -> Callable[[Tensor], Tensor]:
    """A convolution's forward pass, with a copy of its weight packed for oneDNN.

    It maps (batch, channels, frames) to the same, where the channels of a frame lie
    together in memory.
    """
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


def use_deepspeed(model: SpeechLLM) -> None:
    """Let DeepSpeed-Inference run the LLM.

    Its injected kernels keep keys and values in a place of their own, where rows
    cannot come and go as the search has it: they stay out. Not tried on a GPU yet.
    """
    if next(model.parameters()).device.type != "cuda":
        raise UserError("engine deepspeed needs an NVIDIA GPU: device cuda")
    try:
        import deepspeed
    except ImportError:
        raise UserError(
            "engine deepspeed: the package is not there; pip install deepspeed"
        ) from None
    engine = deepspeed.init_inference(
        model.llm.causal_lm, dtype=model.llm.dtype, replace_with_kernel_inject=False
    )
    model.llm.causal_lm = engine.module
