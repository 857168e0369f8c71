"""Training with Lightning: options, checks and processes of DDP, FSDP and DeepSpeed.

``espnet2.bin.lightning_train`` of ESPnet 202611 trains ESPnet's tasks with Lightning;
this module adds DeepSpeed, and checks before the first step what a strategy cannot do.
Nothing here imports Lightning, which is an extra: ``training/lightning.py`` does.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from speechllm.models.llm import quantization_obstacle
from speechllm.training.task import SpeechLLMTask
from speechllm.utils.errors import UserError, run_main

STRATEGIES = ("ddp", "fsdp", "deepspeed")
PORT = 29500  # of the rendezvous of several machines
#: Options of ESPnet's trainer without a counterpart here, and their only values.
FIXED = {
    "train_dtype": ("float32", "model_conf autocast sets the precision of products"),
    "use_amp": (False, "model_conf autocast: bfloat16 is without loss scaling"),
    "grad_noise": (False, "it is of ESPnet's trainer"),
    "grad_clip_type": (2.0, "gradients are clipped by their 2-norm"),
    "multiple_iterator": (False, "it is of ESPnet's trainer"),
    "nbest_averaging_interval": (0, "checkpoints are averaged at the end"),
}


class LightningTask(SpeechLLMTask):
    """The task, trained by Lightning."""

    @classmethod
    def get_parser(cls) -> argparse.ArgumentParser:
        """Return ESPnet's options, with those of this program."""
        parser = super().get_parser()
        group = parser.add_argument_group("Lightning")
        group.add_argument(
            "--strategy",
            choices=STRATEGIES,
            default="ddp",
            help="ddp: every process holds the model; fsdp: weights, gradients and "
            "optimizer state are sharded; deepspeed: gradients and optimizer state "
            "are (ZeRO 2, or as --deepspeed_config says)",
        )
        group.add_argument(
            "--num_nodes", type=int, default=1, help="Machines, started by srun"
        )
        return parser

    @classmethod
    def main(cls, args: argparse.Namespace | None = None, cmd=None) -> None:
        """Check the options and train in the processes of this machine.

        Raises:
            UserError: an option is wrong, the strategy cannot train this model, a
                package is missing, or a process was killed.
        """
        cmd = sys.argv[1:] if cmd is None else [str(word) for word in cmd]
        args = cls.parse(cmd)
        if args.print_config:
            cls.print_config()
            return
        check_lightning(args)
        processes = args.ngpu or args.num_processes
        if processes * args.num_nodes == 1:
            run_worker(cmd)
        else:
            launch(cmd, processes, args.num_nodes)


def check_lightning(args: argparse.Namespace) -> None:
    """Check that Lightning can train with these options.

    Raises:
        UserError: ESPnet is too old, a package is missing, or an option or a kind of
            weights does not go with the strategy.
    """
    if find_spec("espnet2.bin.lightning_train") is None:
        raise UserError(
            "--trainer lightning needs ESPnet 202611, which needs Python 3.12 or 3.13 "
            f"(here {sys.version_info[0]}.{sys.version_info[1]}); leave --trainer out "
            "to train with ESPnet's own trainer (DDP)"
        )
    packages = ["lightning", *(["deepspeed"] if args.strategy == "deepspeed" else [])]
    for name in packages:
        if find_spec(name) is None:
            raise UserError(
                f"--trainer lightning --strategy {args.strategy} needs {name}: "
                f"pip install 'speechllm[{name}]'"
            )
    if args.output_dir is None:
        raise UserError("--output_dir is needed, the folder of the training")
    for name, (value, reason) in FIXED.items():
        if getattr(args, name) != value:
            raise UserError(
                f"{name}: with --trainer lightning only {value}, since {reason}"
            )
    if args.deepspeed_config is not None:
        read_deepspeed_config(args.deepspeed_config)
        if args.strategy != "deepspeed":
            raise UserError("--deepspeed_config goes with --strategy deepspeed")
    if args.strategy != "fsdp":
        return
    quantized = args.llm and args.llm_conf.get("tuning") == "qlora"
    if quantized and not quantization_obstacle():
        raise UserError(
            "--strategy fsdp cannot shard 4-bit weights (llm_conf tuning: qlora); use "
            "--strategy ddp or deepspeed, or tuning: lora"
        )
    if args.optim == "paged_adamw":
        raise UserError(
            "--strategy fsdp cannot shard the state of optim paged_adamw; use adamw"
        )


def read_deepspeed_config(path: str | Path) -> dict:
    """Read a configuration of DeepSpeed.

    Optimizer, scheduler, clipping, accumulation and precision are those of the training
    config, so the file may not set them.

    Raises:
        UserError: the file is missing or not a JSON mapping, sets such an option, or
            asks for ZeRO 3.
    """
    try:
        content = json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such DeepSpeed configuration") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    zero = content.get("zero_optimization", {}) if isinstance(content, dict) else None
    if not isinstance(zero, dict):
        raise UserError(f"{path}: not a DeepSpeed configuration")
    own = ("optimizer", "scheduler", "gradient_clipping", "bf16", "fp16")
    own += ("gradient_accumulation_steps", "train_batch_size", "torch_autocast")
    if found := [name for name in own if name in content]:
        raise UserError(
            f"{path}: {', '.join(found)}: the training config sets it; leave it out"
        )
    if zero.get("stage", 0) > 2:
        raise UserError(
            f"{path}: ZeRO stage 3 needs weights of one precision, but frozen weights "
            "have another than trained ones; use stage 2, or --strategy fsdp, which "
            "shards weights of both"
        )
    return content


def launch(cmd: Sequence[str], processes: int, num_nodes: int = 1) -> None:
    """Train in several processes with torch's launcher, torchrun.

    If a process ends with an error or is killed, the others are ended.

    Raises:
        UserError: a process was killed; names its rank.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=num_nodes,
        max_nodes=num_nodes,
        nproc_per_node=processes,
        run_id=os.environ.get("SLURM_JOB_ID", str(os.getpid())),
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0" if num_nodes == 1 else f"{first_node()}:{PORT}",
        local_addr="127.0.0.1" if num_nodes == 1 else None,
        max_restarts=0,
        monitor_interval=0.2,
        start_method="spawn",
    )
    try:
        elastic_launch(config, run_worker)(list(cmd))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:  # the process has printed its error
            sys.exit(1)
        raise UserError(
            f"the process of rank {rank} was ended by {failure.signal_name()}; is the "
            "memory full? The same command resumes"
        ) from None
    except SignalException as error:
        sys.exit(128 + error.sigval)


def first_node() -> str:
    """Return the first machine of a Slurm job, where the processes meet.

    Raises:
        UserError: this is not a job of Slurm.
    """
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    if not nodes:
        raise UserError(
            "--num_nodes above 1 needs Slurm (cmd.sh) with --trainer lightning"
        )
    command = ["scontrol", "show", "hostnames", nodes]
    return subprocess.run(
        command, check=True, capture_output=True, text=True
    ).stdout.split()[0]


def run_worker(cmd: Sequence[str]) -> None:
    """Train in one process; its errors that a user can fix are one line."""
    from speechllm.training.lightning import train

    work = functools.partial(train, LightningTask.parse(cmd))
    if "LOCAL_RANK" in os.environ:  # a process of its own
        run_main(work)
    else:
        work()
