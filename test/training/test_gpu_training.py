"""Training on a GPU: losses as on the CPU, resuming, fine-tuning of Whisper."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_baselines
import torch
from processes import wait_until
from test_distributed import EXACT, statistics, texts  # noqa: F401

from speechllm.baselines.finetune_whisper import FinetuneOptions, finetune_whisper

pytestmark = pytest.mark.gpu
TRAINING = [sys.executable, "-m", "speechllm.bin.speechllm_train"]


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch):
    """Compute convolutions without TF32, so that results are those of the CPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def llm_options(tiny_llm: Path, tuning: str, **options) -> dict:
    return {"model": str(tiny_llm), "tuning": tuning, "dtype": "float32", **options}


@pytest.mark.parametrize("tuning", ["full", "lora", "frozen"])
def test_losses_are_those_of_the_cpu(train, texts, tmp_path, tiny_llm, tuning):  # noqa: F811
    options = {**EXACT, "data": texts, "llm_conf": llm_options(tiny_llm, tuning)}
    cpu = train(tmp_path / "cpu", **options)
    gpu = train(tmp_path / "gpu", "--ngpu", "1", **options)
    assert statistics(gpu) == pytest.approx(statistics(cpu), abs=2e-3, rel=2e-3)


@pytest.mark.parametrize(
    "precision",
    [
        {"model_conf": {"ctc_weight": 0.3, "autocast": "bfloat16"}},
        {"model_conf": {"ctc_weight": 0.3, "autocast": "float32"}, "use_amp": True},
    ],
    ids=["bfloat16", "use_amp"],
)
def test_half_precision_is_near(train, texts, tmp_path, tiny_llm, precision):  # noqa: F811
    llm = llm_options(tiny_llm, "lora", gradient_checkpointing=True)
    options = {**EXACT, "data": texts, "llm_conf": llm}
    cpu = train(tmp_path / "cpu", **options)
    gpu = train(tmp_path / "gpu", "--ngpu", "1", **{**options, **precision})
    key = (2, "train", "loss")
    assert statistics(gpu)[key] == pytest.approx(statistics(cpu)[key], rel=0.05)


def test_training_goes_on_where_a_signal_stopped_it(
    training_arguments,
    texts,  # noqa: F811
    tmp_path,
    tiny_llm,
):
    """Bit by bit, with random numbers; without CTC, whose sums on a GPU vary."""
    dropout = llm_options(tiny_llm, "lora", lora={"r": 2, "lora_dropout": 0.1})
    options = {
        "data": texts,
        "llm_conf": dropout,
        "model_conf": {"ctc_weight": 0.0, "feature_dropout": 0.5},
        "batch_type": "unsorted",
        "batch_size": 1,
        "num_iters_per_epoch": 100,
    }
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder, save_every in ((whole, "none"), (stopped, "3 steps")):
        words = training_arguments(folder, **options, save_every=save_every)
        command = [*TRAINING, *words, "--ngpu", "1"]
        if folder == stopped:
            process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            wait_until((folder / "mid_epoch.pth").exists)
            process.send_signal(signal.SIGTERM)
            message = process.communicate()[1].splitlines()[-1]
            assert "stopped by SIGTERM; saved after batch" in message
        subprocess.run(command, check=True)
    same = pytest.approx(statistics(whole), abs=0, rel=0, nan_ok=True)
    assert statistics(stopped) == same
    for name in ("1epoch.pth", "2epoch.pth"):
        pair = (torch.load(f / name, weights_only=True) for f in (whole, stopped))
        torch.testing.assert_close(*pair, atol=0, rtol=0)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_whisper_is_fine_tuned(texts, whisper_base, tmp_path, tuning):  # noqa: F811
    decoder = tiny_baselines.write_tiny_whisper_decoder(tmp_path / "base", whisper_base)
    output = tmp_path / "tuned"
    options = FinetuneOptions(tuning=tuning, epochs=8, batch_size=2, lr=0.01)
    finetune_whisper(decoder, texts, texts, output, options)
    assert (output / "model.safetensors").exists()
