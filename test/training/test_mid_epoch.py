"""Checkpoints in the middle of an epoch: kills, signals, files that are not taken."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import end_group, in_child
from test_distributed import statistics, texts  # noqa: F401

from speechllm.training import trainer
from speechllm.training.mid_epoch import random_state, set_random_state
from speechllm.training.options import parse_interval
from speechllm.utils.errors import UserError

#: Seven utterances one by one: an epoch has three optimizer steps and a batch over.
SMALL = {"batch_type": "unsorted", "batch_size": 1, "accum_grad": 2}


def at_step(number: int, action, monkeypatch) -> None:
    """Call ``action`` in this optimizer step of the training, counted from 1."""
    steps = []
    original = torch.optim.AdamW.step

    def step(self, *args, **options):
        steps.append(1)
        if len(steps) == number:
            action()
        return original(self, *args, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)


def send(number: int):
    return lambda: os.kill(os.getpid(), number)


def assert_same_training(one: Path, other: Path) -> None:
    """Compare weights bit by bit, optimizers, schedulers and the epochs' averages."""
    states = [
        torch.load(f / "checkpoint.pth", weights_only=False) for f in (one, other)
    ]
    for name in ("model", "optimizers", "schedulers"):
        torch.testing.assert_close(states[1][name], states[0][name], atol=0, rtol=0)
    assert statistics(other) == statistics(one)
    for name in ("1epoch.pth", "2epoch.pth", "valid.loss.ave.pth"):
        pair = (torch.load(folder / name, weights_only=True) for folder in (one, other))
        torch.testing.assert_close(*pair, atol=0, rtol=0)
    names = [{path.name for path in folder.iterdir()} for folder in (one, other)]
    assert names[0] == names[1]  # no mid_epoch.pth, no temporary files


@pytest.fixture(scope="module")
def options(texts, tiny_llm):  # noqa: F811
    """Options of a training with dropout in the LLM and before CTC and bridge."""
    lora = {"r": 2, "lora_dropout": 0.1}
    llm = {"model": str(tiny_llm), "lora": lora, "gradient_checkpointing": True}
    return {**SMALL, "data": texts, "llm_conf": llm, "save_every": "1 steps"}


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def whole(train, options, shared_folder) -> Path:
    """Folder of the training of two epochs that nothing has stopped, made once."""
    if not any(shared_folder.iterdir()):
        train(shared_folder, **{**options, "save_every": "none"})
    return shared_folder


@pytest.mark.slow
def test_kills_at_random_steps_change_nothing(
    train, whole, options, tmp_path, monkeypatch
):
    """SIGKILL in the middle of an optimizer step, in each epoch."""
    steps = [random.randint(2, 3), random.randint(2, 3)]
    print("killed in the steps", steps)
    killed = tmp_path / "killed"
    for epoch, step in enumerate(steps, 1):
        with monkeypatch.context() as patch:
            # the second run begins with the step in which the first was killed
            before = 0 if epoch == 1 else 3 - (steps[0] - 1)
            at_step(before + step, send(9), patch)
            assert in_child(lambda: train(killed, **options)) == -9
        state = torch.load(killed / "mid_epoch.pth", weights_only=True)
        assert (state["epoch"], state["done"]) == (epoch, 2 * (step - 1))
    train(killed, **options)
    assert_same_training(whole, killed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_ends_the_training(
    train, whole, options, tmp_path, monkeypatch, capfd, number
):
    stopped = tmp_path / "stopped"
    options = {**options, "save_every": "none"}
    step = random.randint(1, 3)
    with monkeypatch.context() as patch:
        at_step(step, send(number), patch)
        assert in_child(lambda: train(stopped, **options)) == 1
    assert capfd.readouterr().err.splitlines()[-1] == (
        f"error: stopped by {number.name}; saved after batch {2 * step} of epoch 1, "
        "where the same command resumes"
    )
    train(stopped, **options)
    assert_same_training(whole, stopped)


def test_a_signal_in_the_validation_repeats_only_this(
    train, whole, options, tmp_path, monkeypatch
):
    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(
            "speechllm.models.speech_llm.SpeechLLM.ctc_character_errors",
            lambda *_: (os.kill(os.getpid(), signal.SIGTERM), 1)[1:] * 2,
        )
        assert in_child(lambda: train(stopped, **options)) == 1
    state = torch.load(stopped / "mid_epoch.pth", weights_only=True)
    assert (state["done"], state["all_batches"]) == (7, True)
    assert not (stopped / "checkpoint.pth").exists()
    train(stopped, **options)
    assert_same_training(whole, stopped)


def test_gradients_at_the_end_of_an_epoch_outlive_a_kill(
    train, whole, options, tmp_path, monkeypatch
):
    """They belong to the first step of the next epoch, in which the kill comes."""
    killed = tmp_path / "killed"
    options = {**options, "save_every": "none"}
    with monkeypatch.context() as patch:
        at_step(4, send(9), patch)
        assert in_child(lambda: train(killed, **options)) == -9
    assert (killed / "checkpoint.pth").exists()
    train(killed, **options)
    assert_same_training(whole, killed)


def test_a_kill_while_the_state_is_written_keeps_the_last_one(
    train, whole, options, tmp_path, monkeypatch
):
    killed = tmp_path / "killed"
    saved = []

    def cut(obj, stream, *args, **options):
        saved.append(1)
        if len(saved) == 3:
            stream.write(b"PK the begin of a file")
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return original(obj, stream, *args, **options)

    original = torch.save
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", cut)
        assert in_child(lambda: train(killed, **options)) == -9
    (temporary,) = killed.glob(".mid_epoch.pth.*.tmp")
    assert torch.load(killed / "mid_epoch.pth", weights_only=True)["done"] == 4
    os.utime(temporary, (0, 0))  # files that are not old may belong to another process
    train(killed, **options)
    assert_same_training(whole, killed)


@pytest.mark.slow
def test_signals_to_all_processes_spare_the_data_loader(
    train, whole, options, tmp_path, monkeypatch, capfd
):
    """The job runner and Slurm send them to the loader's workers, too."""
    stopped = tmp_path / "stopped"
    options = {**options, "num_workers": 2}

    def stop_group() -> None:
        os.setpgid(0, 0)
        train(stopped, **options)

    with monkeypatch.context() as patch:
        at_step(2, end_group, patch)
        begin = time.monotonic()
        assert in_child(stop_group) == 1
    assert "saved after batch 4 of epoch 1" in capfd.readouterr().err
    assert time.monotonic() - begin < 60
    train(stopped, **options)
    assert_same_training(whole, stopped)


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_at_one_step(
    train, options, tmp_path, monkeypatch, capfd
):
    options = {**options, "batch_size": 2, "save_every": "none", "num_processes": 2}
    whole = train(tmp_path / "two", **options)
    stopped = tmp_path / "stopped"

    def end_rank_1() -> None:
        if torch.distributed.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    with monkeypatch.context() as patch:
        at_step(1, end_rank_1, patch)
        with pytest.raises(SystemExit) as caught:
            train(stopped, **options)
    assert caught.value.code == 1
    errors = [x for x in capfd.readouterr().err.splitlines() if x.startswith("error:")]
    assert len(errors) == 1 and "stopped by SIGUSR1; saved after batch 2" in errors[0]
    train(stopped, **options)
    assert_same_training(whole, stopped)


def test_other_batches_are_refused(train, options, tmp_path, monkeypatch):
    folder = tmp_path / "exp"
    with monkeypatch.context() as patch:
        at_step(3, send(9), patch)
        assert in_child(lambda: train(folder, **options)) == -9
    before = (folder / "mid_epoch.pth").read_bytes()
    with pytest.raises(UserError) as caught:
        train(folder, **{**options, "batch_size": 2})
    assert str(caught.value) == (
        f"{folder}/mid_epoch.pth: saved with other batches; their size, the data or "
        "the seed has changed; change that back, or move the file away to resume from "
        "the last epoch"
    )
    assert (folder / "mid_epoch.pth").read_bytes() == before


def test_a_state_of_something_else_is_refused(train, options, tmp_path):
    exp = train(tmp_path / "exp", **options | {"max_epoch": 1})
    states = torch.load(exp / "checkpoint.pth", weights_only=False)
    foreign = {
        "mid_epoch.pth": [None, [1], {}, {"epoch": 2}, {"model.weight": torch.ones(2)}],
        "checkpoint.pth": [5, {}, {**states, "model": {}}, {**states, "reporter": 1}]
        + [{**states, "optimizers": [{}]}],
    }
    for name, values in foreign.items():
        for value in values:
            torch.save(value, exp / name)
            with pytest.raises(UserError, match=rf"{name}: not the state of this tra"):
                train(exp, **options)
            assert (exp / name).exists()
        (exp / name).unlink()
    torch.save(states, exp / "checkpoint.pth")
    train(exp, **options | {"max_epoch": 1})


def test_a_damaged_file_is_refused(train, options, tmp_path):
    path = tmp_path / "exp" / "mid_epoch.pth"
    path.parent.mkdir()
    path.write_bytes(b"PK cut")
    with pytest.raises(UserError, match=r"mid_epoch.pth: not a checkpoint of this"):
        train(path.parent, **options)
    assert path.read_bytes() == b"PK cut"


def test_random_numbers_continue():
    state = random_state()
    first = (random.random(), np.random.normal(size=3).tolist(), torch.rand(3).tolist())
    set_random_state(state)
    again = (random.random(), np.random.normal(size=3).tolist(), torch.rand(3).tolist())
    assert again == first


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", (90.0, 0)),
        ("30m", (1800.0, 0)),
        ("1.5 h", (5400.0, 0)),
        ("500 steps", (float("inf"), 500)),
        ("1 step", (float("inf"), 1)),
    ],
)
def test_intervals(text, expected):
    assert parse_interval(text) == expected


@pytest.mark.parametrize(
    "text", ["30", "m", "-1m", "0m", "0 steps", "1.5 steps", "one hour"]
)
def test_invalid_intervals(train, tmp_path, text):
    with pytest.raises(UserError, match="save_every .*: expected a time or steps"):
        train(tmp_path / "exp", save_every=text)


def test_the_interval_of_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(
        trainer.SaveInterval.restart.__globals__["time"], "monotonic", lambda: now[0]
    )
    interval = trainer.SaveInterval("30m")
    assert not interval.passed()
    now[0] = 1801.0
    assert interval.passed()
    interval.restart()
    assert not interval.passed()
