"""Collect all scores of an experiment folder in RESULTS.md and RESULTS.json.

    python -m speechllm.bin.report --exp_root exp --output RESULTS

The report covers every scored decode dir below the folder.
"""

from __future__ import annotations

import argparse

from speechllm.utils.errors import run_main


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--exp_root", default="exp", help="experiment folder [exp]")
    parser.add_argument(
        "--output",
        default="RESULTS",
        help="path without suffix of the .md and .json file [RESULTS]",
    )
    parser.add_argument(
        "--command",
        action="append",
        default=[],
        help="command that produced the scores, named in the report; repeatable",
    )
    parser.add_argument(
        "--compare_with",
        metavar="SYSTEM/DECODE",
        help="decode dirs <exp_root>/<system>/<decode> that all other systems are "
        "compared with by paired bootstrap [those of the model that was exported last]",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Write the report."""
    args = get_parser().parse_args(argv)

    from speechllm.evaluation.report import write_report

    rows = write_report(args.exp_root, args.output, args.command, args.compare_with)
    print(f"{args.output}.md and {args.output}.json: {len(rows)} scores")


if __name__ == "__main__":
    run_main(main)
