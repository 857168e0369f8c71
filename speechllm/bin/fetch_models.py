"""Fetch the pretrained models that a configuration names.

    python -m speechllm.bin.fetch_models openai/whisper-base
    python -m speechllm.bin.fetch_models --config conf/train.yaml

prints, per model, its name and the local folder it is loaded from. Training and
decoding do the same on their own; here it is done ahead, once, with the network on.
"""

from __future__ import annotations

import argparse
import logging

from speechllm.models.config import models_of_config
from speechllm.utils.errors import run_main


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


if __name__ == "__main__":
    run_main(main)
