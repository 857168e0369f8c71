"""What a search is made of: its options, hypotheses, and what they may grow into."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from speechllm.decoding.options import SearchOptions


@dataclass
class Hypothesis:
    """An answer, or the beginning of one.

    Attributes:
        tokens: LLM token ids, without the end of text.
        score: what the search ranked it by.
        llm_score: log probability of the tokens and the end.
        ctc_score: log probability of the text by CTC, or None without CTC.
        labels: the text in CTC labels; ``END`` behind them where what CTC judges is
            over.
        silent: the last token was one that CTC does not hear, such as a comma.
        row: its place in the batch, while it grows.
    """

    tokens: list[int] = field(default_factory=list)
    score: float = 0.0
    llm_score: float = 0.0
    ctc_score: float | None = None
    labels: list[int] = field(default_factory=list)
    silent: bool = False
    row: int = 0


@dataclass(slots=True)
class Candidate:
    """A token that may be appended to a hypothesis.

    Attributes:
        parent: the hypothesis.
        token: the token.
        llm_score: log probability of the hypothesis with it.
        score: what it is ranked by. Until CTC has judged it, the most that it can
            be: a text is never likelier than its beginning.
        labels: CTC labels of the text with it.
        state: place of its CTC state in this step.
        ctc_score: log probability of its text by CTC.
    """

    parent: Hypothesis
    token: int
    llm_score: float
    score: float
    labels: list[int]
    state: int
    ctc_score: float | None = None


@dataclass
class Search:
    """The search for the answer to one utterance.

    Attributes:
        utterance: its place in the queue.
        max_tokens: most tokens of an answer.
        hints: tokens that are candidates at every step.
        spell: from token ids to CTC labels; None where CTC has no say.
        beam: the hypotheses that grow, the best first.
        finished: those that have ended, the best first.
        floor: score that a hypothesis must be above to be among the n-best still.
        draws: where sampling gets its numbers.
    """

    utterance: int
    max_tokens: int
    hints: Sequence[int]
    spell: Callable[[list[int]], list[int]] | None
    beam: list[Hypothesis] = field(default_factory=lambda: [Hypothesis()])
    finished: list[Hypothesis] = field(default_factory=list)
    floor: float = -math.inf
    draws: torch.Generator | None = None


def allowed(end: bool, step: int, search: Search, options: SearchOptions) -> bool:
    """Whether an answer may end, or go on, with its token number ``step``.

    The most tokens go before the fewest.
    """
    ending = step > search.max_tokens
    return ending == end or not (ending or step <= options.min_tokens)


def rank(candidate: Candidate) -> tuple[float, int]:
    """Sorting key: the best score first; equal ones by token, to be the same always."""
    return -candidate.score, candidate.token
