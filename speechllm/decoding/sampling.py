"""Sampling: tokens drawn from the LLM's distribution, independently of the batch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from speechllm.decoding.hypothesis import BeamState, Candidate
from speechllm.decoding.options import SearchOptions
from speechllm.models.precision import to_float64_device


def sample(
    log_probs: Tensor, beams: Sequence[BeamState], options: SearchOptions, eos: int
) -> list[list[Candidate]]:
    """Draw one token for each utterance.

    The utterance's own random number is looked up in the cumulative probabilities in
    the order of the vocabulary, so that rounding errors do not change the draw.

    Args:
        log_probs: (rows, vocabulary) of the next token.
    """
    rows = [beam.hypotheses[0].row for beam in beams]
    scores = to_float64_device(log_probs[rows]).double()  # (utterances, vocabulary)
    for place, beam in enumerate(beams):
        if not beam.allows(True, options):
            scores[place, eos] = -math.inf
    sums = sampling_probabilities(scores, options).cumsum(1)
    numbers = torch.stack(
        [torch.rand(1, generator=b.rng, dtype=torch.double) for b in beams]
    ).to(sums.device)
    tokens = torch.searchsorted(sums, numbers * sums[:, -1:], right=True)[:, 0]
    choices = []
    for beam, row, token in zip(beams, rows, tokens.tolist()):
        parent = beam.hypotheses[0]
        if not beam.allows(False, options):
            token = eos
        log_prob = log_probs[row, token].item()
        score = parent.llm_score + log_prob
        choices.append([Candidate(parent, token, log_prob, score, score, [], row)])
    return choices


def sampling_probabilities(scores: Tensor, options: SearchOptions) -> Tensor:
    """Apply temperature, then top-k, then nucleus (top-p) sampling.

    Args:
        scores: (rows, vocabulary) log probabilities.

    Returns:
        (rows, vocabulary) probabilities, 0 for tokens that are not drawn.
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


def utterance_rng(seed: int, sampling_seed: int) -> torch.Generator:
    """Return the random number generator of one utterance."""
    digest = hashlib.sha256(f"{seed} {sampling_seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
