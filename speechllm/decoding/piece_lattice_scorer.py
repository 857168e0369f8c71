"""CTC prefix scores of characters where the labels are BPE pieces.

A text grows by characters, but CTC emits pieces such as ``▁the``, and the beginning of
a word has other pieces than the word. The probability that the transcript begins with a
text is therefore summed over all ways to cover it with pieces: the last piece ends with
the text, or extends beyond it. Each sequence of pieces covers a text in one way, so the
sum is exact. A character costs about six times as much as with labels of characters.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from speechllm.decoding.ctc_prefix_scorer import (
    CTCPrefixScorer,
    PrefixStates,
    log_cumsum_exp,
    shift,
)
from speechllm.text.ctc_labels import NEVER, label_text


@dataclass
class LatticeStates(PrefixStates):
    """States of a list of prefixes, with those of their beginnings.

    ``last`` is the last character; ``label`` and ``blank`` are sums over all pieces
    that end with the prefix.

    Attributes:
        tails: last characters of each prefix, at most one less than the longest piece.
        history: for each prefix, rows of ``records`` for its beginnings, one for each
            character, the prefix itself last; as many as the longest piece has
            characters.
        records: (records, 1 + slots, frames) log probability that the text is complete
            before each frame; in row 1 + i without its last piece i as the last label,
            as the same piece can only follow after a blank.
        pieces: last pieces of each record.
    """

    tails: list[str]
    history: list[tuple[int, ...]]
    records: Tensor
    pieces: list[tuple[int, ...]]

    def __getitem__(self, index: Tensor) -> LatticeStates:
        """Return the states of some of the prefixes."""
        chosen = index.tolist()
        history = [self.history[i] for i in chosen]
        used = sorted({row for rows in history for row in rows})
        place = {row: new for new, row in enumerate(used)}
        plain = super().__getitem__(index)
        return LatticeStates(
            *fields_of(plain),
            [self.tails[i] for i in chosen],
            [tuple(place[row] for row in rows) for rows in history],
            self.records[torch.tensor(used, dtype=torch.long, device=index.device)],
            [self.pieces[row] for row in used],
        )

    def cut(self, frames: int) -> LatticeStates:
        """Return the same states, padded or cut to ``frames`` frames."""
        more = (0, frames - self.records.shape[2])
        return LatticeStates(
            *fields_of(super().cut(frames)),
            self.tails,
            self.history,
            F.pad(self.records, more, value=NEVER),
            self.pieces,
        )

    @staticmethod
    def join(parts: Sequence[PrefixStates]) -> LatticeStates:
        """Concatenate lists of prefixes."""
        lattices = [part for part in parts if isinstance(part, LatticeStates)]
        history: list[tuple[int, ...]] = []
        pieces: list[tuple[int, ...]] = []
        for part in lattices:
            offset = len(pieces)
            history += [tuple(offset + r for r in rows) for rows in part.history]
            pieces += part.pieces
        return LatticeStates(
            *fields_of(PrefixStates.join(parts)),
            [tail for part in lattices for tail in part.tails],
            history,
            torch.cat([part.records for part in lattices]),
            pieces,
        )


def fields_of(states: PrefixStates) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the tensors that all prefix scorers have."""
    return states.utterance, states.last, states.label, states.blank, states.score


class _Edges(NamedTuple):
    """Pieces that end with the new character of a prefix.

    Attributes:
        of_prefix: labels of each prefix.
        before: of each prefix (pieces, frames): log probability that the text before
            the piece is complete before each frame.
    """

    of_prefix: list[list[int]]
    before: list[Tensor]

    def __getitem__(self, index: Tensor) -> _Edges:  # type: ignore[override]
        chosen = index.tolist()
        return _Edges(
            [self.of_prefix[i] for i in chosen], [self.before[i] for i in chosen]
        )


class PieceLatticeScorer(CTCPrefixScorer):
    """Scorer of text prefixes, in characters, against CTC logits over BPE pieces.

    The labels of its methods are code points of characters, as
    :meth:`~speechllm.text.ctc_labels.CTCTokenizer.scoring_units` returns them.

    Args:
        logits: (batch, frames, labels), label 0 is blank.
        lengths: (batch,) frames of each utterance.
        token_list: the labels.
    """

    def __init__(self, logits: Tensor, lengths: Tensor, token_list: Sequence[str]):
        super().__init__(logits, lengths)
        self.ids = {
            piece: label for label, piece in enumerate(token_list) if label_text(piece)
        }
        self.unknown = list(token_list).index("<unk>")
        self.characters = set("".join(self.ids))
        self.longest = max(map(len, self.ids), default=1)
        longer: dict[str, set[int]] = defaultdict(set)
        for piece, label in self.ids.items():
            for size in range(1, len(piece)):
                longer[piece[:size]].add(label)
        self.longer = dict(longer)  # pieces that begin with a text and continue
        self.slots = max(  # pieces that can end at the same character
            (
                sum(piece[-size:] in self.ids for size in range(1, len(piece) + 1))
                for piece in self.ids
            ),
            default=1,
        )
        self.columns: dict[tuple[int, str, tuple[int, ...]], Tensor] = {}

    def start(self, utterances: Tensor) -> LatticeStates:
        """Return the empty prefix of each utterance (prefixes,)."""
        plain = super().start(utterances)
        count, frames = plain.blank.shape
        records = plain.blank.new_full((count, 1 + self.slots, frames), NEVER)
        records[:, 0] = shift(plain.blank)
        return LatticeStates(
            *fields_of(plain),
            [""] * count,
            [(row,) for row in range(count)],
            records,
            [()] * count,
        )

    def begins_with(
        self, utterance: int, text: str, excluded: tuple[int, ...]
    ) -> Tensor:
        """Return the log probability in all frames of the pieces that continue a text.

        Args:
            text: their beginning.
            excluded: pieces that are left out.

        Returns:
            (frames,)
        """
        key = (utterance, text, excluded)
        if key not in self.columns:
            labels = sorted(self.longer[text].difference(excluded))
            total = self.logits[utterance][:, labels].double().logsumexp(1)
            self.columns[key] = total - self.normalizers[utterance]
        return self.columns[key]

    def reach(self, states: PrefixStates, labels: Tensor) -> tuple[_Edges, Tensor]:  # type: ignore[override]
        """Score each prefix with one more character (prefixes,).

        Returns:
            The pieces that end with the character, and the score (prefixes,).
        """
        assert isinstance(states, LatticeStates)
        size = states.label.shape[1]
        utterances = states.utterance.tolist()
        owners: list[int] = []  # prefix of each piece
        rows: list[tuple[int, int]] = []  # where the log probabilities before it are
        ending: list[int] = []  # its label, or -1 for the sum of those that go on
        sums: list[Tensor] = []  # (frames,) of those
        for owner, character in enumerate(map(chr, labels.tolist())):
            text, history = states.tails[owner] + character, states.history[owner]
            for length in range(1, min(len(text), self.longest) + 1):
                piece, record = text[-length:], history[-length]
                last = states.pieces[record]
                label = self.ids.get(piece)
                if length == 1 and character not in self.characters:
                    label = self.unknown
                if label is not None:
                    owners.append(owner)
                    rows.append((record, 1 + last.index(label) if label in last else 0))
                    ending.append(label)
                longer = self.longer.get(piece, set())
                repeated = tuple(k for k in last if k in longer)
                if len(longer) > len(repeated):
                    owners.append(owner)
                    rows.append((record, 0))
                    ending.append(-1)
                    column = self.begins_with(utterances[owner], piece, repeated)
                    sums.append(column[:size])
                for label in repeated:
                    owners.append(owner)
                    rows.append((record, 1 + last.index(label)))
                    ending.append(-1)
                    column = self.logits[utterances[owner], :size, label].double()
                    sums.append(column - self.normalizers[utterances[owner], :size])
        device = states.label.device
        count = len(labels)
        if not owners:
            none = _Edges([[] for _ in range(count)], [states.label[:0]] * count)
            return none, states.score.new_full((count,), NEVER)
        places, slots = torch.tensor(rows, device=device).T
        before = states.records[places, slots]  # (pieces, frames)
        owner_of = torch.tensor(owners, device=device)
        utterance = states.utterance[owner_of]
        emitted = self.log_probs(
            utterance, torch.tensor([max(k, 0) for k in ending], device=device), size
        )
        if sums:
            going = torch.tensor([k < 0 for k in ending], device=device)
            emitted[going] = torch.stack(sums)
        beyond = torch.arange(size, device=device) >= self.lengths[utterance, None]
        each = (before + emitted).masked_fill(beyond, NEVER).logsumexp(1)
        score = gather_by_owner(each, owners, count).logsumexp(1)
        of_prefix: list[list[int]] = [[] for _ in range(count)]
        members: list[list[int]] = [[] for _ in range(count)]
        for index, (owner, label) in enumerate(zip(owners, ending)):
            if label >= 0:
                of_prefix[owner].append(label)
                members[owner].append(index)
        return _Edges(of_prefix, [before[chosen] for chosen in members]), score

    def grow(  # type: ignore[override]
        self, states: PrefixStates, labels: Tensor, before: _Edges, score: Tensor
    ) -> LatticeStates:
        """Return the prefixes with one more character, from the output of ``reach``."""
        assert isinstance(states, LatticeStates)
        size, device = states.label.shape[1], states.label.device
        count = len(labels)
        owners = [i for i, found in enumerate(before.of_prefix) for _ in found]
        pieces = [label for found in before.of_prefix for label in found]
        owner_of = torch.tensor(owners, dtype=torch.long, device=device)
        utterance = states.utterance[owner_of]
        emitted = self.log_probs(
            utterance, torch.tensor(pieces, dtype=torch.long, device=device), size
        ).cumsum(1)
        ready = torch.cat(before.before) if pieces else emitted
        ends = emitted + log_cumsum_exp(ready - shift(emitted))
        ends = gather_by_owner(ends, owners, count)  # (prefixes, pieces, frames)
        label = ends.logsumexp(1)
        blank_sums = self.blank_sums[states.utterance, :size]
        blank = blank_sums + log_cumsum_exp(shift(label, NEVER) - shift(blank_sums))
        records = label.new_full((count, 1 + self.slots, size), NEVER)
        records[:, 0] = shift(torch.logaddexp(label, blank), NEVER)
        for slot in range(ends.shape[1] - 1):  # the last one is padding
            others = torch.cat([ends[:, :slot], ends[:, slot + 1 :], blank[:, None]], 1)
            records[:, 1 + slot] = shift(others.logsumexp(1), NEVER)
        new = len(states.pieces)
        characters = map(chr, labels.tolist())
        keep = self.longest - 1
        return LatticeStates(
            states.utterance,
            labels,
            label,
            blank,
            score,
            [
                (tail + character)[-keep:] if keep else ""
                for tail, character in zip(states.tails, characters)
            ],
            [
                (*history[len(history) - keep if len(history) > keep else 0 :], new + i)
                for i, history in enumerate(states.history)
            ],
            torch.cat([states.records, records]),
            [*states.pieces, *map(tuple, before.of_prefix)],
        )


def gather_by_owner(values: Tensor, owners: Sequence[int], count: int) -> Tensor:
    """Return values (n, …) as (count, most values of an owner + 1, …), padded.

    Args:
        owners: of each value, in ascending order.
        count: number of owners.
    """
    places: list[int] = []
    for index, owner in enumerate(owners):
        same = index > 0 and owners[index - 1] == owner
        places.append(places[-1] + 1 if same else 0)
    shape = (count, max(places, default=-1) + 2, *values.shape[1:])
    padded = values.new_full(shape, NEVER)
    padded[torch.tensor(owners, dtype=torch.long), torch.tensor(places).long()] = values
    return padded
