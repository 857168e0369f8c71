"""Joint target of ``asr_st``: transcript and translation in one output.

In the tables of an example dir the target is transcript, tab, translation; white space
within the texts is collapsed, so that they contain no tab. The LLM writes the tab too
if its tokenizer keeps it. Some tokenizers (such as T5's) turn all white space into
plain spaces; with these the separator is a bar, and a bar in a text is escaped as
``\\p`` (and a backslash is doubled), so that the first bar is always the separator.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from speechllm.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TAB = "\t"  # between transcript and translation in a table
CANDIDATES = (TAB, "\n", "|")  # separators in the LLM's output, in order of preference


@dataclass(frozen=True)
class Separator:
    """Separator between transcript and translation in the LLM's output.

    Attributes:
        text: one character.
        tokens: its tokens, inserted between those of the two texts.
    """

    text: str
    tokens: tuple[int, ...]

    def escape(self, text: str) -> str:
        """Collapse white space and escape the separator, if it is printable."""
        text = " ".join(text.split())
        if self.text.isspace():
            return text
        return text.replace("\\", "\\\\").replace(self.text, r"\p")

    def unescape(self, text: str) -> str:
        """Undo :meth:`escape`, white space collapsed."""
        if not self.text.isspace():
            text = re.sub(r"\\(.)", lambda m: self.text if m[1] == "p" else m[1], text)
        return " ".join(text.split())


@dataclass(frozen=True)
class JointAnswer:
    """Output of the LLM split into its two texts.

    Attributes:
        transcript: text before the separator; the whole output without one.
        translation: text after the separator, may be empty.
        whole: there is exactly one separator, with text on both sides.
    """

    transcript: str
    translation: str
    whole: bool


def join_texts(transcript: str, translation: str) -> str:
    """Return the target of ``asr_st`` as it is written in a table."""
    return TAB.join(" ".join(text.split()) for text in (transcript, translation))


def split_target(task: str, target: str, place: str) -> list[str]:
    """Split the target of a task into its texts, white space collapsed.

    Args:
        task: ``asr_st`` has two texts, transcript and translation; others have one.
        target: as written in the table.
        place: file and id of the target, for the message.

    Raises:
        UserError: a target of ``asr_st`` is not transcript, tab, translation.
    """
    texts = target.split(TAB) if task == "asr_st" else [target]
    texts = [" ".join(text.split()) for text in texts]
    if task == "asr_st" and (len(texts) != 2 or not all(texts)):
        raise UserError(
            f"{place}: expected transcript, tab, translation, found {target!r}"
        )
    return texts


@lru_cache(maxsize=4)
def find_separator(tokenizer: PreTrainedTokenizerBase) -> Separator:
    """Return the first of ``CANDIDATES`` that a tokenizer encodes and decodes.

    Raises:
        UserError: the tokenizer keeps none of them.
    """

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    for mark in CANDIDATES:
        tokens = encode(mark)
        separator = Separator(mark, tuple(tokens))
        hard = separator.escape(f"a{mark}\\")  # contains all escape sequences
        # the last token alone if possible: sentencepiece adds a space before it
        for chosen in (tokens[-1:], tokens):
            output = [*encode(" " + hard), *chosen, *encode(" " + hard)]
            back = str(tokenizer.decode(output, skip_special_tokens=True))
            if chosen and [part.strip() for part in back.split(mark)] == [hard, hard]:
                return Separator(mark, tuple(chosen))
    raise UserError(
        "the LLM's tokenizer keeps no tab, line break or bar, so transcript and "
        "translation of asr_st cannot be separated; train asr and st with this LLM"
    )


def parse_answer(text: str, separator: Separator) -> JointAnswer:
    """Split the LLM's output; a malformed one gives the texts that it contains."""
    transcript, *rest = (separator.unescape(p) for p in text.split(separator.text))
    translation = " ".join(rest).strip()
    whole = len(rest) == 1 and bool(transcript and translation)
    return JointAnswer(transcript, translation, whole)
