"""Benchmark of the transcript bridge's mean over the frames of each token."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

FRAMES, DIMENSION = 1500, 512  # 30 s of Whisper-base
TOKENS = 100
ROUNDS = 20

Spans = list[tuple[int, int]]


def spans_report() -> str:
    """Measure both ways on random frames and return a table with a heading."""
    import torch

    from speechllm.models.bridge import mean_over_spans

    torch.manual_seed(1)
    frames = torch.randn(FRAMES, DIMENSION)
    bounds = torch.linspace(0, FRAMES, TOKENS + 1).int().tolist()
    spans = list(zip(bounds, bounds[1:]))
    seconds = {
        name: measure_spans(mean, frames, spans)
        for name, mean in (
            ("frames of the spans only (speechllm)", mean_over_spans),
            ("product with a matrix of weights (tokens, frames)", dense_mean),
        )
    }
    rows = [f"| {name} | {1000 * value:.2f} |" for name, value in seconds.items()]
    ours, dense = seconds.values()
    error = (mean_over_spans(frames, spans) - dense_mean(frames, spans)).abs().max()
    return "\n".join(
        [
            f"{TOKENS} tokens of {FRAMES} frames of {DIMENSION} values, float32, "
            f"median of {ROUNDS}; largest difference {error:.0e}\n",
            "| mean of the frames of each token | CPU ms |",
            "| --- | ---: |",
            *rows,
            f"| ratio | {dense / ours:.1f} × the speed |",
        ]
    )


def measure_spans(
    mean: Callable[[Tensor, Spans], Tensor], frames: Tensor, spans: Spans
) -> float:
    """Return the median CPU seconds of a call, after one that is not counted."""
    seconds = []
    for _ in range(ROUNDS + 1):
        begin = time.process_time()
        mean(frames, spans)
        seconds.append(time.process_time() - begin)
    return statistics.median(seconds[1:])


def dense_mean(frames: Tensor, spans: Spans) -> Tensor:
    """Average frames (frames, dim) over each span: (spans, dim), as a product."""
    weights = frames.new_zeros(len(spans), len(frames))
    for row, (begin, end) in zip(weights, spans):
        row[begin:end] = 1 / (end - begin)
    return weights @ frames
