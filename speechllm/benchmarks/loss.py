"""Benchmark of the loss at the target positions against the whole sequence."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from speechllm.benchmarks.resources import MEBIBYTE, PeakMemory, measured_apart

if TYPE_CHECKING:
    from torch import Tensor

    from speechllm.models.llm import LanguageModel


# Loss


@dataclass(frozen=True)
class LossBatch:
    """A batch of prompts (speech and what is around it) and answers of equal length.

    Attributes:
        model: the LLM.
        tuning: ``lora`` on all linear layers, ``full`` or ``frozen``.
        batch_size: utterances.
        prompt_positions: embeddings before each answer.
        answer_tokens: tokens of each answer, end of text included.
        steps: timed steps, after one that warms up.
        backward: 1 for training steps, 0 for the loss alone, as in validation.
        gradient_checkpointing: 1 recomputes activations in the backward pass.
        device, dtype: where and in what precision.
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
    """A step: seconds (median), bytes above the loaded model, the loss."""

    seconds: float
    peak_bytes: int
    loss: float


METHODS = {
    "targets": "head at the target positions only (speechllm)",
    "sequence": "logits over the whole sequence (transformers, labels=)",
}


def benchmark_loss(batch: LossBatch) -> dict[str, LossCost]:
    """Measure each way to the loss on the same batch."""
    return {
        method: measured_apart("loss", method, batch, LossCost) for method in METHODS
    }


def measure_loss(method: str, batch: LossBatch) -> LossCost:
    """Steps of one method, in this process.

    The prompts ask for gradients as those that come from a bridge do. Products are
    in the precision of the weights.
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
    answers = torch.randint(
        llm.config.vocab_size,
        (batch.batch_size, batch.answer_tokens),
        device=batch.device,
    )
    step = {"targets": loss_at_targets, "sequence": loss_over_sequence}[method]
    for parameter in llm.parameters():
        parameter.sum()  # weights that are mapped from the file come in now
    memory = PeakMemory(batch.device)
    seconds = []
    for _ in range(batch.steps + 1):
        begin = time.perf_counter()
        with (
            torch.set_grad_enabled(bool(batch.backward)),
            torch.autocast(batch.device, llm.dtype, llm.dtype != torch.float32),
        ):
            loss = step(llm, prompts, answers)
        if batch.backward:
            loss.backward()
        value = loss.item()  # waits for a GPU
        seconds.append(time.perf_counter() - begin)
        llm.zero_grad()
        prompts.grad = None
    return LossCost(statistics.median(seconds[1:]), memory.peak(), value)


def loss_at_targets(llm: LanguageModel, prompts: Tensor, answers: Tensor) -> Tensor:
    """Our loss: summed over an answer, averaged over the batch."""
    return llm.answer_loss(list(prompts), answers.tolist())[0]


def loss_over_sequence(llm: LanguageModel, prompts: Tensor, answers: Tensor) -> Tensor:
    """The same by transformers' own ``labels=``."""
    output, _ = output_with_labels(llm, list(prompts), answers.tolist())
    return output.loss * answers.shape[1]


def output_with_labels(
    llm: LanguageModel, prompts: Sequence[Tensor], answers: Sequence[Sequence[int]]
):
    """What transformers' model says of prompts and answers with ``labels=``.

    Args:
        prompts: (positions, hidden) of what stands before each answer.
        answers: token ids of each, end of text included.

    Returns:
        The model's output, whose loss is the mean over all answers' tokens, and the
        labels (batch, positions), -100 where no answer stands.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    sequences = [
        torch.cat([prompt, said])
        for prompt, said in zip(prompts, llm.embed_lists(answers))
    ]
    labels = [
        torch.tensor([-100] * len(prompt) + list(answer), device=prompt.device)
        for prompt, answer in zip(prompts, answers)
    ]
    labels = pad_sequence(labels, batch_first=True, padding_value=-100)
    filled = [torch.ones(len(s), dtype=torch.long, device=s.device) for s in sequences]
    output = llm.causal_lm(
        inputs_embeds=pad_sequence(sequences, batch_first=True).to(llm.dtype),
        attention_mask=pad_sequence(filled, batch_first=True),
        labels=labels,
        use_cache=False,
    )
    return output, labels


def loss_table(costs: dict[str, LossCost]) -> str:
    """The costs as a Markdown table, with the share of ours in the last row."""
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
