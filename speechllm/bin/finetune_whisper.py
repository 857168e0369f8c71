"""Fine-tune Whisper on an example dir: the first pass of a model (stage 8).

    python -m speechllm.bin.finetune_whisper --config conf/first_pass.yaml \\
        --model conf/train.yaml --examples dump/examples/train_sp \\
        --valid dump/examples/dev --output exp/first_pass

The folder is one of transformers; bin.baseline decodes with it alone.
"""

from __future__ import annotations

import argparse

from speechllm.utils.errors import UserError, run_main
from speechllm.utils.io import read_yaml
from speechllm.utils.schema import (
    Schema,
    check_options,
    choice,
    integer,
    number,
    optional,
)

OPTIONS: Schema = {
    "tuning": choice("lora", "full"),
    "lr": number(above=0),
    "epochs": integer(1),
    "max_minutes": optional(number(above=0)),
    "batch_size": integer(1),
    "pretrained_share": number(0, below=1),
    "seed": integer(0, 2**32 - 1),
}


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.finetune_whisper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--config",
        help="YAML file of these options, from --tuning on",
    )
    add(
        "--model",
        default="openai/whisper-base",
        help="hub id, folder, or training config for its encoder [%(default)s]",
    )
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
    add("--epochs", type=int, default=3, help="maximum of epochs [%(default)s]")
    add(
        "--max_minutes",
        type=float,
        help="wall-clock time of the whole command; the learning rate decays over the "
        "time or the epochs, whichever ends first [no limit]",
    )
    add("--batch_size", type=int, default=16, help="examples per step [%(default)s]")
    add(
        "--pretrained_share",
        type=float,
        default=0.0,
        help="average the trained weights with the pretrained ones, which get this "
        "share; fewer errors after a training on little speech [%(default)s]",
    )
    add("--seed", type=int, default=1, help="random seed [%(default)s]")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Fine-tune Whisper, unless the output has the same settings and data."""
    parser = get_parser()
    args = parser.parse_args(argv)
    if args.config:
        content = read_yaml(args.config)
        if unknown := content.keys() - OPTIONS.keys():
            raise UserError(
                f"{args.config}: unknown option {min(map(str, unknown))!r}; known are "
                f"{', '.join(OPTIONS)}"
            )
        parser.set_defaults(**check_options(content, OPTIONS, args.config))
        args = parser.parse_args(argv)
    check_options(vars(args), OPTIONS, "command line")

    from speechllm.baselines.finetune_whisper import FinetuneOptions, finetune_whisper
    from speechllm.models.config import models_of_config
    from speechllm.models.speech_decoder import has_speech_decoder
    from speechllm.pretrained.resolve import resolve_model

    model = args.model
    if model.endswith((".yaml", ".yml")):
        model = models_of_config(model)[0]
    if not has_speech_decoder(resolve_model(model)):
        raise UserError(
            f"{model}: not Whisper with its decoder, which makes the first pass; leave "
            "the first pass out (--first_pass_config '')"
        )
    options = FinetuneOptions(**{name: getattr(args, name) for name in OPTIONS})
    result = finetune_whisper(model, args.examples, args.valid, args.output, options)
    first, *validations = [entry["accuracy"] for entry in result["validation"]]
    averaged = ""
    if args.pretrained_share:
        accuracy = result["averaged"]["accuracy"]
        averaged = f", {accuracy:.1%} averaged with the pretrained weights"
    print(
        f"{args.output}: {result['examples']} examples, {result['epochs']} epochs, "
        f"{result['steps']} steps, {result['seconds'] / 60:.1f} min; token accuracy on "
        f"{args.valid}: {first:.1%} before, {max(validations):.1%} in step "
        f"{result['best_step']}{averaged}"
    )


if __name__ == "__main__":
    run_main(main)
