"""Upload an exported model with a model card to the Hugging Face hub.

The token is that of `hf auth login` or of the variable HF_TOKEN.
"""

from __future__ import annotations

import argparse

from speechllm.utils.errors import UserError, run_main


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="speechllm.bin.upload", description=__doc__)
    parser.add_argument("--model", required=True, help="exported model folder")
    parser.add_argument(
        "--repo_id", required=True, help="<user or organisation>/<name>"
    )
    parser.add_argument("--results", help="RESULTS.json with scores for the card")
    parser.add_argument("--system", help="the system's name in RESULTS.json")
    parser.add_argument(
        "--private", action="store_true", help="make a new repository private"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    from speechllm.export.hub import read_results, upload

    if args.system and not args.results:
        raise UserError("--system names a system of --results; give that too")
    rows = read_results(args.results, args.system) if args.results else []
    print(upload(args.model, args.repo_id, rows, private=args.private))


if __name__ == "__main__":
    run_main(main)
