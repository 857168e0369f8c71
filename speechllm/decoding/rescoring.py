"""Ranking whole texts anew by what the LLM and CTC make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from speechllm.decoding.ctc_prefix_scorer import BLANK, NEVER
from speechllm.decoding.forced_alignment import frames_needed
from speechllm.decoding.hypothesis import Hypothesis
from speechllm.text.ctc_labels import END


def ctc_log_probs(log_probs: Tensor, texts: Sequence[Sequence[int]]) -> list[float]:
    """Log probability of each text by CTC: the sum over all its paths.

    Args:
        log_probs: (frames, labels) of one utterance, blank first.
        texts: labels of each; one may be empty.

    Returns:
        One for each text; ``NEVER`` for one that does not fit into the frames.
    """
    scores = [NEVER] * len(texts)
    scores_of_blanks = log_probs[:, BLANK].double().sum().item()
    fitting = []
    for place, labels in enumerate(texts):
        if not len(labels):
            scores[place] = scores_of_blanks
        elif frames_needed(labels) <= len(log_probs):
            fitting.append(place)
    if fitting:
        losses = torch.nn.functional.ctc_loss(
            log_probs.double()[:, None].expand(-1, len(fitting), -1),
            torch.tensor(
                [k for i in fitting for k in texts[i]], device=log_probs.device
            ),
            torch.full((len(fitting),), len(log_probs)),
            torch.tensor([len(texts[i]) for i in fitting]),
            blank=BLANK,
            reduction="none",
        )
        for place, loss in zip(fitting, losses.tolist()):
            scores[place] = -loss
    return scores


def joint_score(llm_score: float, ctc_score: float, weight: float) -> float:
    """The log probability of a text by LLM and CTC, with CTC's share ``weight``."""
    return weight * ctc_score + (1 - weight) * llm_score


def rescore(
    nbest: Sequence[Hypothesis],
    log_probs: Tensor,
    texts: Sequence[Sequence[int]],
    weight: float,
    penalty: float = 0.0,
) -> list[Hypothesis]:
    """Rank the n-best of one utterance anew, best first.

    score = weight · CTC + (1 − weight) · LLM + penalty · tokens, as in joint search.

    Args:
        nbest: with their ``llm_score``.
        log_probs: (frames, labels) of the utterance's CTC.
        texts: what each says in CTC labels; ``END`` behind them is left out.
    """
    texts = [[k for k in labels if k != END] for labels in texts]
    heard = ctc_log_probs(log_probs, texts)
    ranked = [
        replace(
            hypothesis,
            score=joint_score(hypothesis.llm_score, score, weight)
            + penalty * (len(hypothesis.tokens) + 1),
            ctc_score=score,
            labels=labels,
        )
        for hypothesis, score, labels in zip(nbest, heard, texts, strict=True)
    ]
    return sorted(ranked, key=lambda hypothesis: -hypothesis.score)
