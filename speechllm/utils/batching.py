"""Length-based batching."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import TypeVar

from speechllm.utils.errors import UserError

Item = TypeVar("Item")


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield batches of indices of similar length, longest first.

    Raises:
        UserError: ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size}: at least 1")
    order = by_length(lengths)
    for begin in range(0, len(order), batch_size):
        yield order[begin : begin + batch_size]


def groups_of_like_length(
    lengths: Sequence[int], most: float = float("inf"), padding: float = 0.1
) -> Iterator[list[int]]:
    """Yield groups of indices whose padding is limited, longest first.

    Args:
        lengths: lengths of the utterances.
        most: maximum padded length of a group, summed over its utterances; a longer
            utterance is a group of its own.
        padding: maximum ratio of padding in a group, 0 to 1.
    """
    group: list[int] = []
    filled = 0
    for index in by_length(lengths):
        size = lengths[group[0]] * (len(group) + 1) if group else 0
        if group and (size > most or filled + lengths[index] < (1 - padding) * size):
            yield group
            group, filled = [], 0
        group.append(index)
        filled += lengths[index]
    if group:
        yield group


def by_length(lengths: Sequence[int]) -> list[int]:
    """Return the indices, longest first; equal lengths keep their order."""
    return sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


def shards_of_like_length(lengths: Sequence[int], num_shards: int) -> list[list[int]]:
    """Split indices into shards of similar total length, which differ in their count.

    The longest first, each goes to the shard that has the least so far (Graham 1969,
    "Bounds on multiprocessing timing anomalies"): the longest shard is at most a third
    longer than the best split's. Without lengths the counts are similar.

    Returns:
        The indices of each shard, ascending.
    """
    shards: list[list[int]] = [[] for _ in range(num_shards)]
    heap = [(0, 0, shard) for shard in range(num_shards)]  # length, count, shard
    for index in by_length(lengths):
        total, count, shard = heap[0]
        shards[shard].append(index)
        heapq.heapreplace(heap, (total + lengths[index], count + 1, shard))
    return [sorted(shard) for shard in shards]


def evenly(items: Sequence[Item], limit: int | None) -> list[Item]:
    """Return at most ``limit`` items, spaced evenly over the list; all if None."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[i * len(items) // limit] for i in range(limit)]
