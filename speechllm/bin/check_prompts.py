"""Check that the LLM's tokenizer can write the answers, and show the prompts."""

from __future__ import annotations

import argparse
from pathlib import Path

from speechllm.data.check_prompts import check_prompts
from speechllm.utils.errors import UserError, run_main
from speechllm.utils.io import read_yaml


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="training config")
    parser.add_argument("--prompts", required=True, help="prompts file")
    parser.add_argument("--examples", required=True, nargs="+", type=Path)
    args = parser.parse_args(argv)

    from speechllm.models.llm import load_llm_tokenizer

    config = read_yaml(args.config)
    if not config.get("llm", "causal_lm"):
        print(f"{args.config}: no LLM, nothing to check")
        return
    name = (config.get("llm_conf") or {}).get("model")
    if name is None:
        raise UserError(f"{args.config}: llm_conf has no model")
    for line in check_prompts(load_llm_tokenizer(name), args.prompts, args.examples):
        print(line)


if __name__ == "__main__":
    run_main(main)
