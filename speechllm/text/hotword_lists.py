"""Lists of hotwords in the prompts of models that were trained with them.

A prompt has room for a few words. Of a longer list it has those that resemble the
transcript of CTC and first pass most: a misrecognised word still has many of its
letters in a row there. The model can then copy their spelling (Lakomkin et al. 2024,
"End-to-End Speech Recognition Contextualization with Large Language Models").
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from speechllm.text.prompts import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Size of the longest list in a prompt, unless the training config has another.
MAX_TOKENS = 48


def choose_hotwords(
    words: Sequence[str],
    transcript: str,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
) -> tuple[str, ...]:
    """Return the hotwords that are put into the prompt, in the order of the list.

    They are all, or those that resemble the transcript most; the first ones if the
    transcript is empty. A word that the tokenizer cannot write is left out, as is one
    with a special token, such as ``<|im_end|>``: it would end the prompt.

    Args:
        transcript: of the utterance, made without the list.
        tokenizer: of the LLM.
        max_tokens: size of the list in the prompt.
    """
    special = {*tokenizer.all_special_ids}  # the unknown token is one
    words = [" ".join(word.split()) for word in words]
    places = letter_pairs(transcript)
    ranked = sorted(range(len(words)), key=lambda i: -resemblance(words[i], places))
    chosen, left = [], max_tokens
    for index in ranked:
        if not left:
            break
        tokens = encode(tokenizer, f" {words[index]},")
        if len(tokens) <= left and special.isdisjoint(tokens):
            chosen.append(index)
            left -= len(tokens)
    return tuple(words[index] for index in sorted(chosen))


def letter_pairs(text: str) -> dict[str, list[int]]:
    """Return the places of each pair of letters, spaces included, in a text."""
    text = f" {text.casefold()} "
    places = defaultdict(list)
    for place in range(len(text) - 1):
        places[text[place : place + 2]].append(place)
    return places


def resemblance(word: str, places: Mapping[str, Sequence[int]]) -> float:
    """Return the share of a word's letter pairs that a text has in a row, 0 to 1.

    The row may have a letter too many or too few.

    Args:
        places: :func:`letter_pairs` of the text.
    """
    offsets: Counter[int] = Counter()
    size = 0
    for pair, positions in letter_pairs(word).items():
        size += len(positions)
        for position in positions:
            found = {place - position for place in places.get(pair, ())}
            offsets.update(found | {offset + 1 for offset in found})
    return max(offsets.values(), default=0) / size
