"""Compare two decode dirs by the paired bootstrap: is the difference chance?"""

from __future__ import annotations

import argparse
from pathlib import Path

from speechllm.utils.errors import run_main


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="speechllm.bin.compare", description=__doc__)
    parser.add_argument(
        "--examples", required=True, help="example dir that both have answered"
    )
    parser.add_argument("--a", required=True, help="decode dir <system>/<decode>/<set>")
    parser.add_argument("--b", required=True, help="decode dir of the other system")
    parser.add_argument("--samples", type=int, default=1000, help="draws [1000]")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    from speechllm.evaluation.significance import compare, comparison_table

    rows = compare(args.examples, args.a, args.b, args.samples)
    names = [
        "/".join(Path(folder).parts[-3:-1]) or folder for folder in (args.a, args.b)
    ]
    print(comparison_table(rows, *names, args.samples), end="")


if __name__ == "__main__":
    run_main(main)
