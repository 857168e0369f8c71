"""The configuration of a model: its keys and the pretrained models it names."""

from __future__ import annotations

from pathlib import Path

from speechllm.pretrained.checkpoint import is_hub_id
from speechllm.utils.errors import UserError
from speechllm.utils.io import read_yaml


def models_of_config(path: str | Path) -> list[str]:
    """The pretrained models of a training configuration: encoder, LLM, start.

    They stand in ``encoder_conf.model`` and ``llm_conf.model``; a part that is
    absent, or has no such entry, needs none. ``init_param`` may name models, too.

    Raises:
        UserError: no such file, or not a YAML mapping.
    """
    import yaml

    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"no such configuration: {path}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({error})") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a mapping of options")
    names = []
    for part in ("encoder", "llm"):
        conf = config.get(f"{part}_conf") or {}
        if config.get(part, True) is None or not isinstance(conf, dict):
            continue
        if conf.get("model"):
            names.append(str(conf["model"]))
    starts = [str(start).partition(":")[0] for start in config.get("init_param") or []]
    return names + [start for start in starts if is_hub_id(start)]


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


def pretrained_names(config: dict) -> list[str]:
    """Names of the pretrained models that a configuration builds on."""
    parts = ["encoder_conf"] + (["llm_conf"] if config.get("llm") else [])
    names = [config[part]["model"] for part in parts]
    return sorted(set(names))


def read_config(path: Path) -> dict:
    """Read the configuration of a model that stage 11 wrote."""
    config = read_yaml(path)
    for key in (*(key for key in MODEL_KEYS if key.endswith("_conf")), "stands_on"):
        if not isinstance(config.get(key) or {}, dict):
            raise UserError(f"{path}: {key} is no mapping of names to values")
    for part in ["encoder", "llm"] if config.get("llm") else ["encoder"]:
        name = (config.get(f"{part}_conf") or {}).get("model")
        if not name or not isinstance(name, str):
            raise UserError(f"{path}: {part}_conf names no model")
    return config
