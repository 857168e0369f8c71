"""Data structures of the search: requests, hypotheses, candidates and beams."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from speechllm.decoding.options import SearchOptions
from speechllm.text.answer_codec import LabelFunction
from speechllm.text.hotwords import HotwordState, HotwordTrie


@dataclass(frozen=True)
class SearchRequest:
    """Input of the search for one utterance.

    Attributes:
        prompt: (positions, hidden) embeddings of prompt and speech.
        max_tokens: maximum length of the output.
        to_ctc_labels: from token ids to CTC labels; None without CTC scores (a
            translation). ``END`` after the labels marks a complete transcript: the
            token that adds it gets the CTC score of the complete text, later tokens
            are scored by the LLM alone. ``PENDING`` after them marks an incomplete
            last character.
        extra_candidates: tokens considered at every step in addition to the LLM's
            own, such as those of the CTC transcript.
        sampling_seed: combined with the seed of the options.
        hotwords: whose tokens earn ``hotword_bonus``; None without any.
    """

    prompt: Tensor
    max_tokens: int
    to_ctc_labels: LabelFunction | None = None
    extra_candidates: Sequence[int] = ()
    sampling_seed: int = 0
    hotwords: HotwordTrie | None = None


@dataclass
class Hypothesis:
    """An output, complete or partial.

    Attributes:
        tokens: LLM token ids, without the end of text.
        score: score of the search.
        llm_score: log probability of the tokens and, if complete, of the end.
        ctc_score: log probability of the transcript by CTC, or None without CTC; for
            a partial hypothesis that of all texts that begin with it.
        token_log_probs: log probability of each token by the LLM.
        ctc_labels: transcript in CTC labels, if it has been computed; while the
            hypothesis grows, followed by ``END`` once the transcript is complete.
        truncated: ended because it reached the maximum length.
        unlabelled: number of tokens without CTC labels at the end, such as a comma.
        unlabelled_cost: cost of its tokens without CTC labels when hypotheses are
            compared, not part of the score.
        incomplete: number of tokens at the end after each of which the last character
            lacks bytes.
        row: row in the batch, while the hypothesis grows.
        decoder_score: log probability of the transcript by the decoder of the first
            pass, or None without one.
        hotwords: state of the hotwords, while the hypothesis grows.
        bonus: part of the score that hotwords have earned.
    """

    tokens: list[int] = field(default_factory=list)
    score: float = 0.0
    llm_score: float = 0.0
    ctc_score: float | None = None
    token_log_probs: list[float] = field(default_factory=list)
    ctc_labels: list[int] | None = None
    truncated: bool = False
    unlabelled: int = 0
    unlabelled_cost: float = 0.0
    incomplete: int = 0
    row: int = 0
    decoder_score: float | None = None
    hotwords: HotwordState = HotwordState()
    bonus: float = 0.0


@dataclass(slots=True)
class Candidate:
    """A token that may be appended to a hypothesis.

    Attributes:
        parent: the hypothesis.
        token: the token.
        log_prob: log probability of the token by the LLM.
        llm_score: log probability of the hypothesis with it.
        score: score of the search. Before CTC has scored the token, an upper bound: a
            text is never more probable than its beginning.
        ctc_labels: CTC labels of the text with it.
        state: row of its CTC state in this step.
        ctc_score: log probability of its text by CTC.
        unlabelled, unlabelled_cost, incomplete, hotwords, bonus: those of the
            hypothesis with it.
    """

    parent: Hypothesis
    token: int
    log_prob: float
    llm_score: float
    score: float
    ctc_labels: list[int]
    state: int
    ctc_score: float | None = None
    unlabelled: int = 0
    unlabelled_cost: float = 0.0
    incomplete: int = 0
    hotwords: HotwordState = HotwordState()
    bonus: float = 0.0


@dataclass
class BeamState:
    """State of the search for one utterance.

    Attributes:
        utterance: index of the request.
        request: the request.
        hypotheses: partial hypotheses, best first.
        finished: complete hypotheses, best first.
        pruning_threshold: minimum score that can still enter the n-best list.
        rng: random number generator of sampling.
    """

    utterance: int
    request: SearchRequest
    hypotheses: list[Hypothesis] = field(
        default_factory=lambda: [Hypothesis(ctc_labels=[])]
    )
    finished: list[Hypothesis] = field(default_factory=list)
    pruning_threshold: float = -math.inf
    rng: torch.Generator | None = None

    @property
    def step(self) -> int:
        """Number of the token that is chosen next, from 1."""
        return len(self.hypotheses[0].tokens) + 1

    def allows(self, end: bool, options: SearchOptions) -> bool:
        """Return True if the next token may be the end (``end``), or another one.

        The maximum length takes precedence over the minimum.
        """
        must_end = self.step > self.request.max_tokens
        return must_end == end or not (must_end or self.step <= options.min_tokens)

    def threshold(self, options: SearchOptions, end: bool = False) -> float:
        """Return the score that the next token has to exceed.

        A hypothesis that does not ``end`` can still gain ``penalty`` for every token
        up to the maximum length and for the end, and the bonus of the longest hotword.
        More hotwords could follow, but with theirs no search would end early.
        """
        if end:
            return self.pruning_threshold
        left = max(self.request.max_tokens + 1 - self.step, 0)
        gain = max(options.penalty, 0.0) * left
        if self.request.hotwords is not None:
            gain += options.hotword_bonus * min(left, self.request.hotwords.most_tokens)
        return self.pruning_threshold - gain

    def advance(
        self, candidates: Sequence[Candidate], options: SearchOptions, eos: int
    ) -> list[Candidate]:
        """Advance the beam by one step.

        A hypothesis that cannot exceed the worst of a full n-best list any more
        (:meth:`threshold`) is dropped.

        Args:
            candidates: best first.

        Returns:
            The candidates that are the new beam, best first.
        """
        chosen = []
        for place, candidate in enumerate(candidates):
            if candidate.token != eos:
                chosen.append(candidate)
            elif place < options.beam_size:
                parent = candidate.parent
                self.finished.append(
                    Hypothesis(
                        parent.tokens,
                        candidate.score,
                        candidate.llm_score,
                        candidate.ctc_score,
                        parent.token_log_probs,
                        truncated=len(parent.tokens) >= self.request.max_tokens,
                        bonus=candidate.bonus,
                    )
                )
        self.finished.sort(key=lambda hypothesis: -hypothesis.score)
        del self.finished[options.nbest :]
        if len(self.finished) >= options.nbest:
            self.pruning_threshold = self.finished[-1].score
        del chosen[options.beam_size :]
        chosen = [c for c in chosen if c.score > self.threshold(options)]
        self.hypotheses = [extend(candidate) for candidate in chosen]
        return chosen


def extend(candidate: Candidate) -> Hypothesis:
    """Append a candidate's token to its parent."""
    parent = candidate.parent
    return Hypothesis(
        parent.tokens + [candidate.token],
        candidate.score,
        candidate.llm_score,
        candidate.ctc_score,
        parent.token_log_probs + [candidate.log_prob],
        candidate.ctc_labels,
        unlabelled=candidate.unlabelled,
        unlabelled_cost=candidate.unlabelled_cost,
        incomplete=candidate.incomplete,
        hotwords=candidate.hotwords,
        bonus=candidate.bonus,
    )


def by_score(candidate: Candidate) -> tuple[float, int]:
    """Return the sort key: best score first, ties by token for a defined order."""
    return -candidate.score, candidate.token
