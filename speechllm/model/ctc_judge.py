"""CTC's say in a joint search: which candidates the audio agrees with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from speechllm.model.ctc_prefix import NEVER, CTCPrefixScorer, PrefixStates
from speechllm.model.hypotheses import END, Candidate, Search, SearchOptions, rank


class CTCJudge:
    """CTC's say in a joint search.

    Args:
        ctc: scores of the utterances' audio.
        options: of the search.
        eos: the token that ends an answer.
    """

    def __init__(self, ctc: CTCPrefixScorer, options: SearchOptions, eos: int):
        self.ctc, self.options, self.eos = ctc, options, eos
        self.frames: list[int] = ctc.lengths.tolist()
        self.reset(ctc.start(ctc.lengths[:0].long()))

    def reset(self, states: PrefixStates) -> None:
        """Begin a step with the states of the hypotheses that are extended."""
        self.parts = [states]
        self.scores: list[float] = states.score.tolist()

    def join(self, utterances: Sequence[int]) -> None:
        """Put the empty prefixes of utterances behind the others."""
        device = self.ctc.lengths.device
        new = self.ctc.start(torch.tensor(utterances, device=device))
        frames = max(self.frames[utterance] for utterance in utterances)
        frames = max(frames, self.parts[0].label.shape[1] if self.scores else 0)
        both = [self.parts[0].cut(frames), new.cut(frames)]
        self.reset(PrefixStates.join(both))

    def choose(self, choices: list[list[Candidate]], active: Sequence[Search]) -> None:
        """Keep the candidates that can enter the beam, with CTC in their scores.

        The likeliest are judged first; of the others only those whose most possible
        score is above the worst of a full beam, and only until it no longer is.

        Args:
            choices: sorted candidates of each utterance; changed in place.
            active: the utterances.
        """
        beam = self.options.beam_size
        told = [i for i, search in enumerate(active) if search.spell is not None]
        first, second = [], []
        for i in told:
            floor = active[i].floor
            for place, candidate in enumerate(choices[i]):
                if place < 2 * beam or candidate.token == self.eos:
                    first.append((candidate, active[i].spell, floor))
        self.hear(first)
        for i in told:
            judged = [
                c
                for place, c in enumerate(choices[i])
                if place < 2 * beam or c.token == self.eos
            ]
            scores = sorted(c.score for c in judged if c.token != self.eos)
            worst = scores[-beam] if len(scores) >= beam else NEVER
            worst = max(worst, active[i].floor)
            rest = [
                c
                for c in choices[i][2 * beam :]
                if c.token != self.eos and c.score > worst
            ]
            second += [(c, active[i].spell, worst) for c in rest]
            choices[i] = judged + rest
        self.hear(second)
        for i in told:
            choices[i] = sorted((c for c in choices[i] if c.score > NEVER), key=rank)

    def hear(self, asked: Sequence[tuple[Candidate, Callable, float]]) -> None:
        """Score candidates by the audio.

        A token that CTC does not hear costs no CTC score. So two in a row are not
        allowed, or commas would crowd out the words.

        Args:
            asked: candidates, the spellers of their utterances, and the scores that
                they must be above: one that falls behind gets ``NEVER``.
        """
        heard, suffixes, floors, likely = [], [], [], []
        weight = self.options.ctc_weight
        for candidate, speller, floor in asked:
            parent = candidate.parent
            over = parent.labels[-1:] == [END]
            if candidate.token != self.eos and not over:
                labels = speller(parent.tokens + [candidate.token])
                if labels[: len(parent.labels)] != parent.labels:
                    # the speller looked back
                    labels = parent.labels + [END] * (labels[-1:] == [END])
                if len(labels) > len(parent.labels):
                    candidate.labels = labels
                elif parent.silent:
                    candidate.score = NEVER
                    continue
            heard.append(candidate)
            suffix = candidate.labels[len(parent.labels) :]
            suffixes.append((parent.row, [k for k in suffix if k != END]))
            floors.append(self.scores[parent.row] + (floor - candidate.score) / weight)
            likely.append(candidate.score)
            candidate.score = NEVER  # until it is found above its floor
        if not heard:
            return
        kept, states = self.ctc.extend_many(self.parts[0], suffixes, floors)
        ends = self.ctc.finish(states)
        over = [heard[place].labels[-1:] == [END] for place in kept]
        states.score = torch.where(
            torch.tensor(over, dtype=torch.bool, device=ends.device), ends, states.score
        )
        offset = sum(len(part.last) for part in self.parts)
        self.parts.append(states)
        scores, ends = states.score.tolist(), ends.tolist()
        for state, place in enumerate(kept):
            candidate, before = heard[place], self.scores[heard[place].parent.row]
            candidate.state = offset + state
            score = (ends if candidate.token == self.eos else scores)[state]
            candidate.ctc_score = score
            candidate.score = likely[place] + weight * (score - before)

    def follow(self, survivors: Sequence[Candidate], utterances: Sequence[int]) -> None:
        """Go on with the states of the candidates that are extended next.

        Args:
            utterances: those that the candidates are of.
        """
        frames = max((self.frames[utterance] for utterance in utterances), default=0)
        places = torch.tensor([c.state for c in survivors], dtype=torch.long)
        states = PrefixStates.join(self.parts)[places.to(self.ctc.lengths.device)]
        self.reset(states.cut(frames))
