"""Exports of the trained LLM: loaded by PEFT and by transformers, logits compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_models import LABELS, write_tiny_model

from speechllm.bin.export_model import main
from speechllm.inference.loading import load_exported
from speechllm.utils.errors import UserError

TOKENS = torch.tensor([[3, 7, 1, 9, 4]])


@pytest.fixture
def training(tiny_model, tmp_path):
    """Folder of a training whose adapters differ from zero."""
    return write_training(tiny_model, tmp_path)


def write_training(tiny_model: Path, tmp_path: Path) -> Path:
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


PLAIN = """
import json, os, sys
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
import torch
from transformers import AutoModelForCausalLM
from vllm import LLM, SamplingParams
folder, prompt, cpu = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3] == "cpu"
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
inputs = torch.tensor([prompt])
greedy = model.generate(
    inputs, attention_mask=inputs * 0 + 1, max_new_tokens=20, do_sample=False
)[0, len(prompt):].tolist()
memory = {"kv_cache_memory_bytes": 1 << 28} if cpu else {"gpu_memory_utilization": 0.3}
llm = LLM(folder, dtype="float32", max_model_len=256, enforce_eager=True, **memory)
options = SamplingParams(temperature=0, max_tokens=20, prompt_logprobs=0)
[output] = llm.generate([{"prompt_token_ids": prompt}], options)
scores = [e[t].logprob for e, t in zip(output.prompt_logprobs[1:], prompt[1:])]
assert not [name for name in sys.modules if name.startswith("speechllm")]
print(json.dumps([greedy, list(output.outputs[0].token_ids), scores]))
"""


@pytest.mark.vllm
@torch.no_grad()
def test_plain_vllm_and_transformers_load_the_merged_llm(tmp_path, smollm2):
    """In a process without this package."""
    # vLLM has no kernel for the heads of the smaller one on a CPU
    model = write_tiny_model(tmp_path / "model", smollm2, size=128)
    training = write_training(model, tmp_path)
    logits = expected_logits(training)[0]
    export(training, "--merged", name="merged")
    prompt = TOKENS[0].tolist()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    words = [str(training / "merged"), json.dumps(prompt), device]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, *words],
        capture_output=True,
        text=True,
        env=environment,
        cwd=training,
    )
    assert done.returncode == 0, done.stderr
    by_transformers, by_vllm, scores = json.loads(done.stdout.splitlines()[-1])
    assert by_vllm == by_transformers
    assert by_vllm[0] == logits[-1].argmax()
    expected = logits.log_softmax(1)[range(len(prompt) - 1), prompt[1:]]
    assert scores == pytest.approx(expected.tolist(), abs=1e-3)


def test_a_model_without_llm_has_nothing_to_merge(training):
    config = yaml.safe_load((training / "config.yaml").read_text())
    (training / "config.yaml").write_text(yaml.safe_dump(config | {"llm": None}))
    with pytest.raises(UserError, match="--merged: this model has no LLM"):
        export(training, "--merged")
    assert not (training / "out").exists()
