"""Build the vocabulary of the CTC branch: tokens.txt, and bpe.model for subwords.

    python -m speechllm.bin.build_vocabulary --text dump/examples/train/text_ctc \\
        --type bpe --size 1000 --output dump/ctc_vocabulary
"""

from __future__ import annotations

import argparse
from pathlib import Path

from speechllm.utils.errors import UserError, run_main


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.build_vocabulary",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--text", required=True, nargs="+", type=Path, help="text tables, e.g. text_ctc"
    )
    parser.add_argument(
        "--type", choices=("char", "bpe"), default="char", help="unit of a token [char]"
    )
    parser.add_argument(
        "--copy_from",
        type=Path,
        help="folder of tokens.txt and bpe.model of a trained model, to copy in place "
        "of building a vocabulary",
    )
    parser.add_argument("--size", type=int, help="number of pieces, for bpe")
    parser.add_argument(
        "--bpemode",
        choices=("bpe", "unigram"),
        default="bpe",
        help="sentencepiece's model, for bpe [bpe]",
    )
    parser.add_argument(
        "--input_sentence_size",
        type=int,
        default=1_000_000,
        help="random sentences to train on, for bpe; 0: all [1000000]",
    )
    parser.add_argument(
        "--min_count",
        type=int,
        default=1,
        help="least number of occurrences of a character, for char [1]",
    )
    parser.add_argument(
        "--coverage",
        nargs="+",
        type=Path,
        default=[],
        help="text tables of which to print the share of characters with a label",
    )
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Build the vocabulary."""
    args = get_parser().parse_args(argv)

    from speechllm.data.ctc_vocabulary import (
        LEAST_COVERAGE,
        build_bpe_vocabulary,
        build_character_vocabulary,
        copy_vocabulary,
        measure_coverage,
    )

    if args.copy_from is not None:
        tokens = copy_vocabulary(args.copy_from, args.output, args.text)
    elif args.type == "char":
        if args.size is not None:
            raise UserError("--size is for bpe; --min_count leaves out rare characters")
        tokens = build_character_vocabulary(args.text, args.output, args.min_count)
    elif args.size is None:
        raise UserError("--type bpe needs --size")
    else:
        tokens = build_bpe_vocabulary(
            args.text, args.output, args.size, args.bpemode, args.input_sentence_size
        )
    print(f"{args.output / 'tokens.txt'}: {len(tokens)} tokens")
    for table in args.coverage:
        coverage = measure_coverage(tokens, table)
        warning = "" if coverage.share >= LEAST_COVERAGE else "warning: "
        print(f"{warning}coverage of {table}: {coverage}")


if __name__ == "__main__":
    run_main(main)
