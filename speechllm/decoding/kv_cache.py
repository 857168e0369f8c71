"""A left-padded KV cache whose rows can be added, dropped and reordered."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

SPARE = 32  # positions that a full buffer grows by


class RowLayer(CacheLayerMixin):
    """Keys and values of one layer.

    They stand in buffers (rows, heads, positions, dim), of which the first ``rows``
    and the positions from ``begin`` to ``end`` are in use.
    """

    is_sliding = False  # all is kept; a model's mask hides what is too far back

    def __init__(self):
        super().__init__()
        self.rows = self.begin = self.end = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = key_states[:0], value_states[:0]
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *unused, **options
    ) -> tuple[Tensor, Tensor]:
        """Write new positions (rows, heads, new, dim); return all of them."""
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
        """The part of a buffer that is in use (rows, heads, positions, dim)."""
        return buffer[: self.rows, :, self.begin : self.end]

    def reserve(self, rows: int, before: int, behind: int) -> None:
        """Make room for so many rows, and positions in front and at the back.

        Args:
            before: positions that end where those in use end.
            behind: positions that begin there.
        """
        capacity = self.keys.shape
        if (
            rows <= capacity[0]
            and before <= self.end
            and self.end + behind <= capacity[2]
        ):
            return
        used = self.end - self.begin
        end = max(before, used)
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(  # what is masked must be finite
                max(rows, len(old)), old.shape[1], end + behind + SPARE, old.shape[3]
            )
            kept = old[:, :, self.begin : self.end]
            new[: len(old), :, end - used : end] = kept
            setattr(self, name, new)
        self.begin, self.end = end - used, end

    def select(self, rows: Sequence[int]) -> None:
        """Let row i be what row ``rows[i]`` was."""
        self.reserve(len(rows), self.end - self.begin, 1)
        moved = [(i, row) for i, row in enumerate(rows) if i != row]
        if moved:
            places, sources = torch.tensor(moved, device=self.keys.device).T
            for buffer in (self.keys, self.values):
                window = buffer[:, :, self.begin : self.end]
                window.index_copy_(0, places, window.index_select(0, sources))
        self.rows = len(rows)

    def append(self, other: RowLayer) -> None:
        """Put the rows of another cache behind the own ones."""
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
        return self.end - self.begin

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0


class RowCache(Cache):
    """The cache of all layers, for transformers' ``past_key_values``."""

    def __init__(self):
        super().__init__(layer_class_to_replicate=RowLayer)

    def select(self, rows: Sequence[int]) -> None:
        """Let row i be what row ``rows[i]`` was; rows named never are gone."""
        for layer in self.layers:
            layer.select(rows)

    def append(self, other: RowCache) -> None:
        """Put the rows of another cache behind the own ones, ends together."""
        while len(self.layers) < len(other.layers):
            self.layers.append(RowLayer())
        for mine, new in zip(self.layers, other.layers):
            mine.append(new)

    def trim(self, positions: int) -> None:
        """Keep only the last so many positions."""
        for layer in self.layers:
            layer.begin = layer.end - positions
