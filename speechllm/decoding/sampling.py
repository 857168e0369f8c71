"""Sampling: tokens drawn from the LLM's probabilities, the same in every batch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from speechllm.decoding.hypothesis import Candidate, Search, allowed
from speechllm.decoding.options import SearchOptions


def draw(
    log_probs: Tensor, active: Sequence[Search], options: SearchOptions, eos: int
) -> list[list[Candidate]]:
    """One drawn token for each utterance.

    A number of the utterance's own falls into the cumulative probabilities, which
    stand in the vocabulary's order: rounding errors do not change what is drawn.
    """
    rows = [search.beam[0].row for search in active]
    steps = [len(search.beam[0].tokens) + 1 for search in active]
    scores = log_probs[rows].double()
    for place, (search, step) in enumerate(zip(active, steps)):
        if not allowed(True, step, search, options):
            scores[place, eos] = -math.inf
    sums = kept_probabilities(scores, options).cumsum(1)
    numbers = torch.stack(
        [torch.rand(1, generator=s.draws, dtype=torch.double) for s in active]
    ).to(sums.device)
    tokens = torch.searchsorted(sums, numbers * sums[:, -1:], right=True)[:, 0]
    choices = []
    for search, row, step, token in zip(active, rows, steps, tokens.tolist()):
        parent = search.beam[0]
        if not allowed(False, step, search, options):
            token = eos
        score = parent.llm_score + log_probs[row, token].item()
        choices.append([Candidate(parent, token, score, score, parent.labels, row)])
    return choices


def kept_probabilities(scores: Tensor, options: SearchOptions) -> Tensor:
    """What is drawn from: temperature, then top-k, then nucleus (top-p) sampling.

    Args:
        scores: log probabilities (rows, vocabulary).

    Returns:
        probabilities (rows, vocabulary), 0 where nothing is drawn.
    """
    from transformers.generation.logits_process import (
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    scores = scores / options.temperature
    if options.top_k:
        scores = TopKLogitsWarper(options.top_k)(None, scores)
    if options.top_p < 1:
        scores = TopPLogitsWarper(options.top_p)(None, scores)
    return scores.softmax(1)


def generator(seed: int, key: int) -> torch.Generator:
    """Random numbers of one utterance."""
    digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
