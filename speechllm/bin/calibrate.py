"""Calibrate the confidence of words on a development set, and test it on another."""

from __future__ import annotations

import argparse

from speechllm.utils.errors import run_main


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, fit, write ``confidence.json``, and test."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder that stage 11 wrote")
    parser.add_argument("--examples", required=True, help="development example dir")
    parser.add_argument("--test_examples", help="test example dir: how far to trust it")
    parser.add_argument("--picture", help="reliability on the test set, .png or .pdf")
    parser.add_argument("--config", help="YAML of stage 12: how answers are searched")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    if args.picture and not args.test_examples:
        parser.error("--picture needs --test_examples")

    from speechllm.benchmarks.reliability import reliability_picture
    from speechllm.data.examples import read_examples
    from speechllm.decoding.confidence import (
        CALIBRATION_FILE,
        expected_calibration_error,
        uncalibrated,
        write_calibration,
    )
    from speechllm.inference.loading import find_model
    from speechllm.inference.speech_to_text import SpeechToText
    from speechllm.inference.tuning import calibrate, judged_words, read_generation

    generation = read_generation(args.config)
    examples = read_examples(args.examples)
    model = SpeechToText.from_pretrained(args.model, args.device)
    options = model.options({**generation, "word_times": True})
    made_from = f"the words of {len(examples)} examples"
    found = calibrate(model, examples, options, args.batch_size, made_from)
    folder = find_model(args.model)
    write_calibration(found, folder)
    print(f"{folder / CALIBRATION_FILE}: {found.weights}")
    if not args.test_examples:
        return
    features, right = judged_words(
        model, read_examples(args.test_examples), options, args.batch_size
    )
    curves = {
        "CTC": ([uncalibrated(f) for f in features], right),
        "LLM": ([f[2] for f in features], right),
        "calibrated": ([found.probability(f) for f in features], right),
    }
    print(f"{len(right)} test words, {sum(right) / len(right):.1%} of them right")
    for name, (probabilities, marks) in curves.items():
        error = expected_calibration_error(probabilities, marks)
        print(f"expected calibration error, {name}: {error:.3f}")
    if args.picture:
        reliability_picture(args.picture, curves)
        print(f"{args.picture}: written")


if __name__ == "__main__":
    run_main(main)
