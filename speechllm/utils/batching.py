"""Which utterances go together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from speechllm.utils.errors import UserError


def batches_by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Group indices of like lengths, longest first, ``batch_size`` at a time."""
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size}: at least 1")
    order = by_length(lengths)
    for begin in range(0, len(order), batch_size):
        yield order[begin : begin + batch_size]


def groups_of_like_length(
    lengths: Sequence[int], most: float = float("inf"), padding: float = 0.1
) -> Iterator[list[int]]:
    """Group indices so that padding is at most a given share, longest first.

    Args:
        lengths: of the utterances.
        most: a padded group is no longer than that in sum; one utterance may be.
        padding: share of a padded group that may be padding.
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
    """Indices, longest first; equal ones in order."""
    return sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


def evenly(names: Sequence[str], limit: int | None) -> list[str]:
    """At most ``limit`` of the names, all over the list; all of them if None."""
    if limit is None or limit >= len(names):
        return list(names)
    return [names[i * len(names) // limit] for i in range(limit)]
