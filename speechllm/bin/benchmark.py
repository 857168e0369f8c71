"""Time and memory of decoding, training and the loss, beside what others would do."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, fields

from speechllm.benchmarks.decoding import AGAINST, RANDOM, DecodingSet
from speechllm.benchmarks.loss import LossBatch
from speechllm.benchmarks.training import TrainingSteps
from speechllm.utils.errors import UserError, run_main


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and print a table."""
    args = parse(argv)
    work = {"decode": decode, "train": train, "loss": loss, "one": one}
    print(work[args.command](args))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser(
        "decode", help="the same utterances by several systems"
    )
    add = command.add_argument
    add("--model", help="folder that stage 11 wrote")
    add("--random", choices=RANDOM, help="a model of random weights, of this size")
    add("--examples", required=True, help="example dir")
    add("--batch_sizes", type=int, nargs="+", default=[1, 16], help="ours [1 16]")
    add("--against", choices=AGAINST, nargs="*", default=[], help="others, before ours")
    add("--config", help="YAML as for decoding")
    add("--rounds", type=int, default=1, help="median of so many [1]")
    add("--utterances", type=int, help="only so many [all; 32 with --random]")
    add("--task", help="only the utterances of this task, such as asr")

    command = commands.add_parser(
        "train", help="steps of a training, two ways to the loss"
    )
    default = TrainingSteps("").steps
    command.add_argument("--config", required=True, help="config.yaml of a training")
    command.add_argument("--steps", type=int, default=default, help=f"[{default}]")
    command.add_argument("--device", default="cpu")

    command = commands.add_parser(
        "loss", help="head at the target positions against logits over the sequence"
    )
    defaults = LossBatch()
    command.add_argument("--model", default=defaults.model)
    command.add_argument("--tuning", choices=["lora", "full", "frozen"], default="lora")
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

    for name in ("decode", "loss"):
        command = commands.choices[name]
        command.add_argument("--device", default="cpu")
        command.add_argument("--dtype", default="float32")
    command = commands.add_parser("one")  # of a table's rows, in this process
    for name in ("work", "system", "content"):
        command.add_argument(name)
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
    from speechllm.benchmarks.decoding import benchmark_decoding, decoding_table
    from speechllm.utils.io import read_yaml

    if (args.model is None) == (args.random is None):
        raise UserError("name either a --model or a --random one")
    generation = read_yaml(args.config) if args.config else {}
    for name in ("batch_size", "dtype", "engine"):
        generation.pop(name, None)
    content = DecodingSet(
        args.random or args.model,
        args.examples,
        generation,
        limit=args.utterances,
        task=args.task,
        rounds=args.rounds,
        device=args.device,
        dtype=args.dtype,
    )
    costs = benchmark_decoding(args.batch_sizes, args.against, content)
    last = costs[-1]
    head = (
        f"{content.model}, {args.dtype}, {args.device}: {last.utterances} utterances, "
        f"{last.speech_seconds:.0f} s of speech"
    )
    return f"{head}\n\n{decoding_table(costs)}"


def train(args: argparse.Namespace) -> str:
    """Measure training."""
    from speechllm.benchmarks.training import (
        benchmark_training,
        padding_share,
        training_options,
        training_table,
    )

    padding = padding_share(training_options(args.config))
    steps = TrainingSteps(args.config, args.steps, args.device)
    head = f"{args.config}, {args.device}: {args.steps} steps"
    return f"{head}\n\n{training_table(benchmark_training(steps), padding)}"


def loss(args: argparse.Namespace) -> str:
    """Measure the loss."""
    from speechllm.benchmarks.loss import benchmark_loss, loss_table

    batch = LossBatch(**{f.name: getattr(args, f.name) for f in fields(LossBatch)})
    head = (
        f"{args.model}, {args.tuning}, {args.dtype}, {args.device}: "
        f"{batch.batch_size} utterances of {batch.prompt_positions} positions and "
        f"{batch.answer_tokens} answer tokens"
    )
    return f"{head}\n\n{loss_table(benchmark_loss(batch))}"


def one(args: argparse.Namespace) -> str:
    """Measure one system in this process; the result as JSON."""
    from speechllm.benchmarks.decoding import measure_decoding
    from speechllm.benchmarks.loss import measure_loss
    from speechllm.benchmarks.training import measure_training

    kind, measure = {
        "decode": (DecodingSet, measure_decoding),
        "train": (TrainingSteps, measure_training),
        "loss": (LossBatch, measure_loss),
    }[args.work]
    return json.dumps(asdict(measure(args.system, kind(**json.loads(args.content)))))


if __name__ == "__main__":
    run_main(main)
