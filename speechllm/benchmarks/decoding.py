"""Benchmark of decoding: time and memory of several systems, and their texts compared.

Each system runs in a separate process. Reading the audio and decoding one utterance
as a warm-up are not timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechllm.audio.io import SAMPLING_RATE, load_audio
from speechllm.benchmarks.decoding_systems import (
    AGAINST,
    DecodingSet,
    UnsupportedError,
    load_system,
)
from speechllm.benchmarks.resources import MEBIBYTE, PeakMemory, measure_in_process
from speechllm.data.examples import read_utt2task
from speechllm.data.kaldi_table import read_table
from speechllm.text.tasks import Task
from speechllm.utils.batching import evenly
from speechllm.utils.errors import UserError


@dataclass
class DecodingCost:
    """Cost of decoding a set with one system.

    Attributes:
        system: one of ``AGAINST``, or a batch size of this package.
        seconds: wall-clock time, median over the rounds.
        cpu_seconds: processor time of all threads, median over the rounds; comparable
            on a machine with other load.
        utterances: number of utterances.
        speech_seconds: duration of the speech.
        model_bytes: memory with the model loaded, on a CPU that of the process.
        peak_bytes: peak memory above it.
        texts: text of each utterance.
        problem: reason if the system cannot decode the set; other fields are unset.
    """

    system: str
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    utterances: int = 0
    speech_seconds: float = 0.0
    model_bytes: int = 0
    peak_bytes: int = 0
    texts: Sequence[str] = ()
    problem: str | None = None


def decoding_report(
    batch_sizes: Sequence[int], against: Sequence[str], content: DecodingSet
) -> str:
    """Measure the systems one after the other and return a table with a heading.

    Args:
        batch_sizes: batch sizes of this package.
        against: systems of ``AGAINST``, measured first.

    Raises:
        UserError: no utterance to decode, or a system failed.
    """
    load_utterances(content)  # report problems once, not once per system
    costs = [
        measure_in_process("decode", system, content, DecodingCost)
        for system in [*against, *map(str, batch_sizes)]
    ]
    last = costs[-1]
    heading = (
        f"{content.model}, {content.dtype}, {content.device}: {last.utterances} "
        f"utterances, {last.speech_seconds:.0f} s of speech"
    )
    return f"{heading}\n\n{decoding_table(costs)}"


def measure_decoding(system: str, content: DecodingSet) -> DecodingCost:
    """Decode with one system in this process."""
    waves, requests = load_utterances(content)
    try:
        decode = load_system(system, content)
        decode(waves[:1], requests[:1])  # warm-up
    except UnsupportedError as reason:
        return DecodingCost(system, problem=str(reason))
    seconds, cpu_seconds, peak, model = [], [], 0, 0
    texts: list[str] = []
    for _ in range(content.rounds):
        memory = PeakMemory(content.device)
        begin, cpu_begin = time.perf_counter(), time.process_time()
        texts = decode(waves, requests)
        seconds.append(time.perf_counter() - begin)
        cpu_seconds.append(time.process_time() - cpu_begin)
        peak = max(peak, memory.peak())
        model = model or memory.start
    return DecodingCost(
        system,
        statistics.median(seconds),
        statistics.median(cpu_seconds),
        len(waves),
        sum(map(len, waves)) / SAMPLING_RATE,
        model,
        peak,
        texts,
    )


def load_utterances(content: DecodingSet) -> tuple[list[np.ndarray], list[Task]]:
    """Load the waveforms (samples,) at 16 kHz and their tasks and languages.

    Raises:
        UserError: no example has the task.
    """
    examples = Path(content.examples)
    wavs, tasks = read_table(examples / "wav.scp"), read_utt2task(examples)
    ids = [name for name in sorted(wavs) if content.task in (None, tasks[name].name)]
    if not ids:
        raise UserError(f"{examples}: no utterances to decode; check --task")
    if content.random:
        speech = [load_audio(path) for path in dict.fromkeys(wavs[i] for i in ids)]
        pieces = cut_speech(speech, content.limit or 32)
        return pieces, [Task("asr", "ja", "ja")] * len(pieces)
    ids = evenly(ids, content.limit)
    return [load_audio(wavs[name]) for name in ids], [tasks[name] for name in ids]


def cut_speech(waves: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """Cut pieces of uniformly distributed length, 1 to 10 s, from joined speech."""
    speech = np.concatenate(waves)
    generator = np.random.default_rng(0)
    pieces = []
    for size in (generator.uniform(1, 10, count) * SAMPLING_RATE).astype(int):
        begin = generator.integers(len(speech))
        pieces.append(np.take(speech, range(begin, begin + size), mode="wrap"))
    return pieces


def decoding_table(costs: Sequence[DecodingCost]) -> str:
    """Format the costs as a Markdown table, compared with the first row's system."""
    rows = [
        (
            "| system | utterances/s | real-time factor | CPU seconds "
            "| model, MiB | peak above it, MiB | speed | speed in CPU time | texts |"
        ),
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    first = next((cost for cost in costs if not cost.problem), None)
    for cost in costs:
        name = AGAINST.get(cost.system, f"speechllm, batch size {cost.system}")
        if cost.problem or first is None:
            rows.append(f"| {name} | cannot: {cost.problem} | | | | | | | |")
            continue
        differing = sum(a != b for a, b in zip(first.texts, cost.texts, strict=True))
        same = f"{differing} differ" if differing else "the same"
        if cost.system == "faster-whisper":
            same = "of another model"
        rows.append(
            f"| {name} | {cost.utterances / cost.seconds:.2f} "
            f"| {cost.seconds / cost.speech_seconds:.3f} | {cost.cpu_seconds:.1f} "
            f"| {cost.model_bytes / MEBIBYTE:.0f} | {cost.peak_bytes / MEBIBYTE:.0f} "
            f"| {first.seconds / cost.seconds:.2f} × "
            f"| {first.cpu_seconds / cost.cpu_seconds:.2f} × | {same} |"
        )
    return "\n".join(rows)
