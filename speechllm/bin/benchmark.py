"""Time decoding at several batch sizes, or the loss at the targets alone."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from speechllm.benchmark import METHODS, LossBatch
from speechllm.errors import UserError, run_main


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and print a table."""
    args = parse(argv)
    print(decode(args) if args.command == "decode" else loss(args))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser(
        "decode", help="the same utterances at several batch sizes, texts compared"
    )
    command.add_argument("--model", required=True, help="folder that stage 11 wrote")
    command.add_argument("--examples", required=True, help="example dir")
    command.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 16])
    command.add_argument("--config", help="YAML as for decoding")
    command.add_argument("--rounds", type=int, default=1, help="median of so many [1]")
    command.add_argument("--utterances", type=int, help="only so many [all]")

    command = commands.add_parser(
        "loss", help="head at the target positions against logits over the sequence"
    )
    command.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    defaults = LossBatch()
    for name, what in (
        ("batch_size", "utterances"),
        ("prompt_positions", "embeddings before an answer"),
        ("answer_tokens", "tokens of an answer"),
        ("steps", "timed steps"),
        ("backward", "1: training steps, 0: the loss alone"),
        ("gradient_checkpointing", "1: recompute activations"),
    ):
        default = getattr(defaults, name)
        command.add_argument(
            f"--{name}", type=int, default=default, help=f"{what} [{default}]"
        )
    command.add_argument(
        "--only", choices=METHODS, help="measure one way in this process; prints JSON"
    )

    for command in commands.choices.values():
        command.add_argument("--device", default="cpu")
        command.add_argument("--dtype", default="float32")
    args = parser.parse_args(argv)
    flags = ("backward", "gradient_checkpointing")
    for name, value in vars(args).items():
        if name in flags:
            continue
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and number < 1:
                raise UserError(f"--{name} {number}: at least 1")
    return args


def decode(args: argparse.Namespace) -> str:
    """Measure decoding."""
    from speechllm.benchmark import benchmark_decoding, decoding_table
    from speechllm.files import read_yaml

    generation = read_yaml(args.config) if args.config else {}
    for name in ("batch_size", "dtype", "engine"):
        generation.pop(name, None)
    costs = benchmark_decoding(
        args.model,
        args.examples,
        args.batch_sizes,
        generation,
        rounds=args.rounds,
        limit=args.utterances,
        device=args.device,
        dtype=args.dtype,
    )
    first = costs[0]
    head = f"{first.utterances} utterances, {first.speech_seconds:.0f} s of speech"
    return f"{head}\n\n{decoding_table(costs)}"


def loss(args: argparse.Namespace) -> str:
    """Measure the loss."""
    from speechllm.benchmark import benchmark_loss, loss_table, measure_loss

    batch = LossBatch(**{name: getattr(args, name) for name in asdict(LossBatch())})
    if args.only:
        cost = measure_loss(args.only, args.model, batch, args.device, args.dtype)
        return json.dumps(asdict(cost))
    costs = benchmark_loss(args.model, batch, args.device, args.dtype)
    head = (
        f"{args.model}, {args.dtype}, {args.device}: {batch.batch_size} utterances of "
        f"{batch.prompt_positions} positions and {batch.answer_tokens} answer tokens"
    )
    return f"{head}\n\n{loss_table(costs)}"


if __name__ == "__main__":
    run_main(main)
