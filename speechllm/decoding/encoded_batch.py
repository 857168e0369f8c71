"""A batch of encoded utterances, the input of search and guard."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from speechllm.audio.io import SAMPLING_RATE


@dataclass
class Batch:
    """Encoded utterances: all that answers are searched for and judged by.

    Attributes:
        asks: (task, source language, target language) of each.
        waves: (samples,) at 16 kHz.
        prompts: embeddings (positions, hidden) of each.
        logits: of CTC (batch, frames, labels), or None.
        frames: (batch,)
        heard: what CTC alone heard, or None.
        keys: a number of each, of its samples and what is asked: sampling draws by it.
        at_once: utterances that the LLM answers at once; the others wait.
    """

    asks: Sequence[tuple[str, str, str]]
    waves: Sequence[np.ndarray]
    prompts: Sequence[Tensor]
    logits: Tensor | None
    frames: Tensor
    heard: Sequence[str | None]
    keys: Sequence[int]
    at_once: int | None = None

    @property
    def seconds(self) -> list[float]:
        """Of audio."""
        return [len(wave) / SAMPLING_RATE for wave in self.waves]

    def log_probs(self, row: int) -> Tensor:
        """CTC's log probabilities (frames, labels) of one utterance."""
        return self.logits[row, : self.frames[row]].float().log_softmax(1)

    def part(self, rows: Sequence[int]) -> Batch:
        """Some of the utterances."""
        index = torch.tensor(rows, device=self.frames.device)
        return Batch(
            [self.asks[row] for row in rows],
            [self.waves[row] for row in rows],
            [self.prompts[row] for row in rows],
            None if self.logits is None else self.logits[index],
            self.frames[index],
            [self.heard[row] for row in rows],
            [self.keys[row] for row in rows],
            self.at_once,
        )


def content_key(wave: np.ndarray, ask: Sequence[str]) -> int:
    """A number that the samples and what is asked of them make."""
    samples = np.ascontiguousarray(wave, dtype=np.float32)
    return zlib.crc32(repr(tuple(ask)).encode(), zlib.crc32(samples))
