"""Score a decode dir: WER and CER (recognition), BLEU, chrF and TER (translation).

    python -m speechllm.bin.score --examples dump/examples/test \\
        --decode_dir exp/speechllm_train/decode/test

Translations are also scored with COMET if tools/install_comet.sh has been run.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING

from speechllm.utils.errors import UserError, run_main

if TYPE_CHECKING:
    from speechllm.text.normalizers import Normalizer


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
    add_normalizer(parser)
    return parser


def add_normalizer(parser: argparse.ArgumentParser) -> None:
    """Add the option of the text normaliser."""
    parser.add_argument(
        "--normalizer",
        default="speechllm",
        help="text normaliser of error rates: speechllm; whisper, as for published "
        "figures; or whisper:FOLDER, with the spellings of a Whisper model's folder "
        "[speechllm]",
    )


def make_normalizer(name: str) -> Normalizer:
    """Return the normaliser of ``--normalizer``.

    Raises:
        UserError: another name.
    """
    from speechllm.pretrained.whisper_spelling import english_spelling
    from speechllm.text.normalizers import SPOKEN, WhisperNormalizer

    kind, colon, folder = name.partition(":")
    if name == "speechllm":
        return SPOKEN
    if kind != "whisper" or (colon and not folder):
        raise UserError(
            f"--normalizer takes speechllm, whisper or whisper:FOLDER, not {name!r}"
        )
    return WhisperNormalizer(partial(english_spelling, folder or None))


def main(argv: list[str] | None = None) -> None:
    """Write the scores and print them, one per line."""
    args = get_parser().parse_args(argv)

    from speechllm.evaluation.score import score_decode_dir
    from speechllm.evaluation.tables import figure

    rows, left_out = score_decode_dir(
        args.examples, args.decode_dir, make_normalizer(args.normalizer)
    )
    for row in rows:
        languages = row["language"]
        if row["task"] != "asr":
            languages += "-" + row["target_language"]
        value = figure(row["metric"], row["value"])
        if "interval" in row:
            value += f" ± {row['interval']:.2f}"
        print(f"{row['task']} {languages} {row['metric']} {value}")
    for warning in left_out:
        print(f"warning: {warning}", file=sys.stderr)
    if not rows:
        raise UserError(f"{args.decode_dir}: no example of it has a task to score")


if __name__ == "__main__":
    run_main(main)
