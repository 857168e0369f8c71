"""An interrupted fine-tuning of Whisper, which resumes with the same weights."""

# ruff: noqa: F811  (fixtures)

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import end_group, in_child
from safetensors.torch import load_file
from test_finetune_whisper import (  # noqa: F401
    examples,
    speech,
    tiny_decoder,
    write_examples,
)

from speechllm.baselines import finetune_whisper as finetuning
from speechllm.baselines import whisper_trainer
from speechllm.baselines.finetune_whisper import FinetuneOptions, finetune_whisper
from speechllm.baselines.whisper_trainer import Pace
from speechllm.data.kaldi_table import read_table
from speechllm.utils.errors import UserError


def interrupt_after(step: int, action: Callable[[], None], monkeypatch) -> None:
    """Call ``action`` at the end of a step, once."""
    on_step_end, done = Pace.on_step_end, []

    def interrupted(self, args, state, control, **kwargs):
        on_step_end(self, args, state, control, **kwargs)
        if state.global_step == step and not done:
            done.append(step)
            action()

    monkeypatch.setattr(Pace, "on_step_end", interrupted)


def course(result: dict) -> list[tuple]:
    """Return step, loss and accuracy of the validations."""
    return [(v["step"], v["loss"], v["accuracy"]) for v in result["validation"]]


@pytest.fixture(scope="module", params=["lora", "full"])
def whole(request, tmp_path_factory, tiny_decoder, speech):
    """Train without an interruption; return the arguments, the result and weights."""
    folder = write_examples(tmp_path_factory.mktemp("whole"), speech)
    options = FinetuneOptions(request.param, lr=0.01, epochs=6, batch_size=2)
    arguments = tiny_decoder, folder, folder
    result = finetune_whisper(*arguments, folder / "model", options)
    return arguments, options, result, load_file(folder / "model/model.safetensors")


@pytest.mark.parametrize("step", [1, 4, 7])  # of 2 steps an epoch; 4 has a validation
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_stopped_training_resumes_with_the_same_weights(
    whole, tmp_path, monkeypatch, capsys, step, number
):
    arguments, options, result, weights = whole
    output = tmp_path / "model"
    interrupt_after(step, lambda: os.kill(os.getpid(), number), monkeypatch)
    with pytest.raises(UserError, match=rf"{number.name}; saved after step \d+, where"):
        finetune_whisper(*arguments, output, options)
    assert not output.exists()
    checkpoints = tmp_path / "model.checkpoints"
    assert len(list(checkpoints.glob("checkpoint-*/optimizer.pt"))) == 1
    resumed = finetune_whisper(*arguments, output, options)
    saved = step + (step == 4)  # the validation goes first
    assert f"resumed after step {saved}\n" in capsys.readouterr().err
    assert course(resumed) == course(result)
    assert resumed["steps"] == result["steps"] == 12
    found = load_file(output / "model.safetensors")
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert os.listdir(tmp_path) == ["model"]


def test_killed_training_resumes_from_the_last_complete_checkpoint(
    whole, tmp_path, monkeypatch, capsys
):
    arguments, options, result, weights = whole
    output, checkpoints = tmp_path / "model", tmp_path / "model.checkpoints"
    monkeypatch.setattr("speechllm.baselines.checkpoints.SAVE_SECONDS", 0)

    def kill():
        raise KeyboardInterrupt

    interrupt_after(8, kill, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        finetune_whisper(*arguments, output, options)
    incomplete = checkpoints / "checkpoint-9"
    shutil.copytree(checkpoints / "checkpoint-7", incomplete)
    (incomplete / "trainer_state.json").unlink()  # the last file of a checkpoint
    resumed = finetune_whisper(*arguments, output, options)
    assert "resumed after step 7\n" in capsys.readouterr().err
    assert course(resumed) == course(result)
    found = load_file(output / "model.safetensors")
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_checkpoints_of_other_settings_are_not_used(
    whole, tmp_path, monkeypatch, capsys
):
    arguments, options, _, _ = whole
    output, checkpoints = tmp_path / "model", tmp_path / "model.checkpoints"
    interrupt_after(3, lambda: os.kill(os.getpid(), signal.SIGTERM), monkeypatch)
    with pytest.raises(UserError, match="saved after step 3"):
        finetune_whisper(*arguments, output, options)
    (checkpoints / "notes.txt").write_text("of the user")
    finetune_whisper(*arguments, output, replace(options, epochs=1))
    assert "resumed" not in capsys.readouterr().err
    assert (checkpoints / "notes.txt").exists()
    kept = tmp_path / "model.checkpoints.previous"
    assert (kept / "checkpoint-3/optimizer.pt").exists()
    assert json.loads((kept / "settings.json").read_text())["epochs"] == 6


def with_workers(monkeypatch, count: int) -> None:
    """Read the audio in other processes, as on a GPU."""
    original = whisper_trainer.training_arguments

    def arguments(*given):
        found = original(*given)
        found.dataloader_num_workers = count
        return found

    monkeypatch.setattr(whisper_trainer, "training_arguments", arguments)


@pytest.mark.slow
def test_signals_to_all_processes_spare_those_that_read_the_audio(
    whole, tmp_path, monkeypatch, capfd
):
    arguments, options, result, weights = whole
    output = tmp_path / "model"
    with_workers(monkeypatch, 2)

    def stop() -> None:
        os.setpgid(0, 0)
        finetune_whisper(*arguments, output, options)

    with monkeypatch.context() as patch:
        interrupt_after(5, end_group, patch)
        assert in_child(stop) == 1
    assert "stopped by SIGTERM; saved after step 5" in capfd.readouterr().err
    assert course(finetune_whisper(*arguments, output, options)) == course(result)
    found = load_file(output / "model.safetensors")
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_audio_that_vanishes_is_one_line_with_workers(
    tiny_decoder,
    examples,
    tmp_path,
    monkeypatch,
):
    with_workers(monkeypatch, 1)
    audio = Path(read_table(examples / "wav.scp")["a-asr-en"])
    options = FinetuneOptions(epochs=9)
    interrupt_after(1, audio.unlink, monkeypatch)
    with pytest.raises(UserError) as caught:
        finetune_whisper(tiny_decoder, examples, examples, tmp_path / "model", options)
    assert str(caught.value) == f"{audio}: the audio file does not exist"


def test_a_signal_after_the_last_step_lets_the_model_be_written(
    whole, tmp_path, monkeypatch
):
    arguments, options, result, _ = whole
    write = finetuning.write_model

    def interrupted(*given):
        os.kill(os.getpid(), signal.SIGUSR1)
        return write(*given)

    monkeypatch.setattr(finetuning, "write_model", interrupted)
    found = finetune_whisper(*arguments, tmp_path / "model", options)
    assert course(found) == course(result)
    assert os.listdir(tmp_path) == ["model"]


def test_checkpoints_that_were_moved_give_the_best_weights(
    tiny_decoder,
    examples,
    tmp_path,
    monkeypatch,
):
    """The second validation, the first in the training, has the best accuracy."""
    validations = []

    def best_at_once(prediction) -> dict[str, float]:
        validations.append(prediction)
        return {"accuracy": 0.9 if len(validations) == 2 else 0.1}

    monkeypatch.setattr(whisper_trainer, "token_accuracy", best_at_once)
    options = FinetuneOptions("full", lr=0.01, epochs=6, batch_size=2)

    def train(name: str) -> dict:
        return finetune_whisper(
            tiny_decoder, examples, examples, tmp_path / name, options
        )

    best = train("whole")["best_step"]
    validations.clear()
    with monkeypatch.context() as patch:
        interrupt_after(7, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        with pytest.raises(UserError, match="saved after step"):
            train("a")
    (tmp_path / "a.checkpoints").rename(tmp_path / "b.checkpoints")
    assert train("b")["best_step"] == best
    whole, moved = (
        load_file(tmp_path / name / "model.safetensors") for name in ("whole", "b")
    )
    assert all(torch.equal(moved[name], whole[name]) for name in whole)


def test_training_begins_anew_if_other_audio_can_be_read(
    tiny_decoder,
    examples,
    tmp_path,
    monkeypatch,
    capsys,
):
    output, options = tmp_path / "model", FinetuneOptions(epochs=6, batch_size=1)
    with monkeypatch.context() as patch:
        interrupt_after(7, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        with pytest.raises(UserError, match="saved after step 7"):
            finetune_whisper(tiny_decoder, examples, examples, output, options)
    Path(read_table(examples / "wav.scp")["a-asr-en"]).unlink()
    result = finetune_whisper(tiny_decoder, examples, examples, output, options)
    assert result["left_out"] == 1
    assert "resumed" not in capsys.readouterr().err
    assert (tmp_path / "model.checkpoints.previous/checkpoint-7").is_dir()


def test_checkpoints_that_a_kill_has_left_are_removed(whole, tmp_path, monkeypatch):
    arguments, options, _, _ = whole
    output, checkpoints = tmp_path / "model", tmp_path / "model.checkpoints"
    with monkeypatch.context() as patch:
        patch.setattr("speechllm.baselines.checkpoints.remove_checkpoints", print)
        finetune_whisper(*arguments, output, options)
    assert list(checkpoints.glob("checkpoint-*"))
    (checkpoints / "checkpoint-6.bak").mkdir()  # of the user
    finetune_whisper(*arguments, output, options)
    assert [p.name for p in checkpoints.glob("*point-*")] == ["checkpoint-6.bak"]
