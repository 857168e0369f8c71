"""Write the example dir of some tasks from formatted data dirs (stage 5).

    python -m speechllm.bin.make_examples --input dump/raw/train \\
        --tasks asr:en st:en:fr --output dump/examples/train
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from speechllm.utils.errors import run_main


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.make_examples",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        help='formatted data dirs, with an optional weight: "dump/raw/more*0.5"',
    )
    parser.add_argument(
        "--tasks",
        required=True,
        nargs="+",
        help='e.g. "asr:en st:en:fr asr_st:en:fr", with an optional weight: "asr:en*2"',
    )
    parser.add_argument(
        "--output", required=True, type=Path, help="example dir to write"
    )
    parser.add_argument(
        "--plain_transcripts",
        action="store_true",
        help="asr targets without case and punctuation",
    )
    parser.add_argument(
        "--keep_empty",
        action="store_true",
        help="keep utterances without words in the transcript (for test sets)",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Write the examples and print their number per task."""
    args = get_parser().parse_args(argv)

    from speechllm.data.examples import make_examples

    tasks = [task for argument in args.tasks for task in argument.split()]
    counts, dropped = make_examples(
        args.input, args.output, tasks, args.plain_transcripts, args.keep_empty
    )
    for task, count in sorted(counts.items()):
        print(f"{args.output}: {count} examples of {task}")
    for reason, count in sorted(Counter(entry.reason for entry in dropped).items()):
        print(f"{args.output}: {count} left out: {reason}")


if __name__ == "__main__":
    run_main(main)
