"""Score a decoded set: WER and CER (recognition), BLEU, chrF and TER (translation).

Translations get COMET too where tools/install_comet.sh was run."""

from __future__ import annotations

import argparse
import sys

from speechllm.utils.errors import UserError, run_main


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="speechllm.bin.score", description=__doc__)
    parser.add_argument(
        "--examples", required=True, help="example dir with text and utt2task"
    )
    parser.add_argument(
        "--decode_dir",
        required=True,
        help="folder whose text holds the hypotheses; score_* folders are made in it",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    from speechllm.evaluation.score import score_decode_dir

    rows, left_out = score_decode_dir(args.examples, args.decode_dir)
    for row in rows:
        pair = row["language"]
        if row["task"] != "asr":
            pair += "-" + row["target_language"]
        print(f"{row['task']} {pair} {row['metric']} {row['value']:.2f}")
    for sentence in left_out:
        print(f"warning: {sentence}", file=sys.stderr)
    if not rows:
        raise UserError(f"{args.decode_dir}: no example of it has a task to score")


if __name__ == "__main__":
    run_main(main)
