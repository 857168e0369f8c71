"""Choose the guard's thresholds on a development set (writes guard.yaml).

    python -m speechllm.bin.guard_thresholds --model exp/speechllm_train/model \\
        --examples dump/examples/dev
"""

from __future__ import annotations

import argparse

from speechllm.bin.tune import tuning_parser
from speechllm.utils.errors import run_main
from speechllm.utils.schema import check_options, number


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = tuning_parser("guard_thresholds", __doc__)
    add = parser.add_argument
    add(
        "--margin",
        type=float,
        default=1.25,
        help="factor between the extremes of the set and the thresholds [1.25]",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Choose, write and print the thresholds."""
    args = get_parser().parse_args(argv)
    check_options({"--margin": args.margin}, {"--margin": number(1)}, "command line")

    from speechllm.data.examples import read_examples
    from speechllm.inference.guard_thresholds import (
        THRESHOLDS_FILE,
        read_thresholds,
        write_thresholds,
    )
    from speechllm.inference.loading import find_model
    from speechllm.inference.speech_to_text import SpeechToText
    from speechllm.inference.tuning import (
        find_thresholds,
        new_version,
        set_aside_if_damaged,
    )

    examples = read_examples(args.examples, args.limit)
    folder = find_model(args.model)
    set_aside_if_damaged(read_thresholds, folder / THRESHOLDS_FILE)
    model = SpeechToText.from_pretrained(folder, args.device, config=args.config)
    with new_version(folder / THRESHOLDS_FILE, args.if_possible):
        thresholds = find_thresholds(
            model,
            examples,
            model.options({"guard": False}),
            args.batch_size,
            args.margin,
            f"{len(examples)} examples",
        )
        write_thresholds(thresholds, folder)
        print((folder / THRESHOLDS_FILE).read_text("utf-8"), end="")
        print(f"written to {folder / THRESHOLDS_FILE}")


if __name__ == "__main__":
    run_main(main)
