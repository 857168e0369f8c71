"""What a search is made of: its options, hypotheses, and what they may grow into."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

END = -1  # label behind the text that CTC judges, where an answer goes on (asr_st)


@dataclass(frozen=True)
class SearchOptions:
    """How to search; the names are ESPnet's.

    Attributes:
        beam_size: hypotheses kept; 1 is greedy.
        nbest: hypotheses returned for each utterance.
        ctc_weight: score = ctc_weight · CTC + (1 − ctc_weight) · LLM, for answers in
            the language that is spoken; 0 leaves CTC out.
        penalty: added to the score for each token.
        candidates: tokens that the LLM proposes for each hypothesis and CTC judges.
        label_bonus: added for each CTC label of a text while hypotheses of different
            lengths are compared in joint search; not part of their scores.
        tokens_per_second, extra_tokens: an answer has at most
            ``int(tokens_per_second · seconds + extra_tokens)`` tokens (Nue-ASR's
            released code has 4 and 20.5).
        min_tokens: fewest tokens before the end of an answer; the greatest number
            goes before it.
        no_repeat_ngram_size: no run of so many tokens stands twice in an answer; 0
            allows all.
        rescore_ctc_weight: rank the n-best of the search anew, by this share of CTC's
            probability of the whole text; 0 leaves the ranks as they are.
        guard: whether answers are checked against the audio; None: where the model's
            folder has thresholds for it (:mod:`speechllm.inference.guard`).
        word_times: whether to say when each word was heard, and how sure it is.
        sampling: draw each token instead of searching; the draws of an utterance do
            not depend on its batch.
        temperature, top_k, top_p: what is drawn from: the LLM's probabilities at this
            temperature, of them the ``top_k`` greatest (0: all), of them the fewest
            that sum up to ``top_p``.
        seed: other draws for another number.
    """

    beam_size: int = 1
    nbest: int = 1
    ctc_weight: float = 0.0
    penalty: float = 0.0
    candidates: int = 20
    label_bonus: float = 1.0
    tokens_per_second: float = 4.0
    extra_tokens: float = 20.5
    min_tokens: int = 0
    no_repeat_ngram_size: int = 0
    rescore_ctc_weight: float = 0.0
    guard: bool | None = None
    word_times: bool = False
    sampling: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def max_tokens(self, seconds: float, task: str = "asr") -> int:
        """Most tokens of an answer to so many seconds of speech.

        Twice as many where transcript and translation are asked for.
        """
        most = int(self.tokens_per_second * seconds + self.extra_tokens)
        return 2 * most if task == "asr_st" else most


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
