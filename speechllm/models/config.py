"""Model configuration: its keys, the classes and the pretrained models it names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import TypeVar

from speechllm.pretrained.checkpoint import is_hub_id
from speechllm.pretrained.hub import COMMIT, snapshot_commit
from speechllm.pretrained.resolve import resolve_model
from speechllm.utils.errors import UserError
from speechllm.utils.io import read_yaml
from speechllm.utils.schema import (
    Schema,
    boolean,
    check_options,
    choice,
    group,
    integer,
    number,
    optional,
    text,
)

#: Keys of a training configuration that define the model; export keeps only these.
MODEL_KEYS = (
    "encoder",
    "encoder_conf",
    "bridge",
    "bridge_conf",
    "llm",
    "llm_conf",
    "ctc_conf",
    "model_conf",
)

#: ``model_type`` in the ``config.json`` of an exported model, for transformers.
MODEL_TYPE = "speechllm"

#: Key of the hub commits of the pretrained models: hub id -> commit.
REVISIONS = "revisions"

#: Key of the checksum of ``tokens.txt`` in an exported ``config.yaml``.
TOKENS_SHA256 = "tokens_sha256"

_DROPOUT = number(least=0, below=1)

#: Types and ranges of the keys that define a model.
MODEL_SCHEMA: Schema = {
    "llm": optional(choice("causal_lm")),
    "encoder_conf": group,
    "encoder_conf.model": text,
    "encoder_conf.random_init": boolean,
    "encoder_conf.dropout": _DROPOUT,
    "bridge_conf": group,
    "bridge_conf.noise": number(least=0),
    "llm_conf": group,
    "llm_conf.model": text,
    "llm_conf.tuning": choice("full", "frozen", "lora", "qlora"),
    "llm_conf.dtype": choice("float32", "bfloat16", "float16", "auto"),
    "llm_conf.random_init": boolean,
    "llm_conf.gradient_checkpointing": boolean,
    "llm_conf.lora": group,
    "llm_conf.lora.r": integer(1, 10**5),
    "llm_conf.lora.lora_alpha": number(above=0),
    "llm_conf.lora.lora_dropout": _DROPOUT,
    "ctc_conf": group,
    "ctc_conf.dropout_rate": _DROPOUT,
    "max_hotword_tokens": integer(0, 10**4),
    "model_conf": group,
    "model_conf.ctc_weight": number(0, 1),
    "model_conf.label_smoothing": _DROPOUT,
    "model_conf.feature_dropout": _DROPOUT,
    "model_conf.autocast": choice("float32", "bfloat16", "auto"),
}

Choice = TypeVar("Choice")


def read_config(path: Path) -> dict:
    """Read the ``config.yaml`` of an exported model (stage 10).

    Raises:
        UserError: the file is missing or not YAML, an option group is not a mapping,
            a value is out of its range, or a part has no pretrained model.
    """
    config = read_yaml(path)
    groups = [key for key in MODEL_KEYS if key.endswith("_conf")]
    for key in (*groups, "stands_on", "generation", REVISIONS):
        if not isinstance(config.get(key, {}), (dict, NoneType)):
            raise UserError(f"{path}: {key} is not a mapping of names to values")
    check_revisions(config.get(REVISIONS) or {}, path)
    for part in ["encoder", "llm"] if config.get("llm") else ["encoder"]:
        name = (config.get(f"{part}_conf") or {}).get("model")
        if not name or not isinstance(name, str):
            raise UserError(f"{path}: {part}_conf names no model")
    return check_options(config, MODEL_SCHEMA, str(path))


def pretrained_names(config: dict) -> list[str]:
    """Return the pretrained models that a model configuration is based on, sorted."""
    parts = ["encoder_conf"] + (["llm_conf"] if config.get("llm") else [])
    names = [config[part]["model"] for part in parts]
    return sorted(set(names))


def check_revisions(revisions: Mapping, path: Path) -> None:
    """Raise UserError for recorded revisions that are not commits of the hub."""
    for name, commit in revisions.items():
        if not (isinstance(commit, str) and COMMIT.fullmatch(commit)):
            raise UserError(f"{path}: {REVISIONS}: {name}: {commit!r} is not a commit")


def read_revisions(path: Path) -> dict[str, str]:
    """Return the hub commits that a ``config.yaml`` records; empty without a file.

    Raises:
        UserError: the file is not YAML, or a revision is not a commit.
    """
    if not path.exists():
        return {}
    revisions = read_yaml(path).get(REVISIONS) or {}
    if not isinstance(revisions, dict):
        raise UserError(f"{path}: {REVISIONS} is not a mapping of names to commits")
    check_revisions(revisions, path)
    return revisions


def hub_revisions(config: dict, pinned: Mapping[str, str]) -> dict[str, str]:
    """Return the hub commits of the pretrained models of a model configuration.

    Args:
        config: with the names of the models.
        pinned: commits that are used again.
    """
    parts = ("encoder", "llm") if config.get("llm") else ("encoder",)
    names = {(config.get(f"{part}_conf") or {}).get("model") for part in parts}
    commits = {
        name: snapshot_commit(resolve_model(name, revision=pinned.get(name)))
        for name in names
        if isinstance(name, str)
    }
    return {name: commit for name, commit in sorted(commits.items()) if commit}


def pin_models(config: dict, revisions: Mapping[str, str]) -> dict:
    """Return a model configuration with the folders of pinned models as their names."""
    pinned = dict(config)
    for part in ("encoder_conf", "llm_conf"):
        name = (config.get(part) or {}).get("model")
        if name in revisions:
            folder = resolve_model(name, revision=revisions[name])
            pinned[part] = {**config[part], "model": str(folder)}
    return pinned


def models_of_config(path: str | Path) -> list[str]:
    """Return the pretrained models that a training configuration needs.

    They are ``encoder_conf.model``, ``llm_conf.model`` and the hub ids of
    ``init_param``. A part that is null or has no ``model`` needs none.

    Raises:
        UserError: the file is missing or not a YAML mapping, or a value is out of its
            range.
    """
    if not Path(path).exists():
        raise UserError(f"no such configuration: {path}")
    config = check_options(read_yaml(path), MODEL_SCHEMA, str(path))
    names = []
    for part in ("encoder", "llm"):
        conf = config.get(f"{part}_conf") or {}
        if config.get(part, True) is None:
            continue
        if conf.get("model"):
            names.append(str(conf["model"]))
    starts = [str(start).partition(":")[0] for start in config.get("init_param") or []]
    return names + [start for start in starts if is_hub_id(start)]


def choose(option: str, name: object, choices: Mapping[str, Choice]) -> Choice:
    """Return the class that an option names.

    Raises:
        ValueError: the name is unknown; lists the known ones.
    """
    if not isinstance(name, str) or name not in choices:
        raise ValueError(f"{option} {name!r}: one of {', '.join(choices)}")
    return choices[name]
