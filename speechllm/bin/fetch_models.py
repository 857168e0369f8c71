"""Fetch the pretrained models that a configuration names.

    python -m speechllm.bin.fetch_models openai/whisper-base
    python -m speechllm.bin.fetch_models --config conf/train.yaml

prints, per model, its name and the local folder it is loaded from. Training and
decoding do the same on their own; here it is done ahead, once, with the network on.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from speechllm.pretrained.checkpoint import is_hub_id
from speechllm.utils.errors import UserError, run_main


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Fetch pretrained models and print where they lie.",
    )
    parser.add_argument("models", nargs="*", metavar="NAME", help="hub id or folder")
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="training configuration whose encoder and LLM are fetched; repeatable",
    )
    parser.add_argument(
        "--cache_dir",
        help="where models are kept (default: ${SPEECHLLM_CACHE:-~/.cache/speechllm})",
    )
    args = parser.parse_args(argv)
    if not args.models and not args.config:
        parser.error("name a model or a --config")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("speechllm").setLevel(logging.INFO)

    from speechllm.pretrained.resolve import resolve_model

    names = list(args.models)
    for config in args.config:
        names += models_of_config(config)
    for name in dict.fromkeys(names):
        print(f"{name}\t{resolve_model(name, args.cache_dir)}", flush=True)


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


if __name__ == "__main__":
    run_main(main)
