"""Checks of the options of a training: DeepSpeed, Lightning, learning rates."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

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


#: Options of each scheduler of ESPnet, short enough for all its phases in 60 steps.
SCHEDULERS = {
    "cosineannealinglr": {"T_max": 50},
    "cosineannealingwarmrestarts": {"T_0": 20},
    "cosineannealingwarmuprestarts": {"first_cycle_steps": 50, "max_lr": 0.1},
    "cycliclr": {"base_lr": 0.01, "max_lr": 0.1},
    "exponentialdecaywarmup": {
        "max_lr": 0.1,
        "min_lr": 0.01,
        "total_steps": 50,
        "warmup_steps": 10,
    },
    "exponentiallr": {"gamma": 0.9},
    "multisteplr": {"milestones": [10, 20]},
    "noamlr": {"model_size": 32, "warmup_steps": 10},
    "onecyclelr": {"max_lr": 0.1, "total_steps": 60},
    "piecewiselinearwarmuplr": {
        "warmup_steps_list": [0, 10, 20],
        "warmup_lr_list": [0.0, 0.01, 0.1],
    },
    "reducelronplateau": {"patience": 2, "cooldown": 2},
    "steplr": {"step_size": 5},
    "tristagelr": {"max_steps": 50},
    "warmuplr": {"warmup_steps": 10},
    "warmupreducelronplateau": {"warmup_steps": 10},
    "warmupsteplr": {"warmup_steps": 10, "steps_per_epoch": 5},
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler_keeps_the_factors_on_the_learning_rate_or_is_refused(name):
    from espnet2.tasks.abs_task import scheduler_classes

    assert set(scheduler_classes) == {*SCHEDULERS, "lambdalr"}  # not from a config
    model = torch.nn.ModuleDict({n: torch.nn.Linear(1, 1) for n in ("encoder", "ctc")})
    args = SimpleNamespace(
        optim="adamw",
        optim_conf={"lr": 0.1},
        scheduler=name,
        scheduler_conf=SCHEDULERS[name],
        lr_scales={"encoder": 0.25},
    )
    try:
        (optimizer,) = SpeechLLMTask.build_optimizers(args, model)
    except UserError as error:
        assert f"lr_scales: scheduler {name} sets one learning rate" in str(error)
        args.lr_scales = {}
        SpeechLLMTask.build_optimizers(args, model)
        return
    scheduler = scheduler_classes[name](optimizer, **args.scheduler_conf)
    value = [1.0] if name == "reducelronplateau" else []
    for _ in range(60):
        optimizer.step()
        scheduler.step(*value)
        low, high = (group["lr"] for group in optimizer.param_groups)
        assert low == pytest.approx(0.25 * high)
