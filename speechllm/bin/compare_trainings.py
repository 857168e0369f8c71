"""Compare trainings with different learning rates: a table and a picture.

    python -m speechllm.bin.compare_trainings \\
        --exp_dirs exp/learning_rates/*/speechllm_train --output exp/LEARNING_RATES
"""

from __future__ import annotations

import argparse

from speechllm.utils.errors import run_main


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.compare_trainings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--exp_dirs", nargs="+", required=True, help="folders of trainings"
    )
    parser.add_argument(
        "--output",
        required=True,
        help="path without suffix of the .md and .png to write",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Write the comparison, and print its table."""
    args = get_parser().parse_args(argv)

    from speechllm.evaluation.compare_trainings import compare_trainings

    print(compare_trainings(args.exp_dirs, args.output), end="")


if __name__ == "__main__":
    run_main(main)
