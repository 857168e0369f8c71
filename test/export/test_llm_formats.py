"""Exports of the trained LLM: loaded by PEFT and by transformers, logits compared."""

from __future__ import annotations

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_models import LABELS

from speechllm.bin.export_model import main
from speechllm.inference.loading import load_exported
from speechllm.utils.errors import UserError

TOKENS = torch.tensor([[3, 7, 1, 9, 4]])


@pytest.fixture
def training(tiny_model, tmp_path):
    """Folder of a training whose adapters differ from zero."""
    folder = tmp_path / "exp"
    folder.mkdir()
    config = yaml.safe_load((tiny_model / "config.yaml").read_text())
    config.update(ctc_token_list=LABELS, prompts=str(tiny_model / "prompts.yaml"))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    state = load_file(tiny_model / "model.safetensors")
    torch.manual_seed(7)
    for name, value in state.items():
        if "lora_B" in name:
            state[name] = torch.randn_like(value) * 0.3
    torch.save(state, folder / "best.pth")
    return folder


def export(training, *options, name: str = "out") -> None:
    main(
        ["--exp_dir", str(training), "--checkpoint", "best.pth"]
        + ["--output", str(training / name), *options]
    )


@torch.no_grad()
def expected_logits(training) -> torch.Tensor:
    """Return the logits of our own model, as it decodes."""
    export(training)
    model, *_ = load_exported(training / "out", "float32")
    return model.llm.causal_lm.eval()(TOKENS).logits


@torch.no_grad()
def test_peft_loads_the_adapters_on_the_base_llm(training):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    expected = expected_logits(training)
    config = yaml.safe_load((training / "config.yaml").read_text())
    base = AutoModelForCausalLM.from_pretrained(config["llm_conf"]["model"])
    before = base.eval()(TOKENS).logits
    model = PeftModel.from_pretrained(base, training / "out" / "peft_adapter").eval()
    torch.testing.assert_close(model(TOKENS).logits, expected, atol=1e-4, rtol=1e-4)
    assert (before - expected).abs().max() > 0.1
    base_model = model.peft_config["default"].base_model_name_or_path
    assert base_model == config["llm_conf"]["model"]


@torch.no_grad()
def test_transformers_loads_the_merged_llm(training):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    expected = expected_logits(training)
    export(training, "--merged", name="merged")
    folder = training / "merged"
    assert not (folder / "model.safetensors.index.json").exists()
    names = load_file(folder / "model.safetensors")
    assert not [name for name in names if "lora" in name or "base_layer" in name]
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, trust_remote_code=False
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.use_cache
    logits = model.eval()(TOKENS).logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    config = yaml.safe_load((training / "config.yaml").read_text())
    original = AutoTokenizer.from_pretrained(config["llm_conf"]["model"])
    assert (
        AutoTokenizer.from_pretrained(folder)("a b")["input_ids"]
        == (original("a b")["input_ids"])
    )


def test_a_model_without_llm_has_nothing_to_merge(training):
    config = yaml.safe_load((training / "config.yaml").read_text())
    (training / "config.yaml").write_text(yaml.safe_dump(config | {"llm": None}))
    with pytest.raises(UserError, match="--merged: this model has no LLM"):
        export(training, "--merged")
    assert not (training / "out").exists()
