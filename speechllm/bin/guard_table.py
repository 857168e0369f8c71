"""Texts with and without the guard on silence, noise, music, foreign speech and more."""

from __future__ import annotations

import argparse
from pathlib import Path

from speechllm.utils.errors import UserError, run_main
from speechllm.utils.io import atomic_open


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, decode, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a folder with guard.yaml")
    parser.add_argument("--examples", required=True, help="test example dir")
    parser.add_argument("--music", nargs="*", default=[], help="audio files of music")
    parser.add_argument(
        "--foreign",
        nargs="*",
        default=[],
        metavar="LANGUAGE=FILE",
        help="speech of languages that the model has not learnt",
    )
    parser.add_argument(
        "--words",
        nargs="*",
        default=[],
        metavar="WORD=FILE",
        help="recordings of one word, to be said thirty times",
    )
    parser.add_argument("--limit", type=int, help="only so many test examples")
    parser.add_argument("--config", help="YAML of stage 12: how answers are searched")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", help="Markdown file to write")
    args = parser.parse_args(argv)

    from speechllm.benchmarks.guard import conditions, guard_rows, guard_table
    from speechllm.data.examples import read_examples
    from speechllm.inference.speech_to_text import SpeechToText
    from speechllm.inference.tuning import read_generation

    generation = read_generation(args.config)
    model = SpeechToText.from_pretrained(args.model, args.device)
    found = conditions(
        read_examples(args.examples, args.limit),
        [Path(path) for path in args.music],
        [named_file(text, "--foreign") for text in args.foreign],
        [named_file(text, "--words") for text in args.words],
    )
    table = guard_table(guard_rows(model, found, generation, args.batch_size))
    print(table, end="")
    if args.output:
        with atomic_open(args.output) as stream:
            stream.write(table)


def named_file(text: str, option: str) -> tuple[str, str]:
    """Take ``NAME=FILE`` apart."""
    name, mark, path = text.partition("=")
    if not (name and mark and path):
        raise UserError(f"{option} {text!r}: expected NAME=FILE")
    return name, path


if __name__ == "__main__":
    run_main(main)
