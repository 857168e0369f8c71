"""Measure what batches and losses cost: time, memory, and whether texts agree."""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from speechllm.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from speechllm.inference import SpeechToText
    from speechllm.model.llm import LanguageModel

MEBIBYTE = 1 << 20


class PeakMemory:
    """The most memory that a stretch of work needs, in bytes above its beginning.

    On a GPU the allocator tells; elsewhere Linux does, whose record of this
    process's greatest size is reset at the beginning.

        memory = PeakMemory("cpu")
        work()
        print(memory.peak())
    """

    def __init__(self, device: str):
        import torch

        self.cuda = torch.device(device).type == "cuda"
        gc.collect()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
            return
        try:
            ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back first
            Path("/proc/self/clear_refs").write_text("5")
        except (AttributeError, OSError) as error:
            raise UserError(
                f"peak memory can be measured on Linux with glibc only: {error}"
            ) from error
        self.start = process_memory("VmRSS")

    def peak(self) -> int:
        """Bytes above the beginning, at most, up to now."""
        import torch

        if self.cuda:
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - self.start
        return process_memory("VmHWM") - self.start


def process_memory(name: str) -> int:
    """A size of this process in bytes: ``VmRSS`` now, ``VmHWM`` at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise UserError(f"/proc/self/status has no {name}")


# Decoding


@dataclass
class DecodingCost:
    """Decoding of a set at one batch size.

    Attributes:
        batch_size: utterances at once.
        seconds: for the whole set; the median of all rounds.
        utterances: in the set.
        speech_seconds: in the set.
        peak_bytes: above the loaded model.
        differing: utterances whose text is not that of the first batch size.
    """

    batch_size: int
    seconds: float
    utterances: int
    speech_seconds: float
    peak_bytes: int
    differing: list[str]


def benchmark_decoding(
    model_dir: str | Path,
    examples: str | Path,
    batch_sizes: Sequence[int],
    generation: dict,
    rounds: int = 1,
    limit: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> list[DecodingCost]:
    """Decode the same utterances at several batch sizes, in this one process.

    Audio is read before the clock starts, and one utterance is decoded to warm up.
    The rounds go through all batch sizes in turn, so that a disturbance of the
    machine meets each of them.

    Args:
        model_dir: folder that stage 11 wrote.
        examples: example dir.
        batch_sizes: the first one is what the others are compared with.
        generation: fields of ``SearchOptions``.
        rounds: how often everything is decoded.
        limit: take only so many utterances, evenly from the sorted ids.
        device, dtype: where and in what precision.
    """
    from speechllm.audio import load_audio
    from speechllm.datadir import read_table
    from speechllm.inference import SAMPLING_RATE, SpeechToText

    wavs = read_table(Path(examples) / "wav.scp")
    tasks = read_table(Path(examples) / "utt2task")
    ids = sorted(wavs)
    if limit is not None and limit < len(ids):
        ids = [ids[i * len(ids) // limit] for i in range(limit)]
    if not ids or not batch_sizes:
        raise UserError(f"{examples}: nothing to decode")
    waves = [load_audio(wavs[name]) for name in ids]
    asks = [tuple(tasks[name].split()) for name in ids]
    model = SpeechToText.from_pretrained(model_dir, device, dtype)
    decode_set(model, waves[:1], asks[:1], 1, generation)
    times: dict[int, list[float]] = {size: [] for size in batch_sizes}
    peaks = dict.fromkeys(batch_sizes, 0)
    texts: dict[int, list[str]] = {}
    for _ in range(rounds):
        for size in batch_sizes:
            memory = PeakMemory(device)
            begin = time.perf_counter()
            texts[size] = decode_set(model, waves, asks, size, generation)
            times[size].append(time.perf_counter() - begin)
            peaks[size] = max(peaks[size], memory.peak())
    first = texts[batch_sizes[0]]
    return [
        DecodingCost(
            batch_size=size,
            seconds=statistics.median(times[size]),
            utterances=len(ids),
            speech_seconds=sum(map(len, waves)) / SAMPLING_RATE,
            peak_bytes=peaks[size],
            differing=[n for n, a, b in zip(ids, first, texts[size]) if a != b],
        )
        for size in batch_sizes
    ]


def decode_set(
    model: SpeechToText, waves: list, asks: list, batch_size: int, generation: dict
) -> list[str]:
    """Texts of all utterances, decoded ``batch_size`` at a time as stage 12 does."""
    from speechllm.inference import QUEUE, batches_by_length

    options = model.options(generation)
    texts = [""] * len(waves)
    for queue in batches_by_length([len(wave) for wave in waves], QUEUE * batch_size):
        results = model.decode(
            [waves[i] for i in queue], [asks[i] for i in queue], options, batch_size
        )
        for index, result in zip(queue, results):
            texts[index] = result.text
    return texts


def decoding_table(costs: Sequence[DecodingCost]) -> str:
    """The costs as a Markdown table; speed is told against the first row."""
    rows = [
        "| batch size | utterances/s | real-time factor | peak memory, MiB | speed "
        "| same texts |",
        "| ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for cost in costs:
        same = "yes"
        if cost.differing:
            same = f"no: {len(cost.differing)}, the first is {cost.differing[0]}"
        rows.append(
            f"| {cost.batch_size} | {cost.utterances / cost.seconds:.2f} "
            f"| {cost.seconds / cost.speech_seconds:.3f} "
            f"| {cost.peak_bytes / MEBIBYTE:.0f} "
            f"| {costs[0].seconds / cost.seconds:.2f} × | {same} |"
        )
    return "\n".join(rows)


# Loss


@dataclass(frozen=True)
class LossBatch:
    """A batch of prompts (speech and what is around it) and answers of equal length.

    Attributes:
        batch_size: utterances.
        prompt_positions: embeddings before each answer.
        answer_tokens: tokens of each answer, end of text included.
        steps: timed steps, after one that warms up.
        backward: 1 for training steps, 0 for the loss alone, as in validation.
        gradient_checkpointing: 1 recomputes activations in the backward pass.
    """

    batch_size: int = 16
    prompt_positions: int = 128
    answer_tokens: int = 32
    steps: int = 3
    backward: int = 1
    gradient_checkpointing: int = 0


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


def benchmark_loss(
    model: str, batch: LossBatch, device: str = "cpu", dtype: str = "float32"
) -> dict[str, LossCost]:
    """Measure each way to the loss in a process of its own, on the same batch."""
    costs = {}
    for method in METHODS:
        command = [sys.executable, "-m", "speechllm.bin.benchmark", "loss"]
        command += ["--model", model, "--device", device, "--dtype", dtype]
        for name, value in asdict(batch).items():
            command += [f"--{name}", str(value)]
        done = subprocess.run(
            [*command, "--only", method], capture_output=True, text=True
        )
        if done.returncode:
            reason = (done.stderr.strip() or f"status {done.returncode}").splitlines()
            raise UserError(f"{method}: {reason[-1].removeprefix('error: ')}")
        costs[method] = LossCost(**json.loads(done.stdout.splitlines()[-1]))
    return costs


def measure_loss(
    method: str, model: str, batch: LossBatch, device: str, dtype: str
) -> LossCost:
    """Steps of one method, in this process.

    The LLM has LoRA on all linear layers, and the prompts ask for gradients as those
    that come from a bridge do. Products are in the precision of the weights.
    """
    import torch

    from speechllm.model.llm import LanguageModel

    torch.manual_seed(1)
    llm = LanguageModel(
        model,
        tuning="lora",
        dtype=dtype,
        gradient_checkpointing=bool(batch.gradient_checkpointing),
    )
    llm = llm.to(device).train()
    prompts = torch.randn(
        batch.batch_size, batch.prompt_positions, llm.hidden_size, device=device
    )
    prompts = (prompts * 0.1).to(llm.dtype).requires_grad_()
    answers = torch.randint(
        llm.config.vocab_size, (batch.batch_size, batch.answer_tokens), device=device
    )
    step = {"targets": loss_at_targets, "sequence": loss_over_sequence}[method]
    for parameter in llm.parameters():
        parameter.sum()  # weights that are mapped from the file come in now
    memory = PeakMemory(device)
    seconds = []
    for _ in range(batch.steps + 1):
        begin = time.perf_counter()
        with (
            torch.set_grad_enabled(bool(batch.backward)),
            torch.autocast(device, llm.dtype, enabled=llm.dtype != torch.float32),
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
    import torch

    inputs = torch.cat([prompts, llm.embed(answers)], dim=1)
    ignored = torch.full(prompts.shape[:2], -100, device=answers.device)
    output = llm.causal_lm(
        inputs_embeds=inputs,
        attention_mask=torch.ones(inputs.shape[:2], device=answers.device).long(),
        labels=torch.cat([ignored, answers], dim=1),
        use_cache=False,
    )
    return output.loss * answers.shape[1]


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
