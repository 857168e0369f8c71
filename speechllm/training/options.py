"""Schema of training configurations: our keys and ESPnet's that recipes change."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechllm.models.config import MODEL_SCHEMA
from speechllm.utils.io import read_yaml
from speechllm.utils.schema import (
    Schema,
    boolean,
    check_options,
    choice,
    either,
    group,
    integer,
    list_of,
    mapping_of,
    number,
    optional,
    text,
)

_COUNT = integer(1, 10**12)
_SORTED = choice("descending", "ascending")
_PROBABILITY = number(least=0, below=1)
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def _criterion(value: Any) -> list[str]:
    """Check a criterion by which the best checkpoints are chosen."""
    expected = "expected [train or valid, a name, min or max]"
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        raise ValueError(expected)
    phase, name, mode = value
    if phase not in ("train", "valid") or mode not in ("min", "max"):
        raise ValueError(expected)
    return [phase, text(name), mode]


def parse_interval(text: str) -> tuple[float, int]:
    """Parse ``save_every``: ``90s``, ``30m``, ``2h`` or ``500 steps``.

    Returns:
        Seconds and optimizer steps, one of them infinite or 0: (1800.0, 0) or
        (inf, 500).

    Raises:
        ValueError: another form.
    """
    if found := re.fullmatch(r"(\d+(?:\.\d+)?) ?([smh])", text):
        if seconds := float(found[1]) * _UNITS[found[2]]:
            return seconds, 0
    if found := re.fullmatch(r"([1-9]\d*) ?steps?", text):
        return float("inf"), int(found[1])
    raise ValueError("expected a time or steps, such as 30m, 2h or 500 steps")


def _interval(value: Any) -> str | None:
    """Check how often the state within an epoch is saved; ``none`` is None."""
    if value == "none":
        return None
    parse_interval(text(value))
    return value


def _refused(value: Any, remedy: str) -> Any:
    """Accept only 0 or false: ESPnet's option is not supported."""
    if value:
        raise ValueError(remedy)
    return value


TRAINING_SCHEMA: Schema = {
    **MODEL_SCHEMA,
    "max_epoch": integer(1, 10**6),
    "num_iters_per_epoch": optional(_COUNT),
    "accum_grad": integer(1, 10**6),
    "batch_size": _COUNT,
    "valid_batch_size": optional(_COUNT),
    "batch_bins": _COUNT,
    "valid_batch_bins": optional(_COUNT),
    "batch_type": choice("unsorted", "sorted", "folded", "length", "numel", "catbel"),
    "sort_in_batch": _SORTED,
    "sort_batch": _SORTED,
    "grad_clip": number(above=0, infinite=True),
    "grad_clip_type": number(above=0, infinite=True),
    "grad_noise": boolean,
    "train_dtype": choice("float16", "float32", "float64"),
    "use_amp": boolean,
    "seed": integer(0, 2**32 - 1),
    "num_workers": integer(0, 10**4),
    "ngpu": integer(0, 10**4),
    "num_processes": integer(1, 10**4),
    "save_every": optional(_interval),
    "log_interval": optional(_COUNT),
    "patience": optional(integer(0, 10**6)),
    "keep_nbest_models": either(integer(0, 10**6), list_of(integer(1, 10**6))),
    "nbest_averaging_interval": integer(0, 10**6),
    "best_model_criterion": list_of(_criterion),
    "init_param": list_of(text),
    "num_att_plot": lambda value: _refused(
        value, "only 0; attention weights are not collected"
    ),
    "use_adapter": lambda value: _refused(
        value, "only false; name LoRA under llm_conf instead (tuning: lora)"
    ),
    "use_deepspeed": lambda value: _refused(
        value, "only false; speechllm.sh --trainer lightning --strategy deepspeed"
    ),
    "use_tensorboard": boolean,
    "unused_parameters": boolean,
    "resume": boolean,
    "lr_scales": mapping_of(number(least=0)),
    "hotword_conf": group,
    "hotword_conf.max_tokens": integer(1, 10**4),
    "hotword_conf.without": number(least=0, most=1),
    "hotword_conf.true_words": integer(0, 10**3),
    "hotword_conf.false_words": integer(0, 10**5),
    "optim": text,
    "optim_conf": group,
    "optim_conf.lr": number(above=0),
    "optim_conf.weight_decay": number(least=0),
    "optim_conf.eps": number(above=0),
    "optim_conf.betas": list_of(_PROBABILITY, 2),
    "optim_conf.fused": optional(boolean),
    "scheduler": optional(text),
    "scheduler_conf": group,
    "scheduler_conf.max_steps": _COUNT,
    "scheduler_conf.warmup_steps": number(least=0),
    "scheduler_conf.warmup_ratio": number(least=0, most=1),
    "scheduler_conf.hold_ratio": number(least=0, most=1),
    "scheduler_conf.decay_ratio": number(least=0, most=1),
    "scheduler_conf.final_lr_scale": number(least=0),
}


def check_training_options(options: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the options of a training, checked and converted.

    Raises:
        UserError: a value has another type or is out of its range.
    """
    return check_options(options, TRAINING_SCHEMA, place)


def read_training_config(path: str | Path) -> dict[str, Any]:
    """Read and check a training configuration.

    Raises:
        UserError: the file is missing, damaged or empty, or a value is out of range.
    """
    return check_training_options(read_yaml(path), str(path))
