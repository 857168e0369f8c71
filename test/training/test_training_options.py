"""Checks of the options of a training: DeepSpeed, Lightning."""

from __future__ import annotations

import pytest

from speechllm.training import lightning_launch, lightning_task
from speechllm.training.lightning_task import (
    LightningTask,
    check_lightning,
    read_deepspeed_config,
)
from speechllm.training.task import SpeechLLMTask
from speechllm.utils.errors import UserError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"zero_optimization": {"stage": 3}}', "ZeRO stage 3 needs weights of one"),
        ('{"optimizer": {"type": "AdamW"}}', "optimizer: the training config sets it"),
        ('{"bf16": {}, "fp16": {}}', "bf16, fp16: the training config sets it"),
        ('{"zero_optimization": 3}', "not a DeepSpeed configuration"),
        ("[]", "not a DeepSpeed configuration"),
        ("{", "not JSON"),
        (None, "no such DeepSpeed configuration"),
    ],
)
def test_unusable_deepspeed_configuration_is_refused(tmp_path, content, message):
    config = tmp_path / "deepspeed.json"
    if content is not None:
        config.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_deepspeed_config(config)
    assert "\n" not in str(caught.value)


def test_deepspeed_of_the_other_trainer_is_refused(tmp_path):
    with pytest.raises(UserError, match="--trainer lightning --strategy deepspeed"):
        SpeechLLMTask.main(cmd=["--use_deepspeed", "true"])


@pytest.fixture
def installed(monkeypatch):
    """Return the set of packages that are found; empty at first."""
    names: set[str] = set()
    monkeypatch.setattr(
        lightning_task, "find_spec", lambda name: name if name in names else None
    )
    return names


LIGHTNING = {"espnet2.bin.lightning_train", "lightning"}


@pytest.mark.parametrize(
    ("packages", "options", "message"),
    [
        (set(), [], "--trainer lightning needs ESPnet 202611, which needs Python 3.12"),
        (
            {"espnet2.bin.lightning_train"},
            ["--strategy", "fsdp"],
            r"--strategy fsdp needs lightning: pip install 'speechllm\[lightning\]'",
        ),
        (
            LIGHTNING,
            ["--strategy", "deepspeed"],
            r"needs deepspeed: pip install 'speechllm\[deepspeed\]'",
        ),
        (LIGHTNING, ["--use_amp", "true"], "use_amp: with --trainer lightning"),
        (LIGHTNING, ["--grad_clip_type", "1"], "clipped by their 2-norm"),
        (LIGHTNING, ["--multiple_iterator", "true"], "multiple_iterator: with --tr"),
        (
            LIGHTNING,
            ["--strategy", "fsdp", "--optim", "paged_adamw"],
            "--strategy fsdp cannot shard the state of optim paged_adamw",
        ),
        (
            LIGHTNING,
            ["--strategy", "fsdp", "--llm_conf", "tuning=qlora"],
            "--strategy fsdp cannot shard 4-bit weights",
        ),
        (LIGHTNING, ["--num_nodes", "2"], "--num_nodes above 1 needs Slurm"),
    ],
)
def test_what_lightning_cannot_train_is_refused_before_the_start(
    tmp_path, monkeypatch, installed, packages, options, message
):
    monkeypatch.setattr(lightning_task, "quantization_obstacle", lambda: "")
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    installed |= packages
    with pytest.raises(UserError, match=message) as caught:
        lightning_launch.main([*options, "--output_dir", str(tmp_path / "exp")])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exp").exists()


def test_a_deepspeed_configuration_needs_the_strategy(tmp_path, installed):
    installed |= LIGHTNING
    config = tmp_path / "zero.json"
    config.write_text('{"zero_optimization": {"stage": 1}}')
    words = ["--deepspeed_config", str(config), "--output_dir", str(tmp_path)]
    with pytest.raises(UserError, match="--deepspeed_config goes with --strategy"):
        check_lightning(LightningTask.parse(words))
