"""Benchmark of training steps: speed, memory, and the padding of batches.

The batches are built from the training's own config and shape files. The loss is
computed with the head at the target tokens only, and by transformers' ``labels=`` over
whole sequences, each in a separate process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from speechllm.benchmarks.loss import METHODS, output_with_labels
from speechllm.benchmarks.resources import MEBIBYTE, PeakMemory, measure_in_process
from speechllm.utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from speechllm.models.llm import LanguageModel


@dataclass(frozen=True)
class TrainingSteps:
    """The steps to measure.

    Attributes:
        config: ``config.yaml`` of a training's folder; its paths are relative to the
            working directory.
        steps: number of batches, spread evenly over an epoch.
        device: ``cpu``, ``cuda``, …
    """

    config: str
    steps: int = 8
    device: str = "cpu"


@dataclass
class TrainingCost:
    """Cost of the steps with one method of computing the loss.

    Attributes:
        seconds: wall-clock time of forward pass, backward pass and optimizer.
        cpu_seconds: processor time of all threads.
        target_tokens: number of target tokens.
        speech_seconds: duration of the speech.
        flops: operations of matrix products and convolutions, as counted by PyTorch.
        machine_flops: operations per second of a large matrix product on this device,
            in the training's precision.
        peak_bytes: peak memory above the loaded model.
        loss: mean over the steps.
    """

    seconds: float
    cpu_seconds: float
    target_tokens: int
    speech_seconds: float
    flops: int
    machine_flops: float
    peak_bytes: int
    loss: float


def training_report(steps: TrainingSteps) -> str:
    """Measure each method on the same batches and return a table with a heading.

    Raises:
        UserError: the training has no LLM, as a warm-up.
    """
    options = training_options(steps.config)
    if not options.llm:
        raise UserError(f"{steps.config}: no LLM, so there is no loss to compare")
    padding = padding_share(options)
    costs = {
        method: measure_in_process("train", method, steps, TrainingCost)
        for method in METHODS
    }
    heading = f"{steps.config}, {steps.device}: {steps.steps} steps"
    if options.multiple_iterator:
        heading += ", of the first split of the tables"
    return f"{heading}\n\n{training_table(costs, padding)}"


def measure_training(method: str, steps: TrainingSteps) -> TrainingCost:
    """Train with one method in this process: once counting operations, once timed."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from speechllm.audio.io import SAMPLING_RATE
    from speechllm.training import load_task

    torch.manual_seed(1)
    args = training_options(steps.config)
    model = load_task().build_model(args).to(steps.device).train()
    if method == "sequence":
        model.llm.answer_loss = partial(answer_loss_over_sequence, model.llm)
    (optimizer,) = load_task().build_optimizers(args, model)
    batches = training_batches(args, steps)

    def train(batch: dict[str, Tensor]) -> float:
        loss, _, _ = model(**batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()  # synchronises with a GPU

    memory = PeakMemory(steps.device)
    with FlopCounterMode(display=False) as counter:
        for batch in batches:
            train(batch)
    begin, cpu_begin = time.perf_counter(), time.process_time()
    losses = [train(batch) for batch in batches]
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    return TrainingCost(
        seconds,
        cpu_seconds,
        sum(int(batch["text_lengths"].sum()) for batch in batches),
        sum(int(batch["speech_lengths"].sum()) for batch in batches) / SAMPLING_RATE,
        counter.get_total_flops(),
        matmul_flops(steps.device, model.autocast_dtype),
        memory.peak(),
        sum(losses) / len(losses),
    )


def training_options(config: str) -> argparse.Namespace:
    """Return the options of a training, including ESPnet's defaults."""
    from speechllm.training import load_task
    from speechllm.utils.io import read_yaml

    defaults = load_task().get_parser().parse_args([])
    return argparse.Namespace(**{**vars(defaults), **read_yaml(config)})


def training_batches(
    args: argparse.Namespace, steps: TrainingSteps
) -> list[dict[str, Tensor]]:
    """Return batches spread evenly over the first epoch, on the device."""
    from espnet2.train.distributed_utils import DistributedOption

    from speechllm.training import load_task

    args = first_split(args)
    args.num_workers = 0
    option = DistributedOption(distributed=False)
    factory = load_task().build_iter_factory(args, option, "train").factory
    epoch = factory.build_iter(1)
    every = max(1, len(epoch) // steps.steps)
    chosen = islice(epoch, 0, every * steps.steps, every)
    return [
        {name: tensor.to(steps.device) for name, tensor in batch.items()}
        for _, batch in chosen
    ]


def first_split(args: argparse.Namespace) -> argparse.Namespace:
    """Return the options with the first split of tables that are in splits."""
    args = argparse.Namespace(**vars(args))
    if args.multiple_iterator:  # ESPnet's folders of split.0, split.1, …
        tables = args.train_data_path_and_name_and_type
        args.train_data_path_and_name_and_type = [
            (f"{path}/split.0", *rest) for path, *rest in tables
        ]
        args.train_shape_file = [f"{path}/split.0" for path in args.train_shape_file]
        args.multiple_iterator = False
    return args


def padding_share(args: argparse.Namespace) -> float:
    """Return the share of padding in the waveforms of all batches of an epoch.

    Of tables in splits it is the share in the first split.
    """
    from espnet2.samplers.build_batch_sampler import build_batch_sampler

    args = first_split(args)
    sampler = build_batch_sampler(
        type=args.batch_type,
        batch_size=args.batch_size,
        batch_bins=args.batch_bins,
        shape_files=args.train_shape_file,
        sort_in_batch=args.sort_in_batch,
        sort_batch=args.sort_batch,
        drop_last=args.drop_last_iter,
        min_batch_size=1,
        fold_lengths=args.fold_length,
    )
    with open(args.train_shape_file[0], encoding="utf-8") as stream:
        sizes = {
            name: int(shape.split(",")[0]) for name, shape in map(str.split, stream)
        }
    batches = [[sizes[name] for name in batch] for batch in sampler]
    padded = sum(len(batch) * max(batch) for batch in batches)
    return 1 - sum(map(sum, batches)) / padded


def answer_loss_over_sequence(
    llm: LanguageModel,
    prompts: Sequence[Tensor],
    answers: Sequence[Sequence[int]],
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Compute ``LanguageModel.answer_loss`` by transformers' ``labels=``.

    Label smoothing is not supported there and is ignored.
    """
    output, labels = output_with_labels(llm, prompts, answers)
    is_target = labels[:, 1:] != -100  # (batch, positions - 1)
    predictions = output.logits[:, :-1].argmax(2)[is_target]
    return output.loss * is_target.sum() / len(prompts), predictions


def matmul_flops(
    device: str, dtype, size: int | None = None, rounds: int = 50
) -> float:
    """Return the operations per second of square matrix products, best of ``rounds``.

    They are small on a CPU so that other processes seldom interrupt one.
    """
    import torch

    size = size or (1024 if device == "cpu" else 4096)
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        product = matrix @ matrix
        product[0, 0].item()  # synchronises with a GPU
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / min(seconds)


def training_table(costs: dict[str, TrainingCost], padding: float) -> str:
    """Format the costs as a Markdown table; the last row compares ours with theirs."""
    rows = [
        f"padding: {padding:.1%} of the samples of an epoch's batches",
        "",
        (
            "| loss | target tokens/s | speech seconds/s | CPU seconds | FLOP/s, of a "
            "matrix product's | peak memory above the model, MiB | value |"
        ),
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for method, cost in costs.items():
        flops = cost.flops / cost.seconds
        rows.append(
            f"| {METHODS[method]} | {cost.target_tokens / cost.seconds:.1f} "
            f"| {cost.speech_seconds / cost.seconds:.2f} | {cost.cpu_seconds:.1f} "
            f"| {flops / 1e9:.1f} G, {flops / cost.machine_flops:.0%} "
            f"| {cost.peak_bytes / MEBIBYTE:.0f} | {cost.loss:.3f} |"
        )
    ours, theirs = costs["targets"], costs["sequence"]
    rows.append(
        f"| ratio | {theirs.seconds / ours.seconds:.2f} × the speed | "
        f"| {theirs.cpu_seconds / ours.cpu_seconds:.2f} × the speed | "
        f"| {ours.peak_bytes / theirs.peak_bytes:.2f} × the memory | |"
    )
    return "\n".join(rows)
