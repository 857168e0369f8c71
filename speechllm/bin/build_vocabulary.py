"""Build the CTC branch's vocabulary from text tables: tokens.txt (and bpe.model)."""

from __future__ import annotations

import argparse
from pathlib import Path

from speechllm.utils.errors import UserError, run_main


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--text", required=True, nargs="+", type=Path, help="tables such as text_ctc"
    )
    parser.add_argument("--type", choices=("char", "bpe"), default="char")
    parser.add_argument(
        "--size", type=int, help="tokens in all; needed for bpe, a limit for char"
    )
    parser.add_argument("--output", required=True, type=Path, help="folder")
    args = parser.parse_args(argv)

    from speechllm.data.ctc_vocabulary import (
        build_bpe_vocabulary,
        build_character_vocabulary,
    )

    if args.type == "char":
        tokens = build_character_vocabulary(args.text, args.output, args.size)
    elif args.size is None:
        raise UserError("--type bpe needs --size")
    else:
        tokens = build_bpe_vocabulary(args.text, args.output, args.size)
    print(f"{args.output / 'tokens.txt'}: {len(tokens)} tokens")


if __name__ == "__main__":
    run_main(main)
