"""Hotwords: words and phrases that earn a bonus in the search.

Contextual biasing by shallow fusion (Zhao et al. 2019, "Shallow-Fusion End-to-End
Contextual Biasing"): an Aho–Corasick automaton over tokens follows all hotwords that
the end of an output may begin. Each token of a partial match is rewarded, so that a
rare word is not pruned before it is complete, and the reward is taken back when the
match breaks off.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from speechllm.text.prompts import encode
from speechllm.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Letters of scripts that have no spaces between words: Thai, Lao, Khmer, Burmese,
#: Japanese and Chinese.
_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff]"
)


class HotwordState(NamedTuple):
    """Hotwords in an output, up to its last token.

    Attributes:
        node: of the longest partial match at the end.
        covered: bit i is set if token i of that match, counted from the end, is in a
            complete hotword.
        complete: number of rewarded tokens in complete hotwords.
        found: nodes of the complete hotwords.
    """

    node: int = 0
    covered: int = 0
    complete: int = 0
    found: frozenset[int] = frozenset()


class HotwordTrie:
    """Aho–Corasick automaton of hotwords.

    Each hotword is rewarded once in an output, so that loops do not pay, and each token
    once, however many hotwords contain it.

    Args:
        hotwords: token ids of each, and whether only the end of a word ends it: "art"
            is not in "artist". Words of scripts without spaces end anywhere.
        continues_word: returns whether a token continues the word before it.
    """

    def __init__(
        self,
        hotwords: Iterable[tuple[Sequence[int], bool]],
        continues_word: Callable[[int], bool],
    ):
        self.continues_word = continues_word
        self.children: list[dict[int, int]] = [{}]
        self.depth, self.fail = [0], [0]
        self.hotwords_below = [0]  # number that begin with the tokens of a node
        self.paths: dict[int, tuple[int, ...]] = {}  # of each hotword, by the last node
        # last node of the longest hotword at the end, if a word ends there or not
        self.longest = {True: [0], False: [0]}
        for tokens, whole_word in hotwords:
            path = [0]
            for token in tokens:
                following = self.children[path[-1]]
                if token not in following:
                    following[token] = len(self.depth)
                    self.children.append({})
                    self.depth.append(len(path))
                    lists = (self.fail, self.hotwords_below, *self.longest.values())
                    for values in lists:
                        values.append(0)
                path.append(following[token])
                self.hotwords_below[path[-1]] += 1
            self.paths[path[-1]] = tuple(path[1:])
            for word_ends in {True, whole_word}:
                self.longest[word_ends][path[-1]] = path[-1]
        self.most_tokens = max(self.depth)  # of a hotword
        queue = deque(self.children[0].values())
        while queue:
            node = queue.popleft()
            for ends in self.longest.values():
                ends[node] = ends[node] or ends[self.fail[node]]
            for token, child in self.children[node].items():
                self.fail[child] = self.next_node(self.fail[node], token)
                queue.append(child)

    def next_node(self, node: int, token: int) -> int:
        """Return the node of the longest match that ends with ``token``."""
        while node and token not in self.children[node]:
            node = self.fail[node]
        return self.children[node].get(token, 0)

    def step(self, state: HotwordState, token: int) -> HotwordState:
        """Append a token."""
        if not state.node and token not in self.children[0]:
            return state
        state = self.settle(state, word_ends=not self.continues_word(token))
        node = self.next_node(state.node, token)
        covered = state.covered << 1 & (1 << self.depth[node]) - 1
        return state._replace(node=node, covered=covered)

    def finish(self, state: HotwordState) -> HotwordState:
        """End the output: a partial match breaks off."""
        return self.settle(state, word_ends=True)._replace(node=0, covered=0)

    def settle(self, state: HotwordState, word_ends: bool) -> HotwordState:
        """Count the longest hotword that the last token completes, if it is new."""
        end = self.longest[word_ends][state.node]
        if not end or end in state.found:
            return state
        new = (1 << self.depth[end]) - 1 & ~state.covered
        return HotwordState(
            state.node,
            state.covered | new,
            state.complete + new.bit_count(),
            state.found | {end},
        )

    def rewarded(self, state: HotwordState) -> int:
        """Return the number of tokens in complete hotwords and the partial match.

        The partial match is the longest that a new hotword begins with.
        """
        node = state.node
        while node and self.hotwords_below[node] == sum(
            node in self.paths[end] for end in state.found
        ):
            node = self.fail[node]
        partial = (1 << self.depth[node]) - 1 & ~state.covered
        return state.complete + partial.bit_count()

    def gains(self, state: HotwordState) -> dict[int, int]:
        """Return the tokens that begin or continue a hotword, and what each gains.

        The gain is the number of rewarded tokens in excess of those after a token of no
        hotword, which may take rewards back.
        """
        ended = self.finish(state)
        gains = dict.fromkeys(self.children[0], 1)
        known = {self.paths[end][0] for end in ended.found}
        tokens = {t for t, node in self.children[0].items() if node in known}
        node = state.node
        while node:
            tokens |= self.children[node].keys()
            node = self.fail[node]
        for token in tokens:
            gains[token] = self.rewarded(self.step(state, token)) - ended.complete
        return gains

    def count(self, tokens: Iterable[int]) -> int:
        """Return the number of rewarded tokens of a complete output."""
        return self.finish(functools.reduce(self.step, tokens, HotwordState())).complete


@functools.lru_cache(maxsize=4)  # a search of LLM and first pass needs two, many times
def hotword_trie(
    tokenizer: PreTrainedTokenizerBase,
    words: tuple[str, ...],
    others: tuple[PreTrainedTokenizerBase, ...] = (),
) -> HotwordTrie:
    """Build the automaton of hotwords, as they are, in lower case and capitalised.

    Each begins after a space, as an output does, or anywhere in a script without
    spaces. A form that the tokenizer cannot write is left out, as is one with a special
    token, such as ``<|im_end|>``: its bonus would end outputs.

    Args:
        others: tokenizers with the same vocabulary that may split a word otherwise.
    """
    special = {*tokenizer.all_special_ids}  # the unknown token is one
    entries: dict[tuple[int, ...], bool] = {}
    for word in words:
        spaceless = _WITHOUT_SPACES.search(word) is not None
        for form in {word, word.lower(), word[:1].upper() + word[1:]}:
            written = (f" {form}", form) if spaceless else (f" {form}",)
            for text, encoder in itertools.product(written, (tokenizer, *others)):
                tokens = tuple(encode(encoder, text))
                if tokens and special.isdisjoint(tokens):
                    entries[tokens] = not spaceless

    @functools.cache
    def continues_word(token: int) -> bool:
        piece = str(tokenizer.convert_ids_to_tokens(token))
        if piece.startswith("▁"):  # decode() strips the space of sentencepiece
            return False
        return str(tokenizer.decode([token]))[:1].isalnum()

    return HotwordTrie(entries.items(), continues_word)


def read_hotwords(path: str | Path) -> tuple[str, ...]:
    """Read a list of hotwords: a word or phrase per line; ``#`` begins a comment line.

    Raises:
        UserError: the file cannot be read, or has no words.
    """
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{path}: cannot read the hotwords ({reason})") from None
    words = [" ".join(line.split()) for line in lines]
    found = tuple(
        dict.fromkeys(word for word in words if word and not word.startswith("#"))
    )
    if not found:
        raise UserError(f"{path}: no hotwords; write one word or phrase per line")
    return found
