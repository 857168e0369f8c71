"""CTC scorer for joint CTC/LLM beam search."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from speechllm.decoding.ctc_prefix_scorer import CTCPrefixScorer, PrefixStates
from speechllm.decoding.hypothesis import BeamState, Candidate
from speechllm.decoding.options import SearchOptions
from speechllm.text.answer_codec import LabelFunction
from speechllm.text.ctc_labels import END, NEVER, PENDING

#: Tokens without CTC labels (punctuation) add no CTC cost and would dominate the beam.
#: The first of a sequence is free, each further one costs this much more than the last
#: while hypotheses are compared; it is not part of their scores.
UNLABELLED_COST = 2.0
#: Longest sequence of them. CTC cannot end a loop in such tokens, and the score, which
#: has no part of the cost, may prefer it at any length: then a hypothesis has to end or
#: to write a token with a label.
MOST_UNLABELLED = 8
#: Tokens that may begin a character, which has four bytes at most in UTF-8. Further
#: ones without a label are bytes of no character.
MOST_INCOMPLETE = 3
#: Expected cost of each character of a token that is not in the CTC transcript. It
#: determines which candidates are scored first.
EXPECTED_COST = 1.0


class _Pending(NamedTuple):
    """A candidate that CTC is to score.

    Attributes:
        candidate: the candidate.
        to_ctc_labels: from token ids to the CTC labels of its utterance.
        threshold: score that it has to exceed.
        worst: the same for its score with the bonus for its labels and the cost of
            tokens without labels.
        may_end: the output may end in this step, and so may have to.
    """

    candidate: Candidate
    to_ctc_labels: LabelFunction
    threshold: float
    worst: float
    may_end: bool


class JointCTCScorer:
    """CTC scorer: adds CTC prefix scores to the LLM's candidates and prunes them.

    Joint CTC/attention decoding (Hori, Watanabe, Hershey 2017) with LLM tokens, which
    are spelt in CTC labels, or in characters where the labels are BPE pieces.

    Args:
        ctc: prefix scores of the utterances.
        options: of the search.
        eos: the token that ends an output.
        token_length: number of characters of a token, an upper bound of its labels.
    """

    def __init__(
        self,
        ctc: CTCPrefixScorer,
        options: SearchOptions,
        eos: int,
        token_length: Callable[[int], int],
    ):
        self.ctc, self.options, self.eos = ctc, options, eos
        self.token_length = token_length
        self.frames: list[int] = ctc.lengths.tolist()
        self.reset(ctc.start(ctc.lengths[:0].long()))

    def reset(self, states: PrefixStates) -> None:
        """Begin a step with the states of the hypotheses that are extended."""
        self.parts = [states]
        self.scores: list[float] = states.score.tolist()

    def prefill(self, utterances: Sequence[int]) -> list[int]:
        """Append the empty prefix of each utterance; see :class:`Scorer`."""
        device = self.ctc.lengths.device
        new = self.ctc.start(torch.tensor(utterances, device=device))
        frames = max(self.frames[utterance] for utterance in utterances)
        frames = max(frames, self.parts[0].label.shape[1] if self.scores else 0)
        both = [self.parts[0].cut(frames), new.cut(frames)]
        self.reset(new.join(both))
        return list(utterances)

    def score(self, choices: list[list[Candidate]], beams: Sequence[BeamState]) -> None:
        """Keep the candidates that can enter the beam, with CTC in their scores.

        Hypotheses with the same number of tokens differ in the length of their text,
        and shorter ones have accumulated less CTC cost. Candidates are therefore ranked
        with ``label_bonus`` for each label and ``UNLABELLED_COST``. The most promising
        ones are scored first, then those of the others that can exceed the worst of a
        full beam. The order affects the speed only.

        Utterances without CTC labels keep their candidates. See :class:`Scorer`.
        """
        beam_size, bonus = self.options.beam_size, self.options.label_bonus
        scored = [i for i, b in enumerate(beams) if b.request.to_ctc_labels is not None]
        rest = {i: self.by_promise(choices[i], beams[i]) for i in scored}
        for i in scored:
            choices[i] = []

        def value(candidate: Candidate) -> float:
            bonuses = bonus * len(candidate.ctc_labels)
            return candidate.score + bonuses - candidate.unlabelled_cost

        for first in (True, False):
            pending: list[_Pending] = []
            for i in scored:
                size = 2 * beam_size + len(beams[i].hypotheses)  # with their ends
                if not first:
                    size = len(rest[i])
                values = sorted(value(c) for c in choices[i] if c.token != self.eos)
                worst = values[-beam_size] if len(values) >= beam_size else NEVER
                new = [c for bound, c in rest[i][:size] if bound > worst]
                rest[i] = rest[i][size:]
                choices[i] += new
                pending += self.pending(new, beams[i], worst)
            self.add_scores(pending)
        for i in scored:
            alive = (c for c in choices[i] if c.score > NEVER)
            choices[i] = sorted(alive, key=lambda c: (-value(c), c.token))

    def by_promise(
        self, candidates: Sequence[Candidate], beam: BeamState
    ) -> list[tuple[float, Candidate]]:
        """Return candidates with upper bounds of their values, most promising first.

        The score of the LLM and the CTC transcript tell which candidates are likely to
        survive: a long token of other letters has a high bound, but CTC rejects it.
        """
        bonus = self.options.label_bonus
        spoken = frozenset(beam.request.extra_candidates)
        ranked = []
        for candidate in candidates:
            bound = promise = math.inf  # ends are always scored
            if candidate.token != self.eos:
                before = len(candidate.parent.ctc_labels or ())
                # the text of BPE pieces begins with "▁"
                base = candidate.score - candidate.unlabelled_cost
                base += bonus * (before + (not before))
                length = self.token_length(candidate.token)
                bound = base + bonus * length
                other = candidate.token not in spoken
                promise = base - EXPECTED_COST * length * other
            ranked.append((-promise, candidate.token, bound, candidate))
        ranked.sort(key=lambda item: item[:2])
        return [(bound, candidate) for _, _, bound, candidate in ranked]

    def pending(
        self, candidates: Sequence[Candidate], beam: BeamState, worst: float
    ) -> list[_Pending]:
        """Return candidates with the thresholds of their beam."""
        to_ctc_labels = beam.request.to_ctc_labels
        assert to_ctc_labels is not None
        thresholds = {end: beam.threshold(self.options, end) for end in (True, False)}
        may_end = beam.allows(True, self.options)
        return [
            _Pending(c, to_ctc_labels, thresholds[c.token == self.eos], worst, may_end)
            for c in candidates
        ]

    def add_scores(self, candidates: Sequence[_Pending]) -> None:
        """Add CTC's score to candidates; ``NEVER`` to those below their threshold.

        Consecutive tokens without CTC labels cost ``UNLABELLED_COST``, and more than
        ``MOST_UNLABELLED`` are impossible. The first bytes of a character
        (``MOST_INCOMPLETE``), whose labels come with the last one, do not count.
        """
        weight = self.options.ctc_weight
        kept: list[Candidate] = []
        suffixes: list[tuple[int, list[int]]] = []
        thresholds, llm_scores = [], []
        for candidate, to_ctc_labels, threshold, worst, may_end in candidates:
            parent = candidate.parent
            before = parent.ctc_labels or []
            complete = before[-1:] == [END]
            if candidate.token != self.eos and not complete:
                labels = to_ctc_labels(parent.tokens + [candidate.token])
                pending = labels[-1:] == [PENDING]
                if pending:
                    labels = labels[:-1]
                    candidate.incomplete = parent.incomplete + 1
                    pending = candidate.incomplete <= MOST_INCOMPLETE
                if labels[: len(before)] != before:
                    # the token changed the labels of those before it
                    labels = before + [END] * (labels[-1:] == [END])
                if len(labels) > len(before):
                    candidate.ctc_labels = labels
                    candidate.incomplete = min(candidate.incomplete, 1)
                else:
                    candidate.unlabelled = parent.unlabelled + (not pending)
                    if not pending:
                        candidate.unlabelled_cost += UNLABELLED_COST * parent.unlabelled
                    if may_end and candidate.unlabelled > MOST_UNLABELLED:
                        candidate.score = NEVER
                        continue
            kept.append(candidate)
            suffix = candidate.ctc_labels[len(before) :]
            worst -= self.options.label_bonus * len(candidate.ctc_labels)
            worst += candidate.unlabelled_cost
            threshold = max(threshold, worst)
            suffixes.append((parent.row, [k for k in suffix if k != END]))
            thresholds.append(
                self.scores[parent.row] + (threshold - candidate.score) / weight
            )
            llm_scores.append(candidate.score)
            candidate.score = NEVER  # until it is found above its threshold
        if not kept:
            return
        alive, states = self.ctc.extend_many(self.parts[0], suffixes, thresholds)
        ends = self.ctc.finish(states)
        over = [kept[place].ctc_labels[-1:] == [END] for place in alive]
        states.score = torch.where(
            torch.tensor(over, dtype=torch.bool, device=ends.device), ends, states.score
        )
        offset = sum(len(part.last) for part in self.parts)
        self.parts.append(states)
        prefix_scores, end_scores = states.score.tolist(), ends.tolist()
        for state, place in enumerate(alive):
            candidate = kept[place]
            is_end = candidate.token == self.eos
            score = (end_scores if is_end else prefix_scores)[state]
            candidate.state = offset + state
            candidate.ctc_score = score
            candidate.score = llm_scores[place] + weight * (
                score - self.scores[candidate.parent.row]
            )

    def select(self, survivors: Sequence[Candidate], utterances: Sequence[int]) -> None:
        """Continue with the states of the survivors; see :class:`Scorer`."""
        frames = max((self.frames[utterance] for utterance in utterances), default=0)
        places = torch.tensor([c.state for c in survivors], dtype=torch.long)
        states = self.parts[0].join(self.parts)[places.to(self.ctc.lengths.device)]
        self.reset(states.cut(frames))
