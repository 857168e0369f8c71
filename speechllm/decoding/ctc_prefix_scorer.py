"""CTC prefix scores: log probability that the transcript begins with a text.

The prefix probability of Watanabe et al. 2017 ("Hybrid CTC/Attention Architecture for
End-to-End Speech Recognition", algorithm 2), for many hypotheses at once and with the
recursion over frames written as a cumulative sum in the log domain, so that a label
costs a few tensor operations however long the utterance is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from speechllm.models.precision import to_float64_device
from speechllm.text.ctc_labels import BLANK, NEVER

BLOCK = 16  # frames that are summed relative to the largest of them
RANGE = 700.0  # exp of minus this is a normal float64


@dataclass
class PrefixStates:
    """States of a list of prefixes.

    Attributes:
        utterance: (prefixes,) the utterance each belongs to.
        last: (prefixes,) the last label, or -1 for the empty prefix.
        label: (prefixes, frames) log probability of the prefix so far, its last
            label being the last thing emitted up to each frame.
        blank: (prefixes, frames) the same with a blank emitted last.
        score: (prefixes,) log probability that the transcript begins with the prefix.
    """

    utterance: Tensor
    last: Tensor
    label: Tensor
    blank: Tensor
    score: Tensor

    def __getitem__(self, index: Tensor) -> PrefixStates:
        """Return the states of some of the prefixes."""
        return PrefixStates(
            self.utterance[index],
            self.last[index],
            self.label[index],
            self.blank[index],
            self.score[index],
        )

    def cut(self, frames: int) -> PrefixStates:
        """Return the same states, padded or cut to ``frames`` frames."""
        more = (0, frames - self.label.shape[1])
        return PrefixStates(
            self.utterance,
            self.last,
            F.pad(self.label, more, value=NEVER),
            F.pad(self.blank, more, value=NEVER),
            self.score,
        )

    @staticmethod
    def join(parts: Sequence[PrefixStates]) -> PrefixStates:
        """Concatenate lists of prefixes."""
        names = ("utterance", "last", "label", "blank", "score")
        return PrefixStates(*(torch.cat([getattr(p, n) for p in parts]) for n in names))


class CTCPrefixScorer:
    """Scorer of text prefixes against the CTC logits of a batch of utterances.

    Args:
        logits: (batch, frames, labels), label 0 is blank.
        lengths: (batch,) frames of each utterance.
    """

    def __init__(self, logits: Tensor, lengths: Tensor):
        self.logits = to_float64_device(logits)
        self.lengths = to_float64_device(lengths)
        self.normalizers = torch.stack(  # (batch, frames), one utterance at a time
            [row.double().logsumexp(1) for row in self.logits]
        )
        blank = self.logits[..., BLANK].double() - self.normalizers
        self.blank_sums = blank.cumsum(1)  # (batch, frames)

    def log_probs(self, rows: Tensor, labels: Tensor, size: int) -> Tensor:
        """Return the log probability of a label for each prefix, in all frames.

        Only these columns are converted to float64, not the logits of all labels.

        Args:
            rows: (prefixes,) utterances.
            labels: (prefixes,)
            size: number of frames.

        Returns:
            (prefixes, size)
        """
        columns = self.logits[rows, :size, labels].double()
        return columns - self.normalizers[rows, :size]

    def start(self, utterances: Tensor) -> PrefixStates:
        """Return the empty prefix of each utterance (prefixes,)."""
        blank = self.blank_sums[utterances]
        return PrefixStates(
            utterances,
            torch.full_like(utterances, -1),
            torch.full_like(blank, NEVER),
            blank,
            torch.zeros_like(blank[:, 0]),
        )

    def extend(self, states: PrefixStates, labels: Tensor) -> PrefixStates:
        """Append one label (prefixes,) to each prefix."""
        return self.grow(states, labels, *self.reach(states, labels))

    def reach(self, states: PrefixStates, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Score each prefix with one more label (prefixes,).

        Returns:
            Log probability that the old prefix is complete before each frame and the
            new label may come (prefixes, frames), and the score (prefixes,).
        """
        rows, size = states.utterance, states.label.shape[1]
        either = torch.logaddexp(states.label, states.blank)
        repeated = (states.last == labels)[:, None]
        ready = torch.where(repeated, states.blank, either)
        first = torch.where(states.last < 0, 0.0, NEVER).to(ready.dtype)
        before = torch.cat([first[:, None], ready[:, :-1]], dim=1)
        frames = torch.arange(size, device=rows.device)
        beyond = frames >= self.lengths[rows, None]
        each = before + self.log_probs(rows, labels, size)
        return before, each.masked_fill(beyond, NEVER).logsumexp(1)

    def grow(
        self, states: PrefixStates, labels: Tensor, before: Tensor, score: Tensor
    ) -> PrefixStates:
        """Return the prefixes with one more label, from the output of ``reach``."""
        rows, size = states.utterance, states.label.shape[1]
        sums = self.log_probs(rows, labels, size).cumsum(1)  # (prefixes, frames)
        blank_sums = self.blank_sums[rows, :size]
        label = sums + log_cumsum_exp(before - shift(sums))
        blank = blank_sums + log_cumsum_exp(shift(label, NEVER) - shift(blank_sums))
        return PrefixStates(rows, labels, label, blank, score)

    def finish(self, states: PrefixStates) -> Tensor:
        """Return the log probability that the prefix is the whole transcript."""
        end = (self.lengths[states.utterance] - 1)[:, None]
        both = torch.logaddexp(states.label.gather(1, end), states.blank.gather(1, end))
        return both[:, 0]

    def extend_many(
        self,
        states: PrefixStates,
        suffixes: Sequence[tuple[int, Sequence[int]]],
        thresholds: Sequence[float] | None = None,
    ) -> tuple[list[int], PrefixStates]:
        """Append several labels to prefixes; common prefixes are scored once.

        Args:
            suffixes: (index of the prefix, labels to append) of each result.
            thresholds: for each of them, the score that it has to exceed. A longer
                text is never more probable, so the first label that does not is the
                last one that is scored.

        Returns:
            Indices of the suffixes that are left, and a state for each of them.
        """
        device = self.lengths.device
        kept: list[int] = []
        parts: list[PrefixStates] = []
        nodes = [index for index, _ in suffixes]  # of each suffix in its level
        going = list(range(len(suffixes)))
        level, size = states, 0  # the prefixes with ``size`` labels appended
        while going:
            done = [i for i in going if len(suffixes[i][1]) == size]
            if done:
                kept += done
                parts.append(level[torch.tensor([nodes[i] for i in done]).to(device)])
            going = [i for i in going if len(suffixes[i][1]) > size]
            if not going:
                break
            place: dict[tuple[int, int], int] = {}
            for i in going:
                key = (nodes[i], suffixes[i][1][size])
                nodes[i] = place.setdefault(key, len(place))
            parents, labels = torch.tensor(list(place)).T.to(device)
            level, size = level[parents], size + 1
            before, score = self.reach(level, labels)
            if thresholds is not None:
                scores = score.tolist()
                going = [i for i in going if scores[nodes[i]] > thresholds[i]]
                alive = sorted({nodes[i] for i in going})
                where = {node: place for place, node in enumerate(alive)}
                for i in going:
                    nodes[i] = where[nodes[i]]
                chosen = torch.tensor(alive, dtype=torch.long, device=device)
                level, labels = level[chosen], labels[chosen]
                before, score = before[chosen], score[chosen]
            level = self.grow(level, labels, before, score)
        if not parts:
            return [], states[torch.zeros(0, dtype=torch.long, device=device)]
        return kept, states.join(parts)


def shift(values: Tensor, first: float = 0.0) -> Tensor:
    """Shift (prefixes, frames) by one frame, with ``first`` in front."""
    return torch.cat([torch.full_like(values[:, :1], first), values[:, :-1]], dim=1)


def log_cumsum_exp(values: Tensor) -> Tensor:
    """Return ``torch.logcumsumexp(values, 1)``, several times as fast on a CPU.

    PyTorch computes one exponential and one logarithm after the other; here all of
    them are vector operations, relative to the largest value of each block of frames.
    PyTorch's function is called where a value of a block would underflow.

    Args:
        values: (prefixes, frames) in float64; ``NEVER`` for impossible events.

    Returns:
        (prefixes, frames)
    """
    rows, frames = values.shape
    blocks = -(-frames // BLOCK)
    padded = F.pad(values, (0, blocks * BLOCK - frames), value=NEVER)
    padded = padded.view(rows, blocks, BLOCK)
    peak = padded.amax(2, keepdim=True)
    relative = padded - peak
    if bool(((relative < -RANGE) & (padded > NEVER / 2)).any()):
        return torch.logcumsumexp(values, dim=1)
    sums = relative.exp_().cumsum(2)
    totals = (peak + sums[..., -1:].log())[..., 0]  # (rows, blocks)
    before = shift(torch.logcumsumexp(totals, dim=1), NEVER)[..., None]
    top = torch.maximum(peak, before)
    sums = sums.mul_((peak - top).exp()).add_((before - top).exp())
    result = sums.log_().add_(top).clamp_(min=NEVER)
    return result.view(rows, blocks * BLOCK)[:, :frames]
