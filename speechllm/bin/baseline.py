"""Decode an example dir with a baseline system; a re-run resumes.

    python -m speechllm.bin.baseline whisper --examples dump/examples/test \\
        --output exp/whisper/decode_beam5/test --beam_size 5
    python -m speechllm.bin.baseline nllb --examples dump/examples/test \\
        --transcripts exp/whisper/decode_beam5/test --output exp/cascade/decode/test
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from speechllm.decoding.option_flags import add_device_flag
from speechllm.utils.errors import run_main
from speechllm.utils.schema import Schema, check_options, integer, number

if TYPE_CHECKING:
    from speechllm.baselines.base import Baseline

#: Default model and description of each system.
SYSTEMS = {
    "whisper": (
        "openai/whisper-base",
        "Whisper: asr in its languages, st and asr_st into English",
    ),
    "seamless": (
        "facebook/seamless-m4t-v2-large",
        "SeamlessM4T v2: asr, st and asr_st, end to end",
    ),
    "nllb": (
        "facebook/nllb-200-distilled-600M",
        "NLLB on the transcripts of a decode dir: the second stage of a cascade",
    ),
    "llm": (
        None,
        "the LLM of a speech model, fine-tuned as a text translator, on the "
        "transcripts of a decode dir",
    ),
}


OPTIONS: Schema = {
    "--batch_size": integer(1),
    "--beam_size": integer(1),
    "--epochs": integer(1),
    "--learning_rate": number(above=0),
}


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.baseline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    systems = parser.add_subparsers(dest="system", required=True)
    for name, (model, text) in SYSTEMS.items():
        system = systems.add_parser(name, help=text, description=text)
        add = system.add_argument
        if model:
            add("--model", default=model, help=f"hub id or folder [{model}]")
        else:
            add("--model", required=True, help="model folder of stage 10")
            add("--train_examples", required=True, help="example dir to train on")
            add("--epochs", type=int, default=8, help="training epochs [8]")
            add("--learning_rate", type=float, default=5e-4, help="peak [0.0005]")
        add("--examples", required=True, help="example dir")
        add("--output", required=True, help="decode dir to write")
        if name in ("nllb", "llm"):
            add(
                "--transcripts",
                required=True,
                help="decode dir of the recognition, or an example dir for the "
                "reference transcripts",
            )
        add("--batch_size", type=int, default=8, help="examples decoded together [8]")
        add(
            "--beam_size",
            type=int,
            default=1,
            help="hypotheses in the beam, 1 is greedy search [1]",
        )
        add_device_flag(system, "auto")
        add(
            "--dtype",
            default="float32",
            choices=("float32", "bfloat16", "float16", "auto"),
            help="precision; in float32 the batch does not affect the text [float32]",
        )
        add(
            "--debug",
            action="store_true",
            help="stop at an unexpected error of an example and show its traceback",
        )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Decode the examples that have no hypothesis yet."""
    args = get_parser().parse_args(argv)
    options = {f"--{name}": value for name, value in vars(args).items()}
    check_options(options, OPTIONS, "command line")

    from speechllm.baselines.base import PretrainedSystem
    from speechllm.baselines.runner import run_baseline
    from speechllm.pretrained.hub import snapshot_commit

    system = make_system(args)
    count = run_baseline(
        system,
        args.examples,
        args.output,
        getattr(args, "transcripts", None),
        args.batch_size,
        args.debug,
    )
    pretrained = isinstance(system, PretrainedSystem)
    commit = snapshot_commit(system.folder) if pretrained else None
    version = f", commit {commit}" if commit else ""
    print(f"{args.output}: {count} examples decoded now by {args.model}{version}")


def make_system(args: argparse.Namespace) -> Baseline:
    """Return the system that the command line names, not loaded yet."""
    if args.system == "llm":
        from speechllm.baselines.llm_translator import LLMTranslator

        return LLMTranslator(
            args.model, args.train_examples, args.output, args.epochs,
            args.learning_rate, args.beam_size, args.device, args.dtype,
        )  # fmt: skip
    from speechllm.baselines.nllb import Nllb
    from speechllm.baselines.seamless import Seamless
    from speechllm.baselines.whisper import Whisper

    system = {"whisper": Whisper, "seamless": Seamless, "nllb": Nllb}[args.system]
    return system(args.model, args.beam_size, args.device, args.dtype)


if __name__ == "__main__":
    run_main(main)
