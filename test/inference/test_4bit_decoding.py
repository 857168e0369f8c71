"""Decoding with the LLM's weights in 4 bits (``dtype="4bit"``), on a CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny_models import write_tiny_llm, write_tiny_model
from torch import nn

from speechllm import SpeechToText
from speechllm.benchmarks import random_models
from speechllm.benchmarks.gpu_parts import logits_of
from speechllm.inference import loading
from speechllm.models import llm as llm_module
from speechllm.models.quantization import quantization_obstacle, quantize_layers
from speechllm.models.speech_llm import build_speech_llm
from speechllm.utils.errors import UserError

LAYER = "model.layers.0.mlp.up_proj"
TOKENS = torch.arange(7, 47).reshape(2, 20)


@pytest.fixture(scope="module", autouse=True)
def _bitsandbytes():
    if obstacle := quantization_obstacle():
        pytest.skip(obstacle)


@pytest.fixture(scope="module")
def wide_llm(tmp_path_factory, smollm2) -> Path:
    """Folder of a random Llama whose layer sizes are multiples of 64."""
    return write_tiny_llm(tmp_path_factory.mktemp("4bit") / "llm", smollm2, size=64)


def trained_model(folder: Path, tuning: str, steps: int = 0, **llm_conf):
    """Train a tiny model on noise; return it, its folder and the waveforms."""
    folder.mkdir()
    config = random_models.training_config(folder, "tiny", tuning)
    config["llm_conf"] |= llm_conf
    torch.manual_seed(1)
    model = build_speech_llm({**config, "token_list": None}).train()
    for name, weight in model.llm.named_parameters():
        if "lora_B" in name:  # zero before training
            nn.init.normal_(weight, std=0.05)
    batch = random_models.random_batch(model, 3, seconds=2.0)
    if steps:
        losses = random_models.train_steps(model, batch, steps, lr=1e-2)
        assert losses[-1] < 0.1, losses[-1]
    exported = random_models.export(model, config, folder / "model")
    return model.eval(), exported, [wave.numpy() for wave in batch["speech"]]


def layers(model: SpeechToText) -> dict[str, nn.Module]:
    """Return the linear layers of the LLM, without those of adapters."""
    return {
        name: layer
        for name, layer in model.llm.causal_lm.named_modules()
        if hasattr(layer, "in_features") and "lora_" not in name
    }


def test_a_pinned_llm_is_that_of_the_commit(tmp_path, smollm2, monkeypatch):
    """Also where the hub's cache has no other commit, and there is no hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = write_tiny_model(tmp_path / "model", smollm2, size=64)
    snapshot = tmp_path / "hub/models--some--llm/snapshots" / ("1" * 40)
    snapshot.parent.mkdir(parents=True)
    (folder / "llm").rename(snapshot)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["llm_conf"]["model"] = "some/llm"
    config["revisions"] = {"some/llm": snapshot.name}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    model = SpeechToText.from_pretrained(folder, dtype="4bit")
    assert not model.llm.causal_lm.get_submodule(LAYER).weight.is_floating_point()


def test_a_qlora_model_has_the_weights_and_logits_of_its_training(tmp_path, wide_llm):
    from bitsandbytes.nn import Linear4bit

    trained, exported, waves = trained_model(
        tmp_path / "exp", "qlora", steps=80, model=str(wide_llm)
    )
    model = SpeechToText.from_pretrained(exported, dtype="4bit")
    layer = model.llm.causal_lm.get_submodule(LAYER)
    before = trained.llm.causal_lm.get_submodule(LAYER)
    assert isinstance(layer.get_base_layer(), Linear4bit)
    assert torch.equal(layer.get_base_layer().weight, before.get_base_layer().weight)
    expected = logits_of(trained.llm, TOKENS)
    found = logits_of(model.llm, TOKENS)
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.std()))
    options = {"beam_size": 2, "min_tokens": 1}
    texts = [result.text for result in model.transcribe(waves, **options)]
    for dtype in ("float32", "bfloat16"):
        whole = SpeechToText.from_pretrained(exported, dtype=dtype)
        assert texts == [r.text for r in whole.transcribe(waves, **options)]
    assert len(set(texts)) == 3 and all(len(text.split()) > 4 for text in texts)


def test_four_bits_a_weight_and_nothing_in_float32(tmp_path, monkeypatch):
    """As on a GPU: all that is not quantised is in bfloat16, the adapters too."""
    trained, exported, _ = trained_model(tmp_path / "exp", "qlora")
    for module in (llm_module, loading):
        monkeypatch.setattr(module, "resolve_dtype", lambda name: torch.bfloat16)
    from peft import utils

    monkeypatch.delattr(utils.other, "prepare_model_for_kbit_training")  # of training
    model, _, _ = loading.load_model(exported, "4bit")
    kinds = {p.dtype for p in model.parameters()}
    assert kinds == {torch.bfloat16, torch.uint8}
    small = [p for p in model.llm.parameters() if p.dtype == torch.uint8]
    numbers = size = 0
    for weight in small:
        state = weight.quant_state
        numbers += state.shape.numel()
        # one 8-bit scale for 64 weights, one in float32 for 256 of these
        size += weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    assert numbers == 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128)
    assert 0.5 < size / numbers < 0.52
    expected = logits_of(trained.llm, TOKENS)
    error = logits_of(model.llm, TOKENS) - expected
    assert error.abs().mean() < 0.02 * expected.std()  # bfloat16


@pytest.mark.parametrize(
    ("tuning", "conf"),
    [("lora", {}), ("frozen", {}), ("full", {}), ("full", {"random_init": True})],
)
def test_other_tunings_are_quantised_when_loaded(tmp_path, tuning, conf):
    """The weights are the nearest of the 16 levels, as of bitsandbytes itself."""
    from bitsandbytes import functional

    trained, exported, waves = trained_model(tmp_path / "exp", tuning, **conf)
    model = SpeechToText.from_pretrained(exported, dtype="4bit")
    quantised = {
        name: layer.weight
        for name, layer in layers(model).items()
        if not layer.weight.is_floating_point()
    }
    assert {n.removesuffix(".base_layer") for n in quantised} == {
        f"model.layers.{i}.{part}_proj"
        for i in range(2)
        for part in (
            *(f"self_attn.{x}" for x in "qkvo"),
            *(f"mlp.{x}" for x in ("gate", "up", "down")),
        )
    }
    for name, weight in quantised.items():
        layer = trained.llm.causal_lm.get_submodule(name.removesuffix(".base_layer"))
        if tuning == "lora":
            layer = layer.get_base_layer()
        expected, state = functional.quantize_4bit(
            layer.weight.detach().bfloat16(),
            quant_type="nf4",
            compress_statistics=True,
        )
        assert torch.equal(
            functional.dequantize_4bit(weight, weight.quant_state),
            functional.dequantize_4bit(expected, state),
        )
    options = {"min_tokens": 4, "tokens_per_second": 0.0, "extra_tokens": 4.0}
    results = model.transcribe(waves, **options)
    assert [len(result.tokens) for result in results] == [4, 4, 4]


def test_layers_of_nue_asr(nue_reference):
    """Its GPT-NeoX is not read by transformers, and quantised after it is loaded."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    with pytest.raises(UserError, match=f"{nue_reference.folder}: 4-bit .* 64 inputs"):
        SpeechToText.from_pretrained(nue_reference.folder, dtype="4bit")
    torch.manual_seed(1)
    sizes = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}
    config = GPTNeoXConfig(vocab_size=90, num_hidden_layers=2, **sizes)
    causal_lm = GPTNeoXForCausalLM(config).bfloat16().eval()
    with torch.inference_mode():
        expected = causal_lm(TOKENS).logits.float()
        quantize_layers(causal_lm)
        found = causal_lm(TOKENS).logits.float()
    assert causal_lm.gpt_neox.layers[1].mlp.dense_4h_to_h.weight.dtype == torch.uint8
    assert causal_lm.get_output_embeddings().weight.dtype == torch.bfloat16  # the head
    error = float((found - expected).abs().mean() / expected.std())
    assert 0.01 < error < 0.2  # 4 bits


def test_refusals_are_one_line(tmp_path, tiny_model, monkeypatch, smollm2):
    with pytest.raises(UserError, match="multiple of 64 inputs") as caught:
        SpeechToText.from_pretrained(tiny_model, dtype="4bit")
    assert str(caught.value).startswith(f"{tiny_model}: ")
    with pytest.raises(UserError, match="dtype.*4bit"):
        SpeechToText.from_pretrained(tiny_model, config={"dtype": "3bit"})
    for name in [n for n in sys.modules if n.split(".")[0] == "bitsandbytes"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    missing = "dtype 4bit needs bitsandbytes: pip install 'speechllm[qlora]'"
    with pytest.raises(UserError) as caught:
        SpeechToText.from_pretrained(tiny_model, dtype="4bit")
    assert str(caught.value) == missing
