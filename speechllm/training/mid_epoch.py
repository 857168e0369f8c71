"""Resume state within an epoch: random numbers, averages, times of saving."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import torch
from espnet2.train.reporter import Average, SubReporter, WeightedAverage

from speechllm.training.options import parse_interval


class SaveInterval:
    """Tells when ``save_every`` has passed since the last save.

    Args:
        save_every: see :func:`~speechllm.training.options.parse_interval`; None: never.
    """

    def __init__(self, save_every: str | None):
        never = (float("inf"), 0)
        self.seconds, self.steps = parse_interval(save_every) if save_every else never
        self.restart()

    def restart(self) -> None:
        """Begin a new interval."""
        self.begin, self.done = time.monotonic(), 0

    def passed(self) -> bool:
        """Count a step; return True if the interval has passed."""
        self.done += 1
        if self.steps:
            return self.done >= self.steps
        return time.monotonic() - self.begin >= self.seconds


def rank_seed(seed: int, epoch: int, rank: int) -> int:
    """Return the seed of a process in an epoch, unlike those of all others.

    Joined by NumPy's ``SeedSequence``, as Lightning does for its data loaders; a sum
    would be that of another process in another epoch.
    """
    return int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1)[0])


def random_state() -> dict[str, Any]:
    """Return the states of the random number generators of this process.

    They are Python's, NumPy's, PyTorch's and that of the current GPU, as types that
    ``torch.load`` reads with ``weights_only``.
    """
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state = {
        "python": random.getstate(),
        "numpy": (str(kind), torch.from_numpy(keys.astype(np.int64)), position)
        + (has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Set the random number generators to a state of :func:`random_state`."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])


def reporter_state(reporter: SubReporter) -> dict[str, Any]:
    """Return the values that ESPnet's reporter averages at the end of the epoch.

    Each statistic is a pair of float64 vectors (batches,), values and weights, the
    latter None for plain averages.
    """
    stats = {}
    for name, reported in reporter.stats.items():
        weights = None
        if isinstance(reported[0], WeightedAverage):
            weights = torch.tensor([r.weight for r in reported], dtype=torch.float64)
        values = torch.tensor([r.value for r in reported], dtype=torch.float64)
        stats[name] = (values, weights)
    return {
        "stats": stats,
        "count": reporter.count,
        "total_count": reporter.total_count,
        "seconds": time.perf_counter() - reporter.start_time,
    }


def set_reporter_state(reporter: SubReporter, state: dict[str, Any]) -> None:
    """Continue the averages of an epoch with a state of :func:`reporter_state`."""
    reporter.stats.clear()
    for name, (values, weights) in state["stats"].items():
        if weights is None:
            reporter.stats[name] = [Average(v) for v in values.tolist()]
        else:
            pairs = zip(values.tolist(), weights.tolist(), strict=True)
            reporter.stats[name] = [WeightedAverage(v, w) for v, w in pairs]
    reporter.count = state["count"]
    reporter.total_count = state["total_count"]
    reporter.start_time = time.perf_counter() - state["seconds"]
