"""Decode an example dir with another system, to compare; a second start goes on."""

from __future__ import annotations

import argparse

from speechllm.utils.errors import run_main

SYSTEMS = {
    "whisper": (
        "openai/whisper-base",
        "Whisper's decoder: asr of its languages, st and asr_st into English",
    ),
    "seamless": (
        "facebook/seamless-m4t-v2-large",
        "SeamlessM4T v2: asr, st and asr_st of speech, end to end",
    ),
    "nllb": (
        "facebook/nllb-200-distilled-600M",
        "NLLB on the transcripts of a decode dir: the second half of a cascade",
    ),
    "llm": (
        None,
        "the LLM of a speech model, trained on its texts, on such transcripts",
    ),
}


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="speechllm.bin.baseline", description=__doc__)
    systems = parser.add_subparsers(dest="system", required=True)
    for name, (model, text) in SYSTEMS.items():
        one = systems.add_parser(name, help=text, description=text)
        if model:
            one.add_argument(
                "--model", default=model, help=f"hub id or folder [{model}]"
            )
        else:
            one.add_argument("--model", required=True, help="folder of stage 11")
            one.add_argument(
                "--train_examples", required=True, help="example dir to learn from"
            )
            one.add_argument("--epochs", type=int, default=8)
            one.add_argument("--learning_rate", type=float, default=5e-4)
        one.add_argument("--examples", required=True, help="example dir")
        one.add_argument("--output", required=True, help="decode dir to write")
        if name in ("nllb", "llm"):
            one.add_argument(
                "--transcripts",
                required=True,
                help="decode dir of the recognition; or an example dir, for what was "
                "truly said",
            )
        one.add_argument("--batch_size", type=int, default=8)
        one.add_argument("--beam_size", type=int, default=1, help="[1: greedy]")
        one.add_argument("--device", default="cpu", help="cpu, cuda, … [cpu]")
        one.add_argument(
            "--dtype",
            default="float32",
            choices=("float32", "bfloat16", "float16", "auto"),
            help="in float32 no answer depends on its batch [float32]",
        )
    return parser


def build(args: argparse.Namespace):
    """The system that the command line names, not loaded yet."""
    if args.system == "llm":
        from speechllm.baselines.llm_translator import TextTranslator

        return TextTranslator(
            args.model, args.train_examples, args.output, args.epochs,
            args.learning_rate, args.beam_size, args.device, args.dtype,
        )  # fmt: skip
    from speechllm.baselines.nllb import Nllb
    from speechllm.baselines.seamless import Seamless
    from speechllm.baselines.whisper import Whisper

    system = {"whisper": Whisper, "seamless": Seamless, "nllb": Nllb}[args.system]
    return system(args.model, args.beam_size, args.device, args.dtype)


def main(argv: list[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    from speechllm.baselines.runner import run_baseline

    count = run_baseline(
        build(args),
        args.examples,
        args.output,
        getattr(args, "transcripts", None),
        args.batch_size,
    )
    print(f"{args.output}: {count} examples answered now by {args.model}")


if __name__ == "__main__":
    run_main(main)
