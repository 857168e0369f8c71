"""Benchmark decoding, training, its parts, long recordings, a server, a resume.

    python -m speechllm.bin.benchmark decode --model exp/speechllm_train/model \\
        --examples dump/examples/test --against plain espnet
    python -m speechllm.bin.benchmark train --config exp/speechllm_train/config.yaml
    python -m speechllm.bin.benchmark loss --batch_size 16
    python -m speechllm.bin.benchmark spans
    python -m speechllm.bin.benchmark memory --model exp/speechllm_train/model \\
        --examples dump/examples/test --minutes 10 40
    python -m speechllm.bin.benchmark serve --url http://127.0.0.1:8000 \\
        --examples dump/examples/test --clients 1 50
    python -m speechllm.bin.benchmark live --examples dump/examples/test \\
        -- --model exp/speechllm_train/model
    python -m speechllm.bin.benchmark resume --model exp/speechllm_train/model \\
        --speech prompt.wav --examples 10000 100000
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from speechllm.benchmarks.decoding_systems import AGAINST, RANDOM, DecodingSet
from speechllm.benchmarks.loss import LossBatch
from speechllm.benchmarks.training import TrainingSteps
from speechllm.utils.errors import UserError, run_main

FLAGS = ("backward", "gradient_checkpointing")  # 0 or 1


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    decode = commands.add_parser(
        "decode", help="decode the same utterances with several systems"
    )
    add = decode.add_argument
    add("--model", help="model folder of stage 10")
    add("--random", choices=RANDOM, help="size of a randomly initialised model instead")
    add("--examples", required=True, help="example dir")
    add(
        "--batch_sizes",
        type=int,
        nargs="+",
        default=[1, 16],
        help="batch sizes of this package [1 16]",
    )
    add(
        "--against",
        choices=AGAINST,
        nargs="*",
        default=[],
        help="other systems, measured first [none]",
    )
    add("--config", help="decoding config of stage 12, YAML")
    add("--rounds", type=int, default=1, help="rounds to take the median of [1]")
    add("--utterances", type=int, help="number of utterances [all; 32 with --random]")
    add("--task", help="decode only utterances of this task, e.g. asr [all]")

    train = commands.add_parser(
        "train", help="training steps with two methods of computing the loss"
    )
    add = train.add_argument
    steps = TrainingSteps("").steps
    add("--config", required=True, help="config.yaml of a training")
    add("--steps", type=int, default=steps, help=f"steps to measure [{steps}]")

    loss = commands.add_parser(
        "loss", help="head at the target positions versus over whole sequences"
    )
    add = loss.add_argument
    defaults = LossBatch()
    add("--model", default=defaults.model, help=f"LLM [{defaults.model}]")
    add(
        "--tuning",
        choices=["lora", "full", "frozen"],
        default=defaults.tuning,
        help=f"trained weights [{defaults.tuning}]",
    )
    for name, text in (
        ("batch_size", "utterances"),
        ("prompt_positions", "embeddings in front of a target"),
        ("answer_tokens", "tokens of a target"),
        ("steps", "timed steps"),
        ("backward", "1: training steps, 0: the loss alone"),
        ("gradient_checkpointing", "1: recompute activations"),
    ):
        default = getattr(defaults, name)
        add(f"--{name}", type=int, default=default, help=f"{text} [{default}]")

    commands.add_parser("spans", help="mean over the frames of each CTC token")

    memory = commands.add_parser(
        "memory", help="peak memory while a long recording is transcribed"
    )
    add = memory.add_argument
    add("--model", required=True, help="model folder of stage 10")
    add("--examples", required=True, help="example dir of the prompts to join")
    add("--language", default="en", help="language of the prompts [en]")
    add("--config", help="decoding config, YAML: batch_size and search options")
    add(
        "--minutes",
        type=int,
        nargs="+",
        default=[10, 40],
        help="lengths of audio [10 40]",
    )

    serve = commands.add_parser(
        "serve", help="throughput of a running server by the number of clients"
    )
    add = serve.add_argument
    address = "http://127.0.0.1:8000"
    add("--url", default=address, help=f"address of the server [{address}]")
    add("--examples", required=True, help="example dir; its task asr is sent")
    add(
        "--clients",
        type=int,
        nargs="+",
        default=[1, 50],
        help="clients that send at the same time [1 50]",
    )
    add("--utterances", type=int, help="number of utterances [all]")

    live = commands.add_parser(
        "live", help="latency of `speechllm transcribe --stream` in real time"
    )
    add = live.add_argument
    add("--examples", required=True, help="example dir; its task asr is fed")
    add("--utterances", type=int, help="number of utterances [all]")
    add("--pause", type=int, default=2, help="seconds of silence after each [2]")
    add("options", nargs="+", help="options of transcribe, after --")

    resume = commands.add_parser(
        "resume", help="start of stage 12 with all hypotheses there but one"
    )
    add = resume.add_argument
    add("--model", required=True, help="model folder of stage 10")
    add("--speech", type=Path, required=True, help="recording to decode")
    add("--task", default="asr en en", help="task of the examples [asr en en]")
    sizes = [10_000, 100_000]
    add("--examples", type=int, nargs="+", default=sizes, help="sizes [10000 100000]")

    for command in (decode, train, loss):
        command.add_argument("--device", default="cpu", help="cpu, cuda, … [cpu]")
    for command in (decode, loss):
        command.add_argument("--dtype", default="float32", help="precision [float32]")
    one = commands.add_parser("one")  # internal: one row of a table, result as JSON
    for name in ("benchmark", "system", "content"):
        one.add_argument(name)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Print a table."""
    args = get_parser().parse_args(argv)
    check_positive(args)
    if args.command == "decode":
        from speechllm.benchmarks.decoding import decoding_report

        print(decoding_report(args.batch_sizes, args.against, decoding_set(args)))
    elif args.command == "train":
        from speechllm.benchmarks.training import training_report

        print(training_report(TrainingSteps(args.config, args.steps, args.device)))
    elif args.command == "loss":
        from speechllm.benchmarks.loss import loss_report

        batch = LossBatch(**{f.name: getattr(args, f.name) for f in fields(LossBatch)})
        print(loss_report(batch))
    elif args.command == "spans":
        from speechllm.benchmarks.spans import spans_report

        print(spans_report())
    elif args.command == "serve":
        from speechllm.benchmarks.serving import serving_report

        print(serving_report(args.url, args.examples, args.clients, args.utterances))
    elif args.command == "live":
        from speechllm.benchmarks.live import live_report

        print(live_report(args.examples, args.utterances, args.pause, args.options))
    elif args.command == "resume":
        from speechllm.benchmarks.resuming import benchmark_resuming

        with tempfile.TemporaryDirectory(prefix="benchmark.") as folder:
            benchmark_resuming(
                Path(folder), args.model, args.speech, args.task, args.examples
            )
    elif args.command == "memory":
        from speechllm.benchmarks.memory import benchmark_memory
        from speechllm.utils.io import read_yaml

        options = read_yaml(args.config) if args.config else {}
        benchmark_memory(
            args.model, args.examples, args.language, args.minutes, options
        )
    else:
        content = json.loads(args.content)
        print(json.dumps(measure(args.benchmark, args.system, content)))


def check_positive(args: argparse.Namespace) -> None:
    """Raise UserError if a number that is not a flag is below 1."""
    for name, value in vars(args).items():
        if name in FLAGS:
            continue
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and number < 1:
                raise UserError(f"--{name} {number}: at least 1")


def decoding_set(args: argparse.Namespace) -> DecodingSet:
    """Return the work of the command ``decode``."""
    from speechllm.utils.io import read_yaml

    if (args.model is None) == (args.random is None):
        raise UserError("give either --model or --random")
    generation = read_yaml(args.config) if args.config else {}
    for name in ("batch_size", "dtype", "engine"):  # set by the benchmark
        generation.pop(name, None)
    return DecodingSet(
        args.random or args.model,
        args.examples,
        generation,
        limit=args.utterances,
        task=args.task,
        rounds=args.rounds,
        device=args.device,
        dtype=args.dtype,
    )


def measure(benchmark: str, system: str, content: dict) -> dict[str, Any]:
    """Measure one system in this process and return its cost."""
    from speechllm.benchmarks.decoding import measure_decoding
    from speechllm.benchmarks.loss import measure_loss
    from speechllm.benchmarks.training import measure_training

    if benchmark == "decode":
        return asdict(measure_decoding(system, DecodingSet(**content)))
    if benchmark == "sampling":
        from speechllm.benchmarks.sampling import SamplingSet, measure_sampling

        return asdict(measure_sampling(system, SamplingSet(**content)))
    if benchmark == "train":
        return asdict(measure_training(system, TrainingSteps(**content)))
    return asdict(measure_loss(system, LossBatch(**content)))


if __name__ == "__main__":
    run_main(main)
