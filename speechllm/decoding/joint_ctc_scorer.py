"""CTC's say in a joint search: which candidates the audio agrees with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from speechllm.decoding.ctc_prefix_scorer import NEVER, CTCPrefixScorer, PrefixStates
from speechllm.decoding.hypothesis import Candidate, Search
from speechllm.decoding.options import SearchOptions
from speechllm.text.ctc_labels import END


class CTCJudge:
    """CTC's say in a joint search.

    Args:
        ctc: scores of the utterances' audio.
        options: of the search.
        eos: the token that ends an answer.
        characters: of a token; its text has no more CTC labels.
    """

    def __init__(
        self,
        ctc: CTCPrefixScorer,
        options: SearchOptions,
        eos: int,
        characters: Callable[[int], int],
    ):
        self.ctc, self.options, self.eos = ctc, options, eos
        self.characters = characters
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

        Hypotheses of as many tokens differ in how much of the text they have written,
        and who has written less has paid less. So candidates are ranked with
        ``label_bonus`` for each label. The likeliest are judged first; of the others
        only those that may be above the worst of a full beam.

        Args:
            choices: candidates of each utterance; changed in place, the best first.
            active: the utterances.
        """
        beam, bonus = self.options.beam_size, self.options.label_bonus
        told = [i for i, search in enumerate(active) if search.spell is not None]

        def most(candidate: Candidate) -> float:
            if candidate.token == self.eos:
                return math.inf  # ends are always judged
            labels = len(candidate.parent.labels) + self.characters(candidate.token)
            return candidate.score + bonus * labels

        def value(candidate: Candidate) -> float:
            return candidate.score + bonus * len(candidate.labels)

        first, second, rest = [], [], {}
        for i in told:
            ends = sum(c.token == self.eos for c in choices[i])
            ordered = sorted(choices[i], key=lambda c: (-most(c), c.token))
            choices[i], rest[i] = ordered[: 2 * beam + ends], ordered[2 * beam + ends :]
            floor = active[i].floor
            first += [(c, active[i].spell, floor, NEVER) for c in choices[i]]
        self.hear(first)
        for i in told:
            values = sorted(value(c) for c in choices[i] if c.token != self.eos)
            worst = values[-beam] if len(values) >= beam else NEVER
            more = [c for c in rest[i] if most(c) > worst]
            second += [(c, active[i].spell, active[i].floor, worst) for c in more]
            choices[i] += more
        self.hear(second)
        for i in told:
            alive = (c for c in choices[i] if c.score > NEVER)
            choices[i] = sorted(alive, key=lambda c: (-value(c), c.token))

    def hear(self, asked: Sequence[tuple[Candidate, Callable, float, float]]) -> None:
        """Score candidates by the audio.

        A token that CTC does not hear costs no CTC score. So two in a row are not
        allowed, or commas would crowd out the words.

        Args:
            asked: candidates, the spellers of their utterances, the scores that they
                must be above, and the same with the bonus for their labels: one that
                falls behind gets ``NEVER``.
        """
        heard, suffixes, floors, likely = [], [], [], []
        weight = self.options.ctc_weight
        for candidate, speller, floor, worst in asked:
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
            worst -= self.options.label_bonus * len(candidate.labels)
            floor = max(floor, worst)
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
