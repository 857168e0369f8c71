"""Check that the LLM's tokenizer preserves the target texts, and show the prompts.

    python -m speechllm.bin.check_prompts --config conf/train.yaml \\
        --prompts conf/prompts.yaml --examples dump/examples/train
"""

from __future__ import annotations

import argparse
from pathlib import Path

from speechllm.utils.errors import UserError, run_main
from speechllm.utils.io import read_yaml


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.check_prompts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="training config, YAML")
    parser.add_argument("--prompts", required=True, help="prompts file, YAML")
    parser.add_argument(
        "--examples", required=True, nargs="+", type=Path, help="example dirs"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Print a line per task, and warnings."""
    args = get_parser().parse_args(argv)
    config = read_yaml(args.config)
    if not config.get("llm", "causal_lm"):
        print(f"{args.config}: no LLM, nothing to check")
        return
    name = (config.get("llm_conf") or {}).get("model")
    if name is None:
        raise UserError(f"{args.config}: llm_conf has no model")

    from speechllm.data.check_prompts import check_prompts
    from speechllm.models.llm import load_llm_tokenizer

    for line in check_prompts(load_llm_tokenizer(name), args.prompts, args.examples):
        print(line)


if __name__ == "__main__":
    run_main(main)
