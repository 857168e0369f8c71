"""Compare the errors in rare words with and without lists of hotwords.

    python -m speechllm.bin.hotword_table --model exp/speechllm_train/model \\
        --examples dump/examples/test --train data/train
"""

from __future__ import annotations

import argparse

from speechllm.decoding.option_flags import add_decoding_flags
from speechllm.utils.errors import run_main
from speechllm.utils.io import atomic_open


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.hotword_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help="model folder")
    add("--examples", required=True, help="example dir of the test set")
    add("--train", required=True, help="data dir of the training set")
    add(
        "--sizes",
        type=int,
        nargs="+",
        default=[10, 100, 1000],
        help="words in each list [10 100 1000]",
    )
    add(
        "--hotword_bonus",
        type=float,
        nargs="+",
        default=[],
        help="score added per token of a hotword [that of the model]",
    )
    add_decoding_flags(parser)
    add("--output", help="Markdown file to write")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Print the table, and write it to ``--output``."""
    args = get_parser().parse_args(argv)

    from speechllm.benchmarks.hotwords import benchmark_hotwords

    table = benchmark_hotwords(
        args.model,
        args.examples,
        args.train,
        args.sizes,
        args.hotword_bonus,
        args.limit,
        args.config,
        args.batch_size,
        args.device,
    )
    print(table, end="")
    if args.output:
        with atomic_open(args.output) as stream:
            stream.write(table)


if __name__ == "__main__":
    run_main(main)
