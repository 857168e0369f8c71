"""Write training configs with another encoder or LLM (--encoder, --llm of a recipe).

    python -m speechllm.bin.replace_models --llm google/gemma-3-270m \\
        --config conf/train.yaml exp/my_training/train_config.yaml

The encoder's kind (whisper, hubert, auto) follows from its own config.json.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from speechllm.utils.errors import UserError, run_main
from speechllm.utils.io import atomic_open


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.replace_models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config",
        required=True,
        action="append",
        nargs=2,
        type=Path,
        metavar=("FILE", "NEW"),
        help="training config to read, and the one to write; repeatable",
    )
    parser.add_argument("--encoder", metavar="NAME", help="hub id or folder")
    parser.add_argument("--llm", metavar="NAME", help="hub id or folder")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Write the configs; print what is replaced."""
    args = get_parser().parse_args(argv)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("speechllm").setLevel(logging.INFO)

    import yaml

    from speechllm.training.options import read_training_config
    from speechllm.training.replace_models import replace_models

    replaced = {}
    for path, output in args.config:
        config = read_training_config(path)
        replaced[path, output] = replace_models(config, args.encoder, args.llm)
    if args.llm and not any(new.get("llm", True) for new, _ in replaced.values()):
        files = ", ".join(str(path) for path, _ in args.config)
        raise UserError(f"--llm {args.llm}: no LLM in {files}; leave the option out")
    for (path, output), (new, lines) in replaced.items():
        output.parent.mkdir(parents=True, exist_ok=True)
        content = yaml.safe_dump(new, sort_keys=False, allow_unicode=True)
        with atomic_open(output) as stream:
            stream.write(f"# {path} with other models; written by stage 6\n{content}")
        for line in lines:
            print(f"{path}: {line}")


if __name__ == "__main__":
    run_main(main)
