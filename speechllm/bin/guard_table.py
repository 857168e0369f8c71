"""Compare texts with and without the guard on silence, noise, music and speech.

    python -m speechllm.bin.guard_table --model exp/speechllm_train/model \\
        --examples dump/examples/test --music moh/*.wav --foreign it=it/hello.wav
"""

from __future__ import annotations

import argparse

from speechllm.decoding.option_flags import add_decoding_flags
from speechllm.utils.errors import UserError, run_main
from speechllm.utils.io import atomic_open


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.guard_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help="model folder with guard.yaml")
    add("--examples", required=True, help="example dir of the test set")
    add("--music", nargs="+", default=[], help="audio files of music")
    add(
        "--foreign",
        nargs="+",
        default=[],
        metavar="LANGUAGE=FILE",
        help="speech in languages that the model was not trained on",
    )
    add(
        "--words",
        nargs="+",
        default=[],
        metavar="WORD=FILE",
        help="recordings of one word, which are repeated thirty times",
    )
    add(
        "--conditions",
        nargs="+",
        default=[],
        metavar="NAME",
        help="rows, by the beginning of their names, such as 'speech in' [all]",
    )
    add_decoding_flags(parser)
    add("--output", help="Markdown file to write")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Print the table, and write it to ``--output``."""
    args = get_parser().parse_args(argv)
    foreign = [parse_named_file(text, "--foreign") for text in args.foreign]
    words = [parse_named_file(text, "--words") for text in args.words]

    from speechllm.benchmarks.guard import benchmark_guard

    table = benchmark_guard(
        args.model,
        args.examples,
        args.music,
        foreign,
        words,
        args.limit,
        args.config,
        args.batch_size,
        args.device,
        args.conditions,
    )
    print(table, end="")
    if args.output:
        with atomic_open(args.output) as stream:
            stream.write(table)


def parse_named_file(text: str, option: str) -> tuple[str, str]:
    """Parse ``NAME=FILE``.

    Raises:
        UserError: the text has another form.
    """
    name, mark, path = text.partition("=")
    if not (name and mark and path):
        raise UserError(f"{option} {text!r}: expected NAME=FILE")
    return name, path


if __name__ == "__main__":
    run_main(main)
