"""Fit score weights, guard and confidence to a development set (stage 11).

    python -m speechllm.bin.tune --model exp/speechllm_train/model \\
        --examples dump/examples/dev

Writes score_weights.json (if the model's settings have a first pass), guard.yaml and
confidence.json into the model folder, from one decoding of the examples.
speechllm.bin.guard_thresholds and speechllm.bin.calibrate write one of them.
"""

from __future__ import annotations

import argparse

from speechllm.decoding.option_flags import add_decoding_flags
from speechllm.utils.errors import run_main


def tuning_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser of what all programs of stage 11 take.

    Args:
        name: of the module in ``speechllm.bin``.
        description: its docstring.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m speechllm.bin.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help="model folder of stage 10")
    add("--examples", required=True, help="example dir of the development set")
    add_decoding_flags(parser)
    add(
        "--if_possible",
        action="store_true",
        help="succeed where the model or the examples do not allow it",
    )
    return parser


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    return tuning_parser("tune", __doc__)


def main(argv: list[str] | None = None) -> None:
    """Decode the examples once; write thresholds and calibration."""
    args = get_parser().parse_args(argv)

    from speechllm.data.examples import read_examples
    from speechllm.decoding.confidence import (
        CALIBRATION_FILE,
        read_calibration,
        write_calibration,
    )
    from speechllm.inference.guard_thresholds import (
        THRESHOLDS_FILE,
        read_thresholds,
        write_thresholds,
    )
    from speechllm.inference.loading import find_model
    from speechllm.inference.score_weight_tuning import find_score_weights
    from speechllm.inference.score_weights import (
        WEIGHTS_FILE,
        read_score_weights,
        write_score_weights,
    )
    from speechllm.inference.speech_to_text import SpeechToText
    from speechllm.inference.tuning import (
        NBests,
        calibrate,
        find_thresholds,
        new_version,
        set_aside_if_damaged,
    )

    examples = read_examples(args.examples, args.limit)
    folder = find_model(args.model)
    guard, confidence = folder / THRESHOLDS_FILE, folder / CALIBRATION_FILE
    set_aside_if_damaged(read_thresholds, guard)
    set_aside_if_damaged(read_calibration, confidence)
    set_aside_if_damaged(read_score_weights, folder / WEIGHTS_FILE)
    model = SpeechToText.from_pretrained(folder, args.device, config=args.config)
    made_from = f"{len(examples)} examples"
    nbests: NBests = {}
    model.first_passes = {}  # the examples are encoded for each file
    model.set_thresholds(None)
    fixed = model.generation.get("rescore_decoder_weight") is not None
    if model.options({}).first_pass_beam_size and not fixed:
        with new_version(folder / WEIGHTS_FILE, args.if_possible):
            model.score_weights = find_score_weights(
                model,
                examples,
                model.options({"guard": False}),
                args.batch_size,
                made_from,
                nbests,
            )
            write_score_weights(model.score_weights, folder)
            weights = model.score_weights
            translation = ""
            if weights.translation:
                translation = f"; translations: decoder {weights.translation:g}"
            print(
                f"{folder / WEIGHTS_FILE}: decoder {weights.decoder:g}, CTC "
                f"{weights.ctc:g}, LLM {1 - weights.decoder - weights.ctc:.1g}"
                f"{translation}, from {made_from}"
            )
    with new_version(guard, args.if_possible):
        thresholds = find_thresholds(
            model,
            examples,
            model.options({"guard": False}),
            args.batch_size,
            made_from=made_from,
            nbests=nbests,
        )
        write_thresholds(thresholds, folder)
        model.set_thresholds(thresholds)
        print(f"{guard}: thresholds from {made_from}")
    with new_version(confidence, args.if_possible):
        calibration = calibrate(
            model,
            examples,
            model.options({"word_times": True}),
            args.batch_size,
            f"the words of {made_from}",
            nbests,
        )
        write_calibration(calibration, folder)
        print(f"{confidence}: calibrated on {calibration.made_from}")


if __name__ == "__main__":
    run_main(main)
