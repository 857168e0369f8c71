"""Benchmark long-form recognition on recordings joined from short prompts.

    python -m speechllm.bin.benchmark_long_form --model exp/speechllm_train/model \\
        --examples dump/examples/test --language en --minutes 10 --music moh \\
        --output_dir exp/long_form --config conf/decode.yaml

Joins: "pauses" (near silence between the prompts), "music" (hold music), "none" (no
gap) and "trimmed" (no gap and no silence at the edges). The table has the WER (CER
in languages written without spaces), compared with that of the same prompts decoded one
by one, and shares of correct word times; speechllm.benchmarks.long_form defines them.
"""

from __future__ import annotations

import argparse
from dataclasses import fields

from speechllm.benchmarks.long_form import JOINS, LongFormSet, benchmark_long_form
from speechllm.utils.errors import run_main
from speechllm.utils.io import read_yaml


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.benchmark_long_form",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help="model folder")
    add("--examples", required=True, help="example dir of the prompts")
    add("--language", default="en", help="language of the prompts [en]")
    add("--minutes", type=float, default=10, help="length of each recording [10]")
    add("--joins", nargs="+", default=JOINS, choices=JOINS, help="joins to test [all]")
    add("--music", help="folder of hold music, needed for the join 'music'")
    add("--output_dir", required=True, help="folder for the recordings and subtitles")
    add("--config", help="decoding config, YAML: batch_size and search options")
    add(
        "--max_seconds",
        type=float,
        default=15.0,
        help="maximum length of a segment [15]",
    )
    add(
        "--pause_seconds",
        type=float,
        default=0.1,
        help="minimum pause between segments [0.1]",
    )
    add("--seed", type=int, default=0, help="seed of the joins [0]")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Print the table row by row."""
    args = get_parser().parse_args(argv)
    options = read_yaml(args.config) if args.config else {}
    names = [field.name for field in fields(LongFormSet)]
    content = LongFormSet(**{name: getattr(args, name) for name in names})
    benchmark_long_form(args.model, content, options)


if __name__ == "__main__":
    run_main(main)
