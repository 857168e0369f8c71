"""Left-padded KV cache with rows that can be added, dropped and reordered.

Rows have different lengths and end at the same position; padding is on the left. New
positions are written in place at the end; a row that keeps its index is not copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

SPARE = 32  # positions that a full buffer grows by
MULTIPLE = 8  # of the positions of a buffer, for the kernels of attention


class Move(NamedTuple):
    """Rows that are copied to others.

    Attributes:
        places: (moved,) rows that are overwritten.
        sources: (moved,) rows that are copied there.
        positions: number of last positions that are copied.
    """

    places: Tensor
    sources: Tensor
    positions: int


class BeamKVLayer(CacheLayerMixin):
    """Keys and values of one layer.

    They are in buffers (rows, heads, positions, dim), of which the first ``rows``
    and the positions from ``begin`` to ``end`` are in use.
    """

    is_sliding = False  # all positions are kept; the model masks those outside a window
    keys: Tensor
    values: Tensor
    place: Tensor | None = None  # (1,) where `update` writes; see `BeamKVCache.fixed`

    def __init__(self, spare: int = SPARE) -> None:
        super().__init__()
        self.spare = spare
        self.rows = self.begin = self.end = 0
        self.replacements = 0  # of the buffers

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make empty buffers of the right type on the right device."""
        self.keys, self.values = key_states[:0], value_states[:0]
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *unused: Any, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Write new positions (rows, heads, new, dim); return all of them."""
        if self.place is not None:
            rows = slice(key_states.shape[0])
            self.keys[rows].index_copy_(2, self.place, key_states)
            self.values[rows].index_copy_(2, self.place, value_states)
            return self.keys[rows], self.values[rows]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.rows, new = key_states.shape[0], key_states.shape[2]
        self.reserve(self.rows, self.end - self.begin, new)
        window = slice(self.end, self.end + new)
        self.keys[: self.rows, :, window] = key_states
        self.values[: self.rows, :, window] = value_states
        self.end += new
        return self.used(self.keys), self.used(self.values)

    def used(self, buffer: Tensor) -> Tensor:
        """Return the part of a buffer in use (rows, heads, positions, dim)."""
        return buffer[: self.rows, :, self.begin : self.end]

    def reserve(self, rows: int, before: int, after: int) -> None:
        """Make room for ``rows`` rows, and for positions before and after the end.

        Args:
            before: positions before the end of those in use, including them.
            after: new positions after it.
        """
        capacity = self.keys.shape
        if (
            rows <= capacity[0]
            and before <= self.end
            and self.end + after <= capacity[2]
        ):
            return
        used = self.end - self.begin
        end = max(before, used)
        room = rows <= capacity[0] and end + after <= capacity[2]
        positions = end + after + self.spare
        positions += -positions % MULTIPLE
        for name in ("keys", "values"):
            old = getattr(self, name)
            kept = old[:, :, self.begin : self.end]
            if room:
                old[:, :, end - used : end] = kept.clone()
                continue
            new = old.new_zeros(  # masked values must be finite
                max(rows, len(old)), old.shape[1], positions, old.shape[3]
            )
            new[: len(old), :, end - used : end] = kept
            setattr(self, name, new)
        self.replacements += not room
        self.begin, self.end = end - used, end

    def select(self, rows: int, moves: Sequence[Move]) -> None:
        """Copy rows, all at the same time, and keep the first ``rows`` rows."""
        self.reserve(rows, self.end - self.begin, 1)
        for buffer in (self.keys, self.values):
            windows = [
                buffer[:, :, max(self.end - move.positions, self.begin) : self.end]
                for move in moves
            ]
            copies = [
                window.index_select(0, move.sources)
                for window, move in zip(windows, moves)
            ]
            for window, move, copy in zip(windows, moves, copies):
                window.index_copy_(0, move.places, copy)
        self.rows = rows

    def append(self, other: BeamKVLayer) -> None:
        """Append the rows of another cache."""
        if not self.is_initialized:
            self.lazy_initialization(other.keys, other.values)
        width = other.end - other.begin
        rows = slice(self.rows, self.rows + other.rows)
        self.reserve(rows.stop, max(width, self.end - self.begin), 1)
        self.begin = min(self.begin, self.end - width)
        self.rows = rows.stop
        for mine, new in ((self.keys, other.keys), (self.values, other.values)):
            mine[rows, :, self.end - width : self.end] = other.used(new)

    def get_seq_length(self) -> int:
        """Return the number of positions in use."""
        return self.end - self.begin

    def get_max_length(self) -> int:
        """Return -1: there is no maximum."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the width and the offset of the attention mask."""
        return self.get_seq_length() + query_length, 0


class BeamKVCache(Cache):
    """KV cache of all layers, for the ``past_key_values`` of transformers.

    Args:
        spare: positions that a full buffer grows by.
    """

    layers: list[BeamKVLayer]  # type: ignore[assignment]

    def __init__(self, spare: int = SPARE) -> None:
        super().__init__(layer_class_to_replicate=BeamKVLayer)
        self.spare = spare

    @property
    def capacity(self) -> int:
        """Number of positions of the buffers."""
        return self.layers[0].keys.shape[2]

    @property
    def replacements(self) -> int:
        """Number of times that the buffers were replaced."""
        return self.layers[0].replacements

    def reserve(self, rows: int) -> None:
        """Make room for ``rows`` rows and a new position."""
        for layer in self.layers:
            layer.reserve(rows, layer.end - layer.begin, 1)

    @contextmanager
    def fixed(self, place: Tensor) -> Iterator[None]:
        """Let ``update`` write at a place and return the whole buffers.

        Shapes and addresses do not depend on the positions in use.

        Args:
            place: (1,) index of the new position.
        """
        for layer in self.layers:
            layer.place = place
        try:
            yield
        finally:
            for layer in self.layers:
                layer.place = None

    def advance(self, rows: int) -> None:
        """Count the position that was written at a fixed place."""
        for layer in self.layers:
            layer.rows, layer.end = rows, layer.end + 1

    def select(self, rows: Sequence[int], changed: Sequence[int]) -> None:
        """Copy row ``rows[i]`` to row i; rows that are not in ``rows`` are dropped.

        Args:
            changed: for each i, the number of last positions in which row i may differ
                from row ``rows[i]``. Only these are copied.
        """
        if not self.layers:
            return
        device = self.layers[0].keys.device
        longest = self.get_seq_length()
        moved = [i for i, row in enumerate(rows) if i != row]
        moves = []
        for group in (
            [i for i in moved if changed[i] < longest],
            [i for i in moved if changed[i] >= longest],
        ):
            if group:
                places, sources = torch.tensor(
                    [(i, rows[i]) for i in group], device=device
                ).T
                moves.append(Move(places, sources, max(changed[i] for i in group)))
        for layer in self.layers:
            layer.select(len(rows), moves)

    def append(self, other: BeamKVCache) -> None:
        """Append the rows of another cache, aligned at the end."""
        while len(self.layers) < len(other.layers):
            self.layers.append(BeamKVLayer(self.spare))
        for mine, new in zip(self.layers, other.layers):
            mine.append(new)

    def trim(self, positions: int) -> None:
        """Keep only the last ``positions`` positions."""
        for layer in self.layers:
            layer.begin = layer.end - positions


def assign_rows(parents: Sequence[int]) -> list[int]:
    """Order new rows so that most of them have the index of their parent.

    Args:
        parents: the row that each new one continues.

    Returns:
        For each row, the index of the new one that takes it.
    """
    order: list[int | None] = [None] * len(parents)
    rest = []
    for index, parent in enumerate(parents):
        if parent < len(order) and order[parent] is None:
            order[parent] = index
        else:
            rest.append(index)
    left = iter(rest)
    return [next(left) if index is None else index for index in order]
