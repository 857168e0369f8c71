"""Benchmark of the LLM loss: head at target positions versus over whole sequences."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from speechllm.benchmarks.resources import MEBIBYTE, PeakMemory, measure_in_process

if TYPE_CHECKING:
    from torch import Tensor

    from speechllm.models.llm import LanguageModel

#: Ways to compute the loss, as described in the tables.
METHODS = {
    "targets": "head at the target positions only (speechllm)",
    "sequence": "logits over the whole sequence (transformers, labels=)",
}


@dataclass(frozen=True)
class LossBatch:
    """A random batch of prompts (speech and its surroundings) and targets.

    Attributes:
        model: the LLM.
        tuning: ``lora`` on all linear layers, ``full`` or ``frozen``.
        batch_size: number of utterances.
        prompt_positions: embeddings in front of each target.
        answer_tokens: tokens of each target, including end of text.
        steps: timed steps, after one warm-up step.
        backward: 1 for training steps, 0 for the loss alone, as in validation.
        gradient_checkpointing: 1 recomputes activations in the backward pass.
        device: ``cpu``, ``cuda``, …
        dtype: precision of weights and matrix products.
    """

    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    tuning: str = "lora"
    batch_size: int = 16
    prompt_positions: int = 128
    answer_tokens: int = 32
    steps: int = 3
    backward: int = 1
    gradient_checkpointing: int = 0
    device: str = "cpu"
    dtype: str = "float32"


@dataclass
class LossCost:
    """Cost of one step.

    Attributes:
        seconds: median over the steps.
        peak_bytes: peak memory above the loaded model.
        loss: value of the loss.
    """

    seconds: float
    peak_bytes: int
    loss: float


def loss_report(batch: LossBatch) -> str:
    """Measure each method on the same batch and return a table with a heading."""
    costs = {
        method: measure_in_process("loss", method, batch, LossCost)
        for method in METHODS
    }
    heading = (
        f"{batch.model}, {batch.tuning}, {batch.dtype}, {batch.device}: "
        f"{batch.batch_size} utterances of {batch.prompt_positions} positions and "
        f"{batch.answer_tokens} answer tokens"
    )
    return f"{heading}\n\n{loss_table(costs)}"


def measure_loss(method: str, batch: LossBatch) -> LossCost:
    """Measure steps of one method in this process.

    The prompts require gradients, like those of a bridge.
    """
    import torch

    from speechllm.models.llm import LanguageModel

    torch.manual_seed(1)
    llm = LanguageModel(
        batch.model,
        tuning=batch.tuning,
        dtype=batch.dtype,
        gradient_checkpointing=bool(batch.gradient_checkpointing),
    )
    llm = llm.to(batch.device).train()
    prompts = torch.randn(
        batch.batch_size, batch.prompt_positions, llm.hidden_size, device=batch.device
    )
    prompts = (prompts * 0.1).to(llm.dtype).requires_grad_()
    targets = torch.randint(
        llm.config.vocab_size,
        (batch.batch_size, batch.answer_tokens),
        device=batch.device,
    )
    step = {"targets": loss_at_targets, "sequence": loss_over_sequence}[method]
    for parameter in llm.parameters():
        parameter.sum()  # page in weights that are mapped from the file
    memory = PeakMemory(batch.device)
    seconds = []
    for _ in range(batch.steps + 1):
        begin = time.perf_counter()
        with (
            torch.set_grad_enabled(bool(batch.backward)),
            torch.autocast(batch.device, llm.dtype, llm.dtype != torch.float32),
        ):
            loss = step(llm, prompts, targets)
        if batch.backward:
            loss.backward()
        value = loss.item()  # synchronises with a GPU
        seconds.append(time.perf_counter() - begin)
        llm.zero_grad()
        prompts.grad = None
    return LossCost(statistics.median(seconds[1:]), memory.peak(), value)


def loss_at_targets(llm: LanguageModel, prompts: Tensor, targets: Tensor) -> Tensor:
    """Return our loss: summed over a target, averaged over the batch.

    Args:
        prompts: embeddings (batch, positions, hidden).
        targets: token ids (batch, tokens).
    """
    return llm.answer_loss(list(prompts), targets.tolist())[0]


def loss_over_sequence(llm: LanguageModel, prompts: Tensor, targets: Tensor) -> Tensor:
    """Return the same loss, computed by transformers' ``labels=``."""
    output, _ = output_with_labels(llm, list(prompts), targets.tolist())
    return output.loss * targets.shape[1]


def output_with_labels(
    llm: LanguageModel, prompts: Sequence[Tensor], targets: Sequence[Sequence[int]]
):
    """Run transformers' model on prompts and targets with ``labels=``.

    Args:
        prompts: embeddings (positions, hidden) in front of each target.
        targets: token ids of each, including end of text.

    Returns:
        The model's output, whose loss is the mean over all target tokens, and the
        labels (batch, positions), -100 outside the targets.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    sequences = [
        torch.cat([prompt, embedded])
        for prompt, embedded in zip(prompts, llm.embed_lists(targets))
    ]
    labels = [
        torch.tensor([-100] * len(prompt) + list(target), device=prompt.device)
        for prompt, target in zip(prompts, targets)
    ]
    padded_labels = pad_sequence(labels, batch_first=True, padding_value=-100)
    masks = [torch.ones(len(s), dtype=torch.long, device=s.device) for s in sequences]
    output = llm.causal_lm(
        inputs_embeds=pad_sequence(sequences, batch_first=True).to(llm.dtype),
        attention_mask=pad_sequence(masks, batch_first=True),
        labels=padded_labels,
        use_cache=False,
    )
    return output, padded_labels


def loss_table(costs: dict[str, LossCost]) -> str:
    """Format the costs as a Markdown table; the last row compares ours with theirs."""
    rows = [
        "| loss | s/step | peak memory above the model, MiB | value |",
        "| --- | ---: | ---: | ---: |",
    ]
    for method, cost in costs.items():
        rows.append(
            f"| {METHODS[method]} | {cost.seconds:.3f} "
            f"| {cost.peak_bytes / MEBIBYTE:.0f} | {cost.loss:.3f} |"
        )
    ours, theirs = costs["targets"], costs["sequence"]
    rows.append(
        f"| ratio | {theirs.seconds / ours.seconds:.2f} × the speed "
        f"| {ours.peak_bytes / theirs.peak_bytes:.2f} × the memory | |"
    )
    return "\n".join(rows)
