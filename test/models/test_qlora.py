"""QLoRA: 4-bit weights, training, decoding, and machines without 4-bit support."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from tiny_models import write_tiny_llm
from transformers import AutoModelForCausalLM

import speechllm.training.task
from speechllm import SpeechToText
from speechllm.export.exported_model import export_model
from speechllm.models.llm import LanguageModel
from speechllm.models.quantization import quantization_obstacle
from speechllm.training.initialization import safe_checkpoints
from speechllm.training.task import paged_adamw
from speechllm.utils.errors import UserError

# Dettmers et al. 2023, appendix E
NF4 = (
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453]
    + [-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0]
    + [0.07958029955625534, 0.16093020141124725, 0.24611230194568634]
    + [0.33791524171829224, 0.44070982933044434, 0.5626170039176941]
    + [0.7229568362236023, 1.0]
)
LAYER = "model.layers.0.mlp.up_proj"
QLORA = {"tuning": "qlora", "lora": {"r": 2, "lora_dropout": 0.0}}


@pytest.fixture(scope="module")
def tiny_llm(tmp_path_factory, smollm2) -> Path:
    """Folder of a random Llama whose layer sizes are multiples of 64."""
    return write_tiny_llm(tmp_path_factory.mktemp("qlora") / "llm", smollm2, size=64)


@pytest.fixture(scope="module")
def quantized(tiny_llm) -> LanguageModel:
    return LanguageModel(str(tiny_llm), **QLORA).eval()


@pytest.fixture(scope="module")
def dequantized(tiny_llm) -> LanguageModel:
    llm = LanguageModel(str(tiny_llm), dtype="float32", decoding=True, **QLORA)
    return llm.eval()


def test_weights_are_the_levels_of_the_paper(dequantized, tiny_llm):
    """Every weight is the nearest of 16 levels times the largest of its block of 64."""
    original = AutoModelForCausalLM.from_pretrained(tiny_llm, dtype=torch.bfloat16)
    weight = original.get_submodule(LAYER).weight.float().reshape(-1, 64)
    largest = weight.abs().amax(1, keepdim=True)
    levels = torch.tensor(NF4)
    nearest = ((weight / largest)[..., None] - levels).abs().argmin(2)
    expected = levels[nearest] * largest
    found = dequantized.causal_lm.get_submodule(LAYER).get_base_layer().weight
    # double quantisation: the maximum of a block is stored in 8 bits
    error = (found.reshape(-1, 64) - expected).abs() / largest
    assert error.max() < 0.02
    assert (found.reshape(-1, 64) - weight).abs().max() > 0.05 * largest.max()


def test_layers_are_4_bit_with_adapters(quantized):
    from bitsandbytes.nn import Linear4bit

    layer = quantized.causal_lm.get_submodule(LAYER)
    assert isinstance(layer.get_base_layer(), Linear4bit)
    state = layer.get_base_layer().weight.quant_state
    assert state.quant_type == "nf4" and state.nested
    assert layer.get_base_layer().compute_dtype == torch.bfloat16
    assert quantized.dtype == torch.float32  # norms and embeddings
    trained = [n for n, p in quantized.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained)


@torch.inference_mode()
def test_dequantized_model_gives_the_same_logits(quantized, dequantized):
    tokens = torch.arange(40).reshape(2, 20)
    mask = torch.ones_like(tokens)
    outputs = [
        llm.head(llm.body(llm.embed(tokens), mask)) for llm in (quantized, dequantized)
    ]
    scale = outputs[1].std()
    assert (outputs[0] - outputs[1]).abs().mean() < 0.02 * scale  # bfloat16 products


def test_training_export_and_decoding(train, tmp_path, tiny_llm):
    exp = tmp_path / "exp"
    model = {"model": str(tiny_llm), **QLORA}
    train(exp, llm_conf=model, optim="paged_adamw", optim_conf={"lr": 1e-2})
    assert yaml.safe_load((exp / "config.yaml").read_text())["llm_conf"] == model
    state = torch.load(exp / "2epoch.pth", weights_only=True)
    assert all("lora_" in name for name in state if name.startswith("llm."))
    assert any(tensor.any() for name, tensor in state.items() if "lora_B" in name)
    export_model(exp, "2epoch.pth", tmp_path / "model")
    speech = np.random.default_rng(1).normal(size=12000).astype(np.float32) / 20
    recognizer = SpeechToText.from_pretrained(tmp_path / "model")
    weights = {p.dtype for p in recognizer.model.parameters()}
    assert weights == {torch.float32}
    (result,) = recognizer.transcribe([speech], extra_tokens=5.0)
    assert len(result.tokens) <= 8
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as stream:
        assert not [name for name in stream.keys() if "absmax" in name]


@pytest.mark.parametrize("resumed_on", ["gpu", "cpu"])
def test_resumed_optimizer_has_paged_buffers_of_its_own(
    monkeypatch, tmp_path, resumed_on
):
    """Loaded tensors carry the mark of paged memory, but are ordinary memory."""
    from bitsandbytes import functional
    from bitsandbytes.optim.optimizer import Optimizer8bit

    buffers = []

    def paged_buffer(self, parameter, dtype=torch.float32):
        buffer = torch.zeros_like(parameter, dtype=dtype)
        buffer.is_paged, buffer.page_deviceid = True, 0
        buffers.append(buffer)
        return buffer

    def prefetch(tensor):  # on a GPU this ends the process if the memory is ordinary
        assert any(tensor is buffer for buffer in buffers)

    def step(optimizer, parameter):
        parameter.grad = torch.full_like(parameter, 0.1)
        optimizer.step()

    weights = [torch.nn.Parameter(torch.ones(400, 400)) for _ in range(2)]
    whole, resumed = (paged_adamw([parameter]) for parameter in weights)
    with monkeypatch.context() as gpu, safe_checkpoints():
        gpu.setattr(Optimizer8bit, "get_state_buffer", paged_buffer)
        gpu.setattr(functional, "prefetch_tensor", prefetch)
        step(whole, weights[0])
        torch.save(whole.state_dict(), tmp_path / "optimizer.pth")
        state = torch.load(tmp_path / "optimizer.pth", map_location="cpu")
        weights[1].data.copy_(weights[0])
        step(whole, weights[0])
        buffers.clear()
        if resumed_on == "gpu":
            resumed.load_state_dict(state)
            step(resumed, weights[1])
            assert len(buffers) == 2
    if resumed_on == "cpu":
        resumed.load_state_dict(state)
        step(resumed, weights[1])
    assert torch.equal(*weights)


@pytest.mark.gpu
@pytest.mark.parametrize("place", ["cuda", "cpu"])  # checkpoint.pth and mid_epoch.pth
def test_paged_optimizer_resumes_on_a_gpu(tmp_path, place):
    weights = [torch.nn.Parameter(torch.ones(400, 400).cuda()) for _ in range(2)]
    optimizers = [paged_adamw([parameter]) for parameter in weights]
    for parameter in weights:
        parameter.grad = torch.full_like(parameter, 0.1)
    optimizers[0].step()
    with safe_checkpoints():
        torch.save(optimizers[0].state_dict(), tmp_path / "optimizer.pth")
        state = torch.load(tmp_path / "optimizer.pth", map_location=place)
    weights[1].data.copy_(weights[0])
    optimizers[1].load_state_dict(state)
    for optimizer in optimizers:
        optimizer.step()
    found = optimizers[1].state[weights[1]]
    assert found["state1"].is_paged and found["state2"].is_paged
    assert torch.equal(*weights)


def test_fallback_to_lora_without_4_bit_weights(
    train, tmp_path, monkeypatch, caplog, tiny_llm
):
    reason = "qlora: bitsandbytes has no 4-bit weights on this cpu: none"
    monkeypatch.setattr(
        speechllm.training.task, "quantization_obstacle", lambda: reason
    )
    exp = tmp_path / "exp"
    with caplog.at_level(logging.WARNING):
        train(exp, llm_conf={"model": str(tiny_llm), **QLORA}, max_epoch=1)
    assert f"{reason}; LoRA on whole weights instead" in caplog.text
    config = yaml.safe_load((exp / "config.yaml").read_text())
    assert config["llm_conf"]["tuning"] == "lora"  # used in decoding


def test_missing_bitsandbytes(monkeypatch, tiny_llm):
    for name in [n for n in sys.modules if n.split(".")[0] == "bitsandbytes"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert "pip install 'speechllm[qlora]'" in quantization_obstacle()
    with pytest.raises(ValueError, match="needs bitsandbytes"):
        LanguageModel(str(tiny_llm), tuning="qlora")
    with pytest.raises(UserError, match="adamw is the same without paging"):
        paged_adamw([torch.nn.Parameter(torch.ones(1))])


def test_unsupported_gpu(monkeypatch):
    from bitsandbytes import functional

    def refuse(*_, **__):
        raise NotImplementedError("no kernel image\nfor this device")

    monkeypatch.setattr(functional, "quantize_4bit", refuse)
    assert quantization_obstacle().endswith("on this cpu: no kernel image")


def test_layer_sizes_that_bitsandbytes_misreads(tmp_path, smollm2):
    narrow = write_tiny_llm(tmp_path / "llm", smollm2, size=32)
    with pytest.raises(ValueError, match="multiple of 64 inputs; .*q_proj has 32"):
        LanguageModel(str(narrow), tuning="qlora")


def test_random_init_cannot_be_quantized(tiny_llm):
    with pytest.raises(ValueError, match="pretrained weights"):
        LanguageModel(str(tiny_llm), tuning="qlora", random_init=True)


def test_frozen_weights_keep_their_precision(tiny_llm):
    """ESPnet's trainer casts the model to float32 before training."""
    llm = LanguageModel(str(tiny_llm), tuning="lora", dtype="bfloat16")
    llm.to(dtype=torch.float32, device="cpu")
    for name, parameter in llm.named_parameters():
        expected = torch.float32 if "lora_" in name else torch.bfloat16
        assert parameter.dtype == expected, name


def test_gated_model(monkeypatch):
    """The message names the remedy."""
    from huggingface_hub.errors import GatedRepoError

    from speechllm.pretrained import hub

    def refuse(*_, **__):
        raise GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_list_files", lambda *_: ["model.safetensors"])
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    folder, reason = hub.download("google/gemma-2-9b-it")
    assert folder is None
    assert "https://huggingface.co/google/gemma-2-9b-it" in reason
    assert "hf auth login" in reason and "HF_TOKEN" in reason
