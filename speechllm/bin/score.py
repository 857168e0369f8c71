"""Score a decode dir: WER and CER (recognition), BLEU, chrF and TER (translation).

    python -m speechllm.bin.score --examples dump/examples/test \\
        --decode_dir exp/speechllm_train/decode/test

Translations are also scored with COMET if tools/install_comet.sh has been run.
"""

from __future__ import annotations

import argparse
import sys

from speechllm.utils.errors import UserError, run_main


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.score",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--examples", required=True, help="example dir with text and utt2task"
    )
    parser.add_argument(
        "--decode_dir",
        required=True,
        help="decode dir with the hypotheses in text; score_* folders are added to it",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Write the scores and print them, one per line."""
    args = get_parser().parse_args(argv)

    from speechllm.evaluation.score import score_decode_dir

    rows, left_out = score_decode_dir(args.examples, args.decode_dir)
    for row in rows:
        languages = row["language"]
        if row["task"] != "asr":
            languages += "-" + row["target_language"]
        print(f"{row['task']} {languages} {row['metric']} {row['value']:.2f}")
    for warning in left_out:
        print(f"warning: {warning}", file=sys.stderr)
    if not rows:
        raise UserError(f"{args.decode_dir}: no example of it has a task to score")


if __name__ == "__main__":
    run_main(main)
