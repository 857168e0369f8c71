"""Write the table of a series of experiments: what they train, error rates and time.

    python -m speechllm.bin.ablation_table --exp_root exp/ablations \\
        --systems conv conv_ctc --compare_with conv --output exp/ABLATIONS.md
"""

from __future__ import annotations

import argparse

from speechllm.utils.errors import run_main


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.ablation_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--exp_root", required=True, help="folder of the experiments")
    parser.add_argument(
        "--systems", required=True, nargs="+", help="experiments, a line each"
    )
    parser.add_argument(
        "--compare_with", required=True, help="experiment that others are compared with"
    )
    parser.add_argument("--output", required=True, help="Markdown file to write")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Write the table."""
    args = get_parser().parse_args(argv)

    from speechllm.evaluation.ablation_table import ablation_table
    from speechllm.utils.io import atomic_open

    table = ablation_table(args.exp_root, args.systems, args.compare_with)
    with atomic_open(args.output) as stream:
        stream.write(f"# Ablations\n\n{table}")


if __name__ == "__main__":
    run_main(main)
