"""The LLM as a reader of many texts at once, whose rows come and go.

Rows are of unlike length and end together: what is missing stands in front. New
positions are written behind, in place; a row that stays where it is costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from speechllm.decoding.kv_cache import RowCache
from speechllm.models.llm import LanguageModel
from speechllm.utils.batching import groups_of_like_length


def settle(parents: Sequence[int]) -> list[int]:
    """An order of rows in which the most of them stay where their parents are.

    Args:
        parents: the row that each new one goes on from.

    Returns:
        For each place, which of the new rows stands there.
    """
    order: list[int | None] = [None] * len(parents)
    rest = []
    for index, parent in enumerate(parents):
        if parent < len(order) and order[parent] is None:
            order[parent] = index
        else:
            rest.append(index)
    left = iter(rest)
    return [next(left) if index is None else index for index in order]


class Reader:
    """What the LLM has read: one row for each hypothesis, in the order of the batch."""

    def __init__(self, llm: LanguageModel):
        self.llm = llm
        self.cache = RowCache()
        self.lengths: list[int] = []  # positions of each row

    def join(self, prompts: Sequence[Tensor]) -> tuple[list[int], Tensor]:
        """Read prompts (positions, hidden) as new rows behind the others.

        Returns:
            Which prompt each of the new rows is of, and the log probabilities of the
            next token (new rows, vocabulary).
        """
        order: list[int] = []
        last: list[Tensor] = []
        for group in groups_of_like_length([len(prompt) for prompt in prompts]):
            lengths = [len(prompts[i]) for i in group]
            padded = torch.stack(
                [
                    F.pad(prompts[i], (0, 0, max(lengths) - len(prompts[i]), 0))
                    for i in group
                ]
            )
            cache = RowCache()
            hidden = self.llm.body(padded, self.mask(lengths), cache)
            last.append(hidden[:, -1])
            self.cache.append(cache)
            self.lengths += lengths
            order += group
        return order, self.llm.head(torch.cat(last)).log_softmax(1)

    def step(self, parents: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Go on with row ``parents[i]`` and then ``tokens[i]`` as row i.

        Returns:
            Log probabilities of the next tokens (rows, vocabulary).
        """
        lengths = [self.lengths[row] for row in parents]
        self.cache.select(parents)
        self.cache.trim(max(lengths, default=0))
        self.lengths = [length + 1 for length in lengths]
        device = self.device
        if not parents:
            return torch.empty(0, self.llm.config.vocab_size, device=device)
        hidden = self.llm.body(
            self.llm.embed(torch.tensor(tokens, device=device)[:, None]),
            self.mask(self.lengths),
            self.cache,
        )
        return self.llm.head(hidden[:, -1]).log_softmax(1)

    @property
    def device(self) -> torch.device:
        """Where the LLM is."""
        return self.llm.causal_lm.get_input_embeddings().weight.device

    def mask(self, lengths: Sequence[int]) -> Tensor:
        """Which positions are filled, of rows that end together (rows, positions)."""
        sizes = torch.tensor(lengths, device=self.device)[:, None]
        longest = max(lengths)
        places = torch.arange(longest, device=self.device)
        return (places >= longest - sizes).long()
