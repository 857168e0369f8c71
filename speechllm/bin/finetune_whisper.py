"""Fine-tune Whisper on an example dir, as a baseline; bin.baseline decodes with it.

    python -m speechllm.bin.finetune_whisper --examples dump/examples/train_sp \\
        --valid dump/examples/dev --output exp/whisper_finetuned/model --max_minutes 45
    python -m speechllm.bin.baseline whisper --model exp/whisper_finetuned/model \\
        --examples dump/examples/test --output exp/whisper_finetuned/decode_greedy/test
"""

from __future__ import annotations

import argparse

from speechllm.utils.errors import run_main
from speechllm.utils.schema import Schema, check_options, integer, number, optional

OPTIONS: Schema = {
    "--lr": number(above=0),
    "--epochs": integer(1),
    "--max_minutes": optional(number(above=0)),
    "--batch_size": integer(1),
    "--window": integer(1, 30),
    "--seed": integer(0, 2**32 - 1),
}


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.finetune_whisper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="openai/whisper-base", help="hub id or folder [%(default)s]")
    add("--examples", required=True, help="example dir to train on")
    add("--valid", required=True, help="example dir for the validation")
    add("--output", required=True, help="model folder to write")
    add(
        "--tuning",
        default="full",
        choices=("lora", "full"),
        help="train adapters or all weights [%(default)s]",
    )
    add("--lr", type=float, default=3e-5, help="peak learning rate [%(default)s]")
    add("--epochs", type=int, default=10, help="maximum of epochs [%(default)s]")
    add(
        "--max_minutes",
        type=float,
        help="wall-clock time of the whole command; the learning rate decays over the "
        "time or the epochs, whichever ends first [no limit]",
    )
    add("--batch_size", type=int, default=16, help="examples per step [%(default)s]")
    add(
        "--window",
        type=int,
        default=30,
        help="seconds of the encoder input of the written model, at least the longest "
        "utterance [%(default)s, as Whisper]",
    )
    add(
        "--pad_to_window",
        action="store_true",
        help="pad training batches to the window, not to their longest utterance",
    )
    add("--seed", type=int, default=1, help="random seed [%(default)s]")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Fine-tune Whisper, unless the output has the same settings and data."""
    args = get_parser().parse_args(argv)
    values = {f"--{name}": value for name, value in vars(args).items()}
    check_options(values, OPTIONS, "command line")

    from speechllm.baselines.finetune_whisper import FinetuneOptions, finetune_whisper

    names = FinetuneOptions.__dataclass_fields__
    options = FinetuneOptions(**{name: getattr(args, name) for name in names})
    result = finetune_whisper(
        args.model, args.examples, args.valid, args.output, options
    )
    first, *validations = [entry["accuracy"] for entry in result["validation"]]
    print(
        f"{args.output}: {result['examples']} examples, {result['epochs']} epochs, "
        f"{result['steps']} steps, {result['seconds'] / 60:.1f} min; token accuracy on "
        f"{args.valid}: {first:.1%} before, {max(validations):.1%} in step "
        f"{result['best_step']}"
    )


if __name__ == "__main__":
    run_main(main)
