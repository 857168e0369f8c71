"""Inference backends: same results as PyTorch's own layers, errors if unavailable.

Packed layers are compared with products and convolutions in float64, attention with
PyTorch's. Memory is measured in a process of its own.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from speechllm.inference.backends import (
    PackedLinear,
    choose_engine,
    grouped_attention,
    pack_layers,
)
from speechllm.inference.speech_to_text import SpeechToText
from speechllm.utils.errors import UserError

BFLOAT16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 70),
    inputs=st.integers(1, 65),
    outputs=st.integers(1, 65),
    bias=st.booleans(),
    strided=st.booleans(),
)
def test_packed_linear_equals_float64_product(rows, inputs, outputs, bias, strided):
    torch.manual_seed(rows)
    linear = nn.Linear(inputs, outputs, bias=bias)
    packed = PackedLinear(linear)
    values = torch.randn(2, rows, 2 * inputs)
    values = values[..., ::2] if strided else values[..., :inputs].contiguous()
    expected = values.double() @ linear.weight.double().T
    if bias:
        expected += linear.bias.double()
    with torch.inference_mode():
        assert torch.allclose(packed(values).double(), expected, atol=1e-4)
    assert torch.equal(packed.weight, linear.weight)
    saved, state = packed.state_dict(), linear.state_dict()
    assert saved.keys() == state.keys()
    assert all(torch.equal(saved[name], state[name]) for name in state)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    frames=st.integers(16, 90),
    kernel=st.integers(1, 16),
    stride=st.integers(1, 4),
    padding=st.integers(0, 8),
    groups=st.sampled_from([1, 2, 4]),
    normalised=st.booleans(),
)
def test_packed_convolution_equals_float64_convolution(
    frames, kernel, stride, padding, groups, normalised
):
    torch.manual_seed(frames)
    convolution = nn.Conv1d(8, 12, kernel, stride, padding, groups=groups)
    if normalised:
        nn.utils.parametrizations.weight_norm(convolution, dim=2)
    model = nn.Sequential(convolution)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    values = torch.randn(2, 8, frames)
    expected = nn.functional.conv1d(
        values.double(),
        convolution.weight.double(),
        convolution.bias.double(),
        stride,
        padding,
        groups=groups,
    )
    pack_layers(model)
    with torch.inference_mode():
        found = model(values)
        assert torch.allclose(found.double(), expected, atol=1e-4)
        channels_last = values.transpose(1, 2).contiguous().transpose(1, 2)
        assert torch.allclose(model(channels_last), found, atol=1e-5)
    assert found.transpose(1, 2).is_contiguous()
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)


@pytest.mark.skipif(not BFLOAT16, reason="oneDNN has no bfloat16 on this processor")
def test_packed_bfloat16_layers_equal_float64_layers():
    """Weights and inputs are rounded to bfloat16, and so is the result."""
    torch.manual_seed(0)
    linear = nn.Linear(48, 70).bfloat16()
    convolution = nn.Conv1d(8, 12, 3, 2, 1, groups=4).bfloat16()
    for layer, values in (
        (linear, torch.randn(2, 9, 48)),
        (convolution, torch.randn(2, 8, 50)),
    ):
        values = values.bfloat16()
        expected = copy.deepcopy(layer).double()(values.double())
        model = nn.Sequential(layer)
        pack_layers(model)
        with torch.inference_mode():
            found = model(values)
        assert found.dtype == torch.bfloat16
        assert torch.allclose(found.double(), expected, rtol=2**-7, atol=2**-8)
    assert torch.equal(PackedLinear(linear).weight, linear.weight)


def test_unsupported_layers_are_not_packed():
    layers = [nn.Conv1d(4, 4, 3, padding="same"), nn.Conv1d(4, 4, 3).half()]
    layers.append(nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular"))
    model = nn.Sequential(*layers)
    pack_layers(model)
    assert not any("forward" in vars(layer) for layer in layers)


@pytest.mark.parametrize(("engine", "enabled"), [("auto", False), ("eager", True)])
def test_auto_excludes_cudnn_from_attention(engine, enabled):
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        choose_engine(nn.Linear(2, 2), engine)
        assert torch.backends.cuda.cudnn_sdp_enabled() == enabled
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_auto_gives_the_same_tokens_as_eager(tiny_model):
    waves = [
        (
            0.1 * torch.randn(4000 * n, generator=torch.Generator().manual_seed(n))
        ).numpy()
        for n in range(1, 5)
    ]
    models = {
        engine: SpeechToText.from_pretrained(tiny_model, engine=engine)
        for engine in ("eager", "auto")
    }
    packed = [isinstance(m, PackedLinear) for m in models["auto"].model.modules()]
    assert sum(packed) > 20
    llms = {name: m.model.llm.causal_lm for name, m in models.items()}
    assert type(llms["eager"].lm_head) is nn.Linear
    assert llms["auto"].config._attn_implementation == "grouped"
    found = {name: m.transcribe(waves) for name, m in models.items()}
    for auto, eager in zip(found["auto"], found["eager"]):
        assert auto.tokens == eager.tokens
        assert auto.score == pytest.approx(eager.score, abs=1e-3)


@pytest.mark.parametrize("new", [1, 5])
@pytest.mark.parametrize(("heads", "groups"), [(4, 2), (6, 1), (3, 3)])
def test_grouped_attention_equals_pytorch(new, heads, groups):
    """Compare with PyTorch's attention, the keys of a group repeated for each head."""
    generator = torch.Generator().manual_seed(heads)
    query = torch.randn(2, new, heads, 8, generator=generator).transpose(1, 2)
    key, value = torch.randn(2, 2, groups, 7, 8, generator=generator)
    mask = torch.zeros(2, 1, new, 7)
    mask[1, :, :, :3] = -torch.inf
    found, _ = grouped_attention(None, query, key, value, mask, 0.3, dropout=0.0)
    expected = nn.functional.scaled_dot_product_attention(
        query,
        key.repeat_interleave(heads // groups, 1),
        value.repeat_interleave(heads // groups, 1),
        attn_mask=mask,
        scale=0.3,
    )
    assert torch.allclose(found, expected.transpose(1, 2), atol=1e-5)


@pytest.mark.parametrize("supported", [True, False])
def test_layers_in_supported_precisions_are_packed(monkeypatch, supported):
    """A processor without bfloat16 computes it in unpacked layers, slowly."""
    if supported and not BFLOAT16:
        pytest.skip("oneDNN has no bfloat16 on this processor")
    supports = "torch.ops.mkldnn._is_mkldnn_bf16_supported"
    monkeypatch.setattr(supports, lambda: supported)
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    model = nn.Sequential(*(nn.Linear(4, 4).to(dtype) for dtype in dtypes))
    choose_engine(model, "auto")
    packed = [type(layer) is PackedLinear for layer in model]
    assert packed == [True, supported, False]


def test_unavailable_engines_are_an_error(tiny_model, monkeypatch):
    with pytest.raises(UserError, match="engine 'fast': one of auto, eager"):
        SpeechToText.from_pretrained(tiny_model, engine="fast")


WINDOWS_OF_MANY_LENGTHS = """
import sys
from pathlib import Path
import numpy as np
from speechllm import SpeechToText

def resident():  # MiB
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024

model = SpeechToText.from_pretrained(sys.argv[1])
noise = np.random.default_rng(0).normal(size=64000).astype(np.float32) / 20
for number in range(1, 91):  # 0.5 to 2.3 s, each one frame of 20 ms longer
    window = noise[: 8000 + 320 * number]
    model.transcribe([window], tokens_per_second=0.1, extra_tokens=1)
    if number == 40:
        before = resident()
print(resident() - before)
"""


def growth(model, capacity: str | None) -> float:
    """Return the growth of memory in MiB over 50 windows of different lengths.

    Args:
        capacity: of the caches of kernels; None: as the package sets it.
    """
    names = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    environment = {k: v for k, v in os.environ.items() if k not in names}
    environment["OMP_NUM_THREADS"] = "1"
    if capacity is not None:
        environment |= dict.fromkeys(names, capacity)
    done = subprocess.run(
        [sys.executable, "-c", WINDOWS_OF_MANY_LENGTHS, str(model)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])


def test_memory_does_not_grow_with_windows_of_different_lengths(tiny_model):
    default, unlimited = growth(tiny_model, None), growth(tiny_model, "1024")
    assert default < 15
    assert unlimited > 60  # values of the user are kept
