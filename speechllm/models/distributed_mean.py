"""Means over the processes of a distributed training."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def divisors(weight: int, counts: Sequence[int], device: torch.device) -> list[float]:
    """Return what sums are divided by to become means over all processes.

    ESPnet's trainer averages the losses and statistics of the processes by ``weight``.
    A sum over this process's labels, divided by its count of labels, would get the
    weight of another count (tokens) there. All processes must call this together.

    Args:
        weight: this process's weight in ESPnet's average.
        counts: what the sums are means of, such as the labels of this process.
        device: device of the process group's tensors.

    Returns:
        For each count, weight · (all counts) / (all weights); in a single process the
        count itself.
    """
    total = torch.tensor([weight, *counts], dtype=torch.float64, device=device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    all_weights, *all_counts = total.tolist()
    return [weight * count / all_weights for count in all_counts]
