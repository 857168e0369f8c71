"""Upload an exported model with a model card to the Hugging Face hub.

    python -m speechllm.bin.upload --model exp/speechllm_train/model \\
        --repo_id user/name --results RESULTS.json --system speechllm_train

The token is read from the variable HF_TOKEN or from `hf auth login`.
"""

from __future__ import annotations

import argparse

from speechllm.utils.errors import UserError, run_main


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.upload",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="exported model folder")
    parser.add_argument(
        "--repo_id", required=True, help="<user or organisation>/<name>"
    )
    parser.add_argument("--results", help="RESULTS.json with scores for the card")
    parser.add_argument("--system", help="name of the system in RESULTS.json")
    parser.add_argument(
        "--license", help="licence of the weights, such as apache-2.0, for the card"
    )
    parser.add_argument(
        "--private", action="store_true", help="make a new repository private"
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Upload the model and print its address."""
    args = get_parser().parse_args(argv)
    if args.system and not args.results:
        raise UserError("--system names a system of --results: give --results too")

    from speechllm.export.hub import read_results, upload

    rows = read_results(args.results, args.system) if args.results else []
    print(upload(args.model, args.repo_id, rows, args.private, args.license))


if __name__ == "__main__":
    run_main(main)
