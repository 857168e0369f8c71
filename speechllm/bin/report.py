"""Gather all scores below an experiment folder into RESULTS.md and RESULTS.json."""

from __future__ import annotations

import argparse

from speechllm.utils.errors import run_main


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="speechllm.bin.report", description=__doc__)
    parser.add_argument("--exp_root", default="exp", help="folder of the experiments")
    parser.add_argument(
        "--output",
        default="RESULTS",
        help="path without suffix; .md and .json are made",
    )
    parser.add_argument(
        "--command",
        action="append",
        default=[],
        help="a command to name in the report as what made the numbers (repeatable)",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    from speechllm.evaluation.report import write_report

    rows = write_report(args.exp_root, args.output, args.command)
    print(f"{args.output}.md and {args.output}.json: {len(rows)} scores")


if __name__ == "__main__":
    run_main(main)
