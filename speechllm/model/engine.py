"""How a trained model's products are computed: what is fastest on this machine.

On a CPU PyTorch multiplies float32 matrices by MKL, which keeps its wide vectors for
Intel's processors; oneDNN, which comes with PyTorch too, uses them on all, and with
weights that lie as its kernels read them a few rows cost little more than one. So
linear layers are packed for oneDNN: on an AMD Zen 5 core twice as fast with 128 rows,
2.4 times with 16 and 1.5 times with one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechllm.errors import UserError
from speechllm.model.speech_llm import SpeechLLM

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
        pack_linear_layers(model)


def pack_linear_layers(module: nn.Module) -> None:
    """Put :class:`PackedLinear` in the place of each linear layer in float32."""
    for name, child in module.named_children():
        # subclasses (quantised, adapted) compute something else
        if type(child) is nn.Linear and child.weight.dtype == torch.float32:
            setattr(module, name, PackedLinear(child))
        else:
            pack_linear_layers(child)


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
