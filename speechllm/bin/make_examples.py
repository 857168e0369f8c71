"""Write the example dir of some tasks over formatted data dirs."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from speechllm.utils.errors import run_main


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        help='formatted data dirs; with a weight: "dump/raw/more*0.5"',
    )
    parser.add_argument(
        "--tasks",
        required=True,
        nargs="+",
        help='such as "asr:en st:en:fr asr_st:en:fr"; with a weight: "asr:en*2"',
    )
    parser.add_argument("--output", required=True, type=Path, help="example dir")
    parser.add_argument(
        "--plain_transcripts",
        action="store_true",
        help="asr answers without case and punctuation",
    )
    args = parser.parse_args(argv)

    from speechllm.data.examples import make_examples

    tasks = [task for argument in args.tasks for task in argument.split()]
    counts, dropped = make_examples(
        args.input, args.output, tasks, args.plain_transcripts
    )
    for task, count in sorted(counts.items()):
        print(f"{args.output}: {count} examples of {task}")
    for reason, count in sorted(Counter(entry.reason for entry in dropped).items()):
        print(f"{args.output}: {count} left out: {reason}")


if __name__ == "__main__":
    run_main(main)
