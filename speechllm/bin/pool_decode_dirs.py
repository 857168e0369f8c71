"""Join the hypotheses of several decode dirs, such as those of folds, to one.

    python -m speechllm.bin.pool_decode_dirs \\
        --decode_dirs exp_folds/{1,2,3}/speechllm_train/decode/test \\
        --output exp_folds/pooled/speechllm_train/decode/test
"""

from __future__ import annotations

import argparse

from speechllm.utils.errors import run_main


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.pool_decode_dirs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--decode_dirs", required=True, nargs="+", help="decode dirs of other examples"
    )
    parser.add_argument("--output", required=True, help="decode dir to write")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Write the decode dir."""
    args = get_parser().parse_args(argv)

    from speechllm.inference.decode_dir import pool_decode_dirs

    count = pool_decode_dirs(args.decode_dirs, args.output)
    print(f"{args.output}: {count} hypotheses of {len(args.decode_dirs)} decode dirs")


if __name__ == "__main__":
    run_main(main)
