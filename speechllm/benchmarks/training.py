"""Steps of a training: speed, memory, and how much of a batch is padding.

The batches are those that the training's own config makes of its shape files. The
loss is computed in two ways: with the head at the answers' tokens alone, and by
transformers' ``labels=`` over whole sequences, each in a process of its own.
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
from speechllm.benchmarks.resources import MEBIBYTE, PeakMemory, measured_apart

if TYPE_CHECKING:
    from torch import Tensor

    from speechllm.models.llm import LanguageModel


@dataclass(frozen=True)
class TrainingSteps:
    """What is measured.

    Attributes:
        config: ``config.yaml`` that a training wrote into its folder; paths in it are
            relative to where the command runs.
        steps: batches, taken evenly from an epoch.
        device: where.
    """

    config: str
    steps: int = 8
    device: str = "cpu"


@dataclass
class TrainingCost:
    """Steps of a training by one way to the loss.

    Attributes:
        seconds: of all steps: forward, backward and optimizer.
        cpu_seconds: of the processor for them, all threads.
        target_tokens, speech_seconds: in all steps.
        flops: operations of matrix products and convolutions, as PyTorch counts them.
        machine_flops: operations a second of a large matrix product here, in the
            training's precision.
        peak_bytes: above the loaded model.
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


def benchmark_training(steps: TrainingSteps) -> dict[str, TrainingCost]:
    """Measure both ways to the loss on the same batches."""
    return {
        method: measured_apart("train", method, steps, TrainingCost)
        for method in METHODS
    }


def measure_training(method: str, steps: TrainingSteps) -> TrainingCost:
    """Train by one way in this process: once counting operations, once timed."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from speechllm.audio.io import SAMPLING_RATE
    from speechllm.training.task import SpeechLLMTask

    torch.manual_seed(1)
    args = training_options(steps.config)
    model = SpeechLLMTask.build_model(args).to(steps.device).train()
    if method == "sequence":
        model.llm.answer_loss = partial(answer_loss_over_sequence, model.llm)
    (optimizer,) = SpeechLLMTask.build_optimizers(args, model)
    batches = training_batches(args, steps)

    def train(batch: dict[str, Tensor]) -> float:
        loss, _, _ = model(**batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()  # waits for a GPU

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
    """The options of a training, ESPnet's defaults included."""
    from speechllm.training.task import SpeechLLMTask
    from speechllm.utils.io import read_yaml

    defaults = SpeechLLMTask.get_parser().parse_args([])
    return argparse.Namespace(**{**vars(defaults), **read_yaml(config)})


def training_batches(
    args: argparse.Namespace, steps: TrainingSteps
) -> list[dict[str, Tensor]]:
    """Some batches of the first epoch, on the device."""
    from espnet2.train.distributed_utils import DistributedOption

    from speechllm.training.task import SpeechLLMTask

    args = argparse.Namespace(**{**vars(args), "num_workers": 0})
    option = DistributedOption(distributed=False)
    factory = SpeechLLMTask.build_iter_factory(args, option, "train").factory
    epoch = factory.build_iter(1)
    every = max(1, len(epoch) // steps.steps)
    chosen = islice(epoch, 0, every * steps.steps, every)
    return [
        {name: tensor.to(steps.device) for name, tensor in batch.items()}
        for _, batch in chosen
    ]


def padding_share(args: argparse.Namespace) -> float:
    """Share of the waveforms' padded samples, over all batches of an epoch."""
    from espnet2.samplers.build_batch_sampler import build_batch_sampler

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
    """``LanguageModel.answer_loss`` by transformers' ``labels=``.

    Label smoothing has no place there and is left out.
    """
    output, labels = output_with_labels(llm, prompts, answers)
    told = labels[:, 1:] != -100
    best = output.logits[:, :-1].argmax(2)[told]
    return output.loss * told.sum() / len(prompts), best


def matmul_flops(
    device: str, dtype, size: int | None = None, rounds: int = 50
) -> float:
    """Operations a second of the fastest of some products of square matrices.

    On a CPU they are small, so that one of them is not broken off by other work.
    """
    import torch

    size = size or (1024 if device == "cpu" else 4096)
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        product = matrix @ matrix
        product[0, 0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - begin)
    return 2 * size**3 / min(seconds)


def training_table(costs: dict[str, TrainingCost], padding: float) -> str:
    """The costs as a Markdown table, with the share of ours in the last row."""
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
