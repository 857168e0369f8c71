"""Options of a training with Lightning, and what a strategy cannot do.

``espnet2.bin.lightning_train`` of ESPnet 202611 trains ESPnet's tasks with Lightning;
here DeepSpeed is added, and everything is checked before the first step. Lightning, an
extra, is not imported here: ``training/lightning.py`` does.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path

from speechllm.models.quantization import quantization_obstacle
from speechllm.training.task import SpeechLLMTask
from speechllm.utils.errors import UserError

STRATEGIES = ("ddp", "fsdp", "deepspeed")
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


def confine_checkpoints(callbacks: object, folder: str | Path) -> None:
    """Let the state of Lightning's callbacks name files of the training's folder only.

    Lightning removes the files that ``ModelCheckpoint`` has saved before, also after
    it has read their names in a checkpoint: a planted one could name any folder of this
    machine. A folder that was moved keeps its list.

    Args:
        callbacks: states by callback, of a checkpoint; changed in place.
        folder: of the training.

    Raises:
        UserError: a name is not that of a checkpoint.
    """
    folder = Path(folder).resolve()

    def confined(path: object) -> str:
        name = str(path).replace("\\", "/").rpartition("/")[2]
        if not path or not isinstance(path, str):
            return ""
        if not name.endswith(".ckpt"):
            raise UserError(
                f"{folder}: its last.ckpt names {path!r} as a checkpoint; it is not "
                "resumed, since that could be removed; move it away"
            )
        return str(folder / name)

    states = callbacks.values() if isinstance(callbacks, dict) else ()
    for state in states:
        if not isinstance(state, dict) or "best_model_path" not in state:
            continue
        for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[name] = confined(state.get(name))
        best = state.get("best_k_models") or {}
        state["best_k_models"] = {confined(k): value for k, value in best.items()}
        state["dirpath"] = str(folder)


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
