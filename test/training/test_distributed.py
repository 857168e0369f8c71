"""Trainings in two processes: the same loss as in one, kills, too small batches."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speechllm.training.mid_epoch import rank_seed
from speechllm.utils.errors import UserError

TEXTS = ["I.", "You and me.", "No.", "A long text of many words.", "Oh.", "Yes.", "We."]
EXACT = {  # no random numbers, which differ between one process and two
    "model_conf": {"ctc_weight": 0.3, "autocast": "float32"},
    "batch_size": 3,
    "accum_grad": 2,
}


@pytest.fixture(scope="module")
def texts(examples, tmp_path_factory) -> Path:
    """Example dir whose texts differ in length, in tokens and per second of speech."""
    folder = tmp_path_factory.mktemp("texts")
    noise = np.random.default_rng(1)
    tables: dict[str, list[str]] = {}
    for number, text in enumerate(TEXTS):
        samples = 8000 + 1500 * number
        path = folder / f"u{number}.wav"
        soundfile.write(path, noise.normal(size=samples) / 20, 16000)
        label = text.lower().replace(".", "")
        if number % 2:  # as of a translation, which has no fixed relation to the labels
            text = f"{text} {text}"
        for table, value in (
            ("wav.scp", path),
            ("text", text),
            ("text_ctc", label),
            ("utt2task", "asr en en"),
            ("utt2num_samples", samples),
        ):
            tables.setdefault(table, []).append(f"u{number} {value}\n")
    for table, lines in tables.items():
        (folder / table).write_text("".join(lines))
    return folder


def statistics(folder: Path) -> dict[tuple, float]:
    """Return the averages of each epoch, without times."""
    stats = torch.load(folder / "checkpoint.pth", weights_only=False)["reporter"]
    return {
        (epoch, phase, name): value
        for epoch, phases in stats["stats"].items()
        for phase, values in phases.items()
        for name, value in values.items()
        if not re.search("time|total_count|mem", name)
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tuning", "trainable_layers"), [("lora", 0), ("full", 1), ("frozen", 0)]
)
def test_two_processes_train_as_one(
    train, texts, tmp_path, tiny_whisper, tiny_llm, tuning, trainable_layers
):
    """Also the statistics of the validation, by which the best epoch is chosen."""
    options = {
        **EXACT,
        "data": texts,
        "encoder_conf": {
            "model": str(tiny_whisper),
            "trainable_layers": trainable_layers,
        },
        "llm_conf": {"model": str(tiny_llm), "tuning": tuning, "dtype": "float32"},
    }
    one = train(tmp_path / "one", **options)
    two = train(tmp_path / "two", "--num_processes", "2", **options)
    expected, found = statistics(one), statistics(two)
    assert {"loss", "loss_ctc", "wer", "cer_ctc"} <= {key[2] for key in expected}
    assert found == pytest.approx(expected, abs=1e-4, rel=1e-4)
    assert sorted(p.name for p in two.iterdir()) == sorted(
        p.name for p in one.iterdir()
    )
    first, second = (
        torch.load(f / "2epoch.pth", weights_only=True) for f in (one, two)
    )
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(second[name], first[name], atol=1e-4, rtol=1e-3)


def record_masks(folder: Path, monkeypatch) -> None:
    """Write the dropout masks and the weights after each step of both processes."""
    masks: list[torch.Tensor] = []
    weights: list[torch.Tensor] = []
    dropout, step = torch.nn.functional.dropout, torch.optim.AdamW.step

    def record_dropout(input, p=0.5, training=True, inplace=False):
        output = dropout(input, p, training, inplace)
        if training and p > 0:
            masks.append(output.detach().flatten()[:256] != 0)
        return output

    def record_step(self, *args, **options):
        result = step(self, *args, **options)
        parameters = self.param_groups[0]["params"]
        weights.append(torch.cat([p.detach().flatten() for p in parameters]))
        seed = torch.initial_seed()
        content = {"masks": masks, "weights": weights, "seed": seed}
        torch.save(content, folder / f"{torch.distributed.get_rank()}.pt")
        return result

    monkeypatch.setattr(torch.nn.functional, "dropout", record_dropout)
    monkeypatch.setattr(torch.optim.AdamW, "step", record_step)


def test_processes_have_equal_weights_and_unequal_dropout(
    train, texts, tmp_path, monkeypatch
):
    """Equal utterances in both processes, so that only the masks differ."""
    twice = tmp_path / "twice"
    twice.mkdir()
    for table in ("wav.scp", "text", "text_ctc", "utt2task", "utt2num_samples"):
        value = (texts / table).read_text().splitlines()[1].partition(" ")[2]
        (twice / table).write_text(f"a {value}\nb {value}\n")
    record_masks(tmp_path, monkeypatch)
    options = {"data": twice, "batch_size": 2, "num_processes": 2}
    train(tmp_path / "exp", **options, model_conf={"feature_dropout": 0.5})
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert len(first["masks"]) == len(second["masks"]) >= 4  # dropout of 2 epochs
    for pair in zip(first["masks"], second["masks"], strict=True):
        assert pair[0].shape == pair[1].shape
        assert not torch.equal(*pair)
    assert first["seed"] == 1 + 2  # as with one process: ESPnet's seed + epoch
    assert len(first["weights"]) == 2
    torch.testing.assert_close(first["weights"], second["weights"], atol=0, rtol=0)


def test_seeds_of_processes_and_epochs_differ():
    seeds = [rank_seed(1, epoch, rank) for epoch in range(1, 9) for rank in range(1, 9)]
    assert len(set(seeds)) == len(seeds)
    assert 0 <= min(seeds) and max(seeds) < 2**32  # NumPy's range


def kill_rank_1_at(step: int, monkeypatch) -> None:
    """Kill the process of rank 1 in an optimizer step; forks inherit this."""
    steps = []
    original = torch.optim.AdamW.step

    def kill(self, *args, **options):
        steps.append(1)
        if len(steps) == step and torch.distributed.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", kill)


@pytest.mark.slow
def test_a_kill_of_one_rank_ends_the_other_and_is_resumed(
    train, texts, tmp_path, monkeypatch
):
    """Random numbers differ between ranks: dropout of batches of different lengths."""
    options = {"data": texts, "batch_size": 2}
    options |= {"save_every": "1 steps", "num_processes": 2}
    whole = train(tmp_path / "whole", **options)
    killed = tmp_path / "killed"
    with monkeypatch.context() as patch:
        kill_rank_1_at(5, patch)  # in the second of the three batches of epoch 2
        begin = time.monotonic()
        with pytest.raises(UserError) as caught:
            train(killed, **options)
    assert time.monotonic() - begin < 60
    message = "the training process of rank 1 was ended by SIGKILL; is the memory full?"
    assert str(caught.value) == message
    state = torch.load(killed / "mid_epoch.pth", weights_only=True)
    assert (state["epoch"], state["done"], len(state["ranks"])) == (2, 1, 2)
    assert not torch.equal(*(rank["random"]["torch"] for rank in state["ranks"]))
    with pytest.raises(
        UserError, match=r"mid_epoch.pth: saved by 2 processes, now .* 1"
    ):
        train(killed, **{**options, "num_processes": 1})
    train(killed, **options)
    assert statistics(killed) == statistics(whole)
    for name in ("1epoch.pth", "2epoch.pth", "valid.loss.ave.pth"):
        pair = (torch.load(f / name, weights_only=True) for f in (whole, killed))
        torch.testing.assert_close(*pair, atol=0, rtol=0)


def test_a_batch_that_is_too_small_for_the_processes_is_refused(
    train, texts, tmp_path, capfd
):
    with pytest.raises(SystemExit) as caught:
        train(tmp_path / "exp", "--num_processes", "2", data=texts, batch_size=1)
    assert caught.value.code == 1
    errors = {x for x in capfd.readouterr().err.splitlines() if x.startswith("error:")}
    assert errors == {
        "error: a batch of the train set has 1 of at least 2 utterances, one for each "
        "process; use a larger batch_size, a larger set or fewer processes"
    }


def test_small_batches_by_length_get_an_utterance_for_each_process(
    train, texts, tmp_path
):
    """ESPnet fills batches of ``batch_bins`` up to the number of processes."""
    options = {"data": texts, "batch_type": "numel", "batch_bins": 1, "max_epoch": 1}
    folder = train(tmp_path / "exp", "--num_processes", "2", **options)
    assert all(np.isfinite(list(statistics(folder).values())))


def test_several_processes_per_gpu_are_refused(train, tmp_path):
    with pytest.raises(UserError, match="--num_processes 2 is for --ngpu 0; with GPUs"):
        train(tmp_path / "exp", "--num_processes", "2", "--ngpu", "1")
