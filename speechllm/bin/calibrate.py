"""Calibrate the confidence of words on a development set (writes confidence.json).

    python -m speechllm.bin.calibrate --model exp/speechllm_train/model \\
        --examples dump/examples/dev --test_examples dump/examples/test
"""

from __future__ import annotations

import argparse

from speechllm.bin.tune import tuning_parser
from speechllm.utils.errors import run_main


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = tuning_parser("calibrate", __doc__)
    add = parser.add_argument
    add("--test_examples", help="example dir of a test set to evaluate on")
    add("--picture", help="reliability diagram of the test set to write, .png or .pdf")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Fit, write and evaluate the calibration."""
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.picture and not args.test_examples:
        parser.error("--picture needs --test_examples")

    from speechllm.benchmarks.reliability import (
        reliability_curves,
        reliability_picture,
        reliability_summary,
    )
    from speechllm.data.examples import read_examples
    from speechllm.decoding.confidence import (
        CALIBRATION_FILE,
        read_calibration,
        write_calibration,
    )
    from speechllm.inference.loading import find_model
    from speechllm.inference.speech_to_text import SpeechToText
    from speechllm.inference.tuning import (
        calibrate,
        new_version,
        set_aside_if_damaged,
    )

    examples = read_examples(args.examples, args.limit)
    path = find_model(args.model) / CALIBRATION_FILE
    set_aside_if_damaged(read_calibration, path)
    model = SpeechToText.from_pretrained(args.model, args.device, config=args.config)
    made_from = f"the words of {len(examples)} examples"
    with new_version(path, args.if_possible):
        options = model.options({"word_times": True})
        calibration = calibrate(model, examples, options, args.batch_size, made_from)
        write_calibration(calibration, path.parent)
        print(f"{path}: calibrated on {made_from}")
        if not args.test_examples:
            return
        test = read_examples(args.test_examples)
        curves = reliability_curves(model, calibration, test, options, args.batch_size)
        print(reliability_summary(curves))
        if args.picture:
            reliability_picture(args.picture, curves)
            print(f"{args.picture}: written")


if __name__ == "__main__":
    run_main(main)
