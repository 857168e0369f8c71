"""Compare two decode dirs: paired bootstrap significance test.

    python -m speechllm.bin.compare --examples dump/examples/test \\
        --a exp/whisper/decode_beam5/test --b exp/speechllm_train/decode/test

With --examples_b the translations of two tasks are compared: those of asr_st, which
come with a transcript, and those of st.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from speechllm.bin.score import add_normalizer, make_normalizer
from speechllm.utils.errors import run_main


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--examples", required=True, help="example dir that both systems decoded"
    )
    parser.add_argument("--a", required=True, help="decode dir <system>/<decode>/<set>")
    parser.add_argument("--b", required=True, help="decode dir of the other system")
    parser.add_argument(
        "--examples_b",
        help="example dir that b decoded, where it is another, of the same set",
    )
    parser.add_argument(
        "--samples", type=int, default=1000, help="bootstrap samples [1000]"
    )
    add_normalizer(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Print the comparison as a table."""
    args = get_parser().parse_args(argv)

    from speechllm.evaluation.significance import (
        compare,
        compare_other_tasks,
        comparison_table,
    )

    normalizer = make_normalizer(args.normalizer)
    if args.examples_b:
        examples = args.examples, args.examples_b
        rows = compare_other_tasks(examples, (args.a, args.b), args.samples)
    else:
        rows = compare(args.examples, args.a, args.b, args.samples, normalizer)
    names = system_name(args.a), system_name(args.b)
    table = comparison_table(rows, *names, args.samples, normalizer)
    print(table, end="")


def system_name(decode_dir: str) -> str:
    """Return ``<system>/<decode>`` of a decode dir ``<system>/<decode>/<set>``."""
    return "/".join(Path(decode_dir).parts[-3:-1]) or decode_dir


if __name__ == "__main__":
    run_main(main)
