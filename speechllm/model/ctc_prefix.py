"""CTC prefix scores: how well the audio begins with a text.

The prefix probability of Watanabe et al. 2017 ("Hybrid CTC/Attention Architecture for
End-to-End Speech Recognition", algorithm 2), for many hypotheses at once and with the
recursion over frames written as a cumulative sum in the log domain, so that a label
costs a few tensor operations however long the utterance is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

BLANK = 0
NEVER = -1e30  # log probability of what cannot be; finite, so that sums stay numbers


@dataclass
class PrefixStates:
    """What is known of a list of prefixes.

    Attributes:
        utterance: (prefixes,) which utterance each belongs to.
        last: (prefixes,) the last label, or -1 for the empty prefix.
        label: (prefixes, frames) log probability of the prefix so far, its last
            label being the last thing emitted up to each frame.
        blank: (prefixes, frames) the same with a blank emitted last.
        score: (prefixes,) log probability that the labels begin with the prefix.
    """

    utterance: Tensor
    last: Tensor
    label: Tensor
    blank: Tensor
    score: Tensor

    def __getitem__(self, index: Tensor) -> PrefixStates:
        return PrefixStates(
            self.utterance[index],
            self.last[index],
            self.label[index],
            self.blank[index],
            self.score[index],
        )

    @staticmethod
    def join(parts: Sequence[PrefixStates]) -> PrefixStates:
        """Put lists of prefixes behind each other."""
        names = ("utterance", "last", "label", "blank", "score")
        return PrefixStates(*(torch.cat([getattr(p, n) for p in parts]) for n in names))


class CTCPrefixScorer:
    """Scores text prefixes against the CTC logits of a batch of utterances.

    Args:
        logits: (batch, frames, labels), label 0 is blank.
        lengths: (batch,) frames of each utterance.
    """

    def __init__(self, logits: Tensor, lengths: Tensor):
        self.log_probs = logits.double().log_softmax(2)
        self.sums = self.log_probs.cumsum(1)  # (batch, frames, labels)
        self.lengths = lengths

    def start(self, utterances: Tensor) -> PrefixStates:
        """The empty prefix of each of the utterances (prefixes,)."""
        blank = self.sums[utterances, :, BLANK]
        return PrefixStates(
            utterances,
            torch.full_like(utterances, -1),
            torch.full_like(blank, NEVER),
            blank,
            torch.zeros_like(blank[:, 0]),
        )

    def extend(self, states: PrefixStates, labels: Tensor) -> PrefixStates:
        """Append one label (prefixes,) to each prefix."""
        rows = states.utterance
        log_probs = self.log_probs[rows, :, labels]  # (prefixes, frames)
        sums = self.sums[rows, :, labels]
        blank_sums = self.sums[rows, :, BLANK]
        # before[t]: the old prefix complete at frame t - 1, ready for the new label
        either = torch.logaddexp(states.label, states.blank)
        repeated = (states.last == labels)[:, None]
        ready = torch.where(repeated, states.blank, either)
        first = torch.where(states.last < 0, 0.0, NEVER).to(ready.dtype)
        before = torch.cat([first[:, None], ready[:, :-1]], dim=1)
        label = sums + torch.logcumsumexp(before - shift(sums), dim=1)
        blank = blank_sums + torch.logcumsumexp(
            shift(label, NEVER) - shift(blank_sums), dim=1
        )
        frames = torch.arange(log_probs.shape[1], device=rows.device)
        beyond = frames >= self.lengths[rows, None]
        score = (before + log_probs).masked_fill(beyond, NEVER).logsumexp(1)
        return PrefixStates(rows, labels, label, blank, score)

    def finish(self, states: PrefixStates) -> Tensor:
        """Log probability that the utterance is the prefix and nothing more."""
        end = (self.lengths[states.utterance] - 1)[:, None]
        both = torch.logaddexp(states.label.gather(1, end), states.blank.gather(1, end))
        return both[:, 0]

    def extend_many(
        self, states: PrefixStates, suffixes: Sequence[tuple[int, Sequence[int]]]
    ) -> PrefixStates:
        """Append several labels to prefixes; common beginnings are scored once.

        Args:
            suffixes: (index of the prefix, labels to append) of each result.

        Returns:
            One state for each of the suffixes.
        """
        device = states.last.device
        levels = [states]  # level n holds the prefixes with n labels appended
        places = [{(index, ()): index for index in range(len(states.last))}]
        longest = max((len(labels) for _, labels in suffixes), default=0)
        for size in range(1, longest + 1):
            place, parents, labels = {}, [], []
            for index, suffix in suffixes:
                key = (index, tuple(suffix[:size]))
                if len(suffix) >= size and key not in place:
                    place[key] = len(place)
                    parents.append(places[-1][index, key[1][:-1]])
                    labels.append(suffix[size - 1])
            levels.append(
                self.extend(
                    levels[-1][torch.tensor(parents, device=device)],
                    torch.tensor(labels, device=device),
                )
            )
            places.append(place)
        offsets = list(accumulate((len(p) for p in places), initial=0))
        chosen = [
            offsets[len(suffix)] + places[len(suffix)][index, tuple(suffix)]
            for index, suffix in suffixes
        ]
        return PrefixStates.join(levels)[torch.tensor(chosen, device=device)]


def shift(values: Tensor, first: float = 0.0) -> Tensor:
    """Move (prefixes, frames) one frame on, with ``first`` in front."""
    return torch.cat([torch.full_like(values[:, :1], first), values[:, :-1]], dim=1)
