"""Choose the guard's thresholds on a development set and put them beside the model."""

from __future__ import annotations

import argparse

from speechllm.utils.errors import UserError, run_main


def main(argv: list[str] | None = None) -> None:
    """Parse the command line, choose, write ``guard.yaml`` and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder that stage 11 wrote")
    parser.add_argument("--examples", required=True, help="development example dir")
    parser.add_argument("--config", help="YAML of stage 12: how answers are searched")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument(
        "--margin",
        type=float,
        default=1.25,
        help="how far beyond the set lengths may go, as a factor [1.25]",
    )
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    if args.margin < 1:
        raise UserError(f"--margin {args.margin}: at least 1")

    from speechllm.data.examples import read_examples
    from speechllm.inference.guard_thresholds import THRESHOLDS_FILE, write_thresholds
    from speechllm.inference.loading import find_model
    from speechllm.inference.speech_to_text import SpeechToText
    from speechllm.inference.tuning import find_thresholds, read_generation

    generation = read_generation(args.config)
    examples = read_examples(args.examples)
    model = SpeechToText.from_pretrained(args.model, args.device)
    thresholds = find_thresholds(
        model,
        examples,
        model.options({**generation, "guard": False}),
        args.batch_size,
        args.margin,
        f"{len(examples)} examples",
    )
    folder = find_model(args.model)
    write_thresholds(thresholds, folder)
    print((folder / THRESHOLDS_FILE).read_text("utf-8"), end="")
    print(f"written to {folder / THRESHOLDS_FILE}")


if __name__ == "__main__":
    run_main(main)
