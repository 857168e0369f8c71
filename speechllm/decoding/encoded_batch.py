"""A batch of encoded utterances, the input of the search and of the guard."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from speechllm.audio import SAMPLING_RATE
from speechllm.decoding.ctc_prefix_scorer import CTCPrefixScorer
from speechllm.decoding.first_pass import FirstPass
from speechllm.decoding.piece_lattice_scorer import PieceLatticeScorer
from speechllm.decoding.rescoring import ctc_log_probs
from speechllm.text.tasks import Task


@dataclass
class EncodedBatch:
    """A batch of encoded utterances, with everything that decoding and the guard need.

    Attributes:
        tasks: task of each utterance.
        waves: (samples,) of each at 16 kHz.
        prompt_embeds: (positions, hidden) of each: prompt and speech.
        logits: (batch, frames, labels) of CTC, or None without a trained CTC branch.
        encoder_lengths: (batch,) frames.
        ctc_texts: CTC transcript of each, or None.
        sampling_seeds: one seed per utterance, derived from audio and task, so that
            sampling does not depend on the batch.
        batch_size: maximum number of utterances decoded concurrently; all if None.
        first_pass: transcripts of each by the decoder of the pretrained speech model,
            or None for an utterance or the batch without.
        pieces: names of the CTC labels where they are BPE pieces. Texts are then scored
            in characters, by the sum over all their pieces.
    """

    tasks: Sequence[Task]
    waves: Sequence[np.ndarray]
    prompt_embeds: Sequence[Tensor]
    logits: Tensor | None
    encoder_lengths: Tensor
    ctc_texts: Sequence[str | None]
    sampling_seeds: Sequence[int]
    batch_size: int | None = None
    pieces: Sequence[str] | None = None
    first_pass: Sequence[FirstPass | None] | None = None
    language_probabilities: Sequence[float | None] | None = None
    _ctc_scores: dict[tuple[int, tuple[int, ...]], float] = field(
        default_factory=dict, init=False, repr=False
    )

    @property
    def seconds(self) -> list[float]:
        """Length of each utterance in seconds."""
        return [len(wave) / SAMPLING_RATE for wave in self.waves]

    def log_probs(self, row: int) -> Tensor:
        """Return the CTC log probabilities (frames, labels) of one utterance."""
        assert self.logits is not None
        return self.logits[row, : self.encoder_lengths[row]].float().log_softmax(1)

    def ctc_text(self, row: int) -> str:
        """Return the CTC transcript of one utterance; empty without a CTC branch."""
        return self.ctc_texts[row] or ""

    def ctc_scores(self, row: int, texts: Sequence[Sequence[int]]) -> list[float]:
        """Return the CTC log probability of each text, computed once for each.

        Args:
            row: the utterance.
            texts: CTC labels of each text; characters where the labels are pieces.
        """
        keys = [(row, tuple(labels)) for labels in texts]
        new = [key for key in dict.fromkeys(keys) if key not in self._ctc_scores]
        if new:
            spelt = [labels for _, labels in new]
            if self.pieces is None:
                scores = ctc_log_probs(self.log_probs(row), spelt)
            else:
                scorer = self.select([row]).prefix_scorer()
                start = scorer.start(torch.zeros_like(scorer.lengths[:1]))
                order, states = scorer.extend_many(start, [(0, text) for text in spelt])
                found = dict(zip(order, scorer.finish(states).tolist()))
                scores = [found[place] for place in range(len(spelt))]
            self._ctc_scores.update(zip(new, scores))
        return [self._ctc_scores[key] for key in keys]

    def prefix_scorer(self) -> CTCPrefixScorer:
        """Return a scorer of text prefixes; the batch has CTC logits."""
        assert self.logits is not None
        if self.pieces is None:
            return CTCPrefixScorer(self.logits, self.encoder_lengths)
        return PieceLatticeScorer(self.logits, self.encoder_lengths, self.pieces)

    def select(self, rows: Sequence[int]) -> EncodedBatch:
        """Return the batch of some of the utterances."""
        index = torch.tensor(rows, device=self.encoder_lengths.device)
        return EncodedBatch(
            [self.tasks[row] for row in rows],
            [self.waves[row] for row in rows],
            [self.prompt_embeds[row] for row in rows],
            None if self.logits is None else self.logits[index],
            self.encoder_lengths[index],
            [self.ctc_texts[row] for row in rows],
            [self.sampling_seeds[row] for row in rows],
            self.batch_size,
            self.pieces,
            _some(self.first_pass, rows),
            _some(self.language_probabilities, rows),
        )


def _some(values: Sequence | None, rows: Sequence[int]) -> list | None:
    return None if values is None else [values[row] for row in rows]


def sampling_seed(wave: np.ndarray, task: Task) -> int:
    """Return a number that depends on the samples and the task alone."""
    samples = np.ascontiguousarray(wave, dtype=np.float32)
    return zlib.crc32(repr(tuple(task)).encode(), zlib.crc32(samples.data))
