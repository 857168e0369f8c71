"""Transcript and translation in one answer: how they are joined and told apart.

In the tables of an example dir the target of ``asr_st`` is transcript, tab,
translation; white space in texts is collapsed there, so that no text holds a tab. The
LLM writes the tab too where its tokenizer keeps one. Some tokenizers (T5's kind) turn
every white space into a plain space; for these the separator is a bar, and a bar in a
text is written ``\\p`` (and a backslash twice), so that the first bar is the separator
always and nothing is guessed in reading back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from speechllm.utils.errors import UserError

TAB = "\t"  # between transcript and translation in a table
CANDIDATES = (TAB, "\n", "|")  # what the LLM may write there; the first that is kept


@dataclass(frozen=True)
class Separator:
    """What stands between transcript and translation in an LLM's answer.

    Attributes:
        text: one character.
        tokens: its tokens, put between those of the two texts.
    """

    text: str
    tokens: tuple[int, ...]

    def escape(self, text: str) -> str:
        """A text as it is written beside this separator, without holding it."""
        text = " ".join(text.split())
        if self.text.isspace():
            return text
        return text.replace("\\", "\\\\").replace(self.text, r"\p")

    def unescape(self, text: str) -> str:
        """The text that :meth:`escape` was given, white space collapsed."""
        if not self.text.isspace():
            text = re.sub(r"\\(.)", lambda m: self.text if m[1] == "p" else m[1], text)
        return " ".join(text.split())


@dataclass(frozen=True)
class JointAnswer:
    """An LLM's answer taken apart.

    Attributes:
        transcript: what stands before the separator; all of it if there is none.
        translation: what stands behind it, or nothing.
        whole: one separator, with a text before and a text behind it.
    """

    transcript: str
    translation: str
    whole: bool


def join_texts(transcript: str, translation: str) -> str:
    """The target of ``asr_st`` as it stands in a table."""
    return TAB.join(" ".join(text.split()) for text in (transcript, translation))


def split_target(task: str, target: str, place: str) -> list[str]:
    """The texts that a task's target in a table consists of, white space collapsed.

    Args:
        task: ``asr_st`` has two, transcript and translation; any other one.
        target: as it stands in the table.
        place: where it stands, for the message.

    Raises:
        UserError: a target of ``asr_st`` is not text, tab, text.
    """
    texts = target.split(TAB) if task == "asr_st" else [target]
    texts = [" ".join(text.split()) for text in texts]
    if task == "asr_st" and (len(texts) != 2 or not all(texts)):
        raise UserError(
            f"{place}: expected transcript, tab, translation, found {target!r}"
        )
    return texts


@lru_cache(maxsize=4)
def find_separator(tokenizer) -> Separator:
    """The first of ``CANDIDATES`` that a tokenizer of transformers writes and reads.

    Raises:
        UserError: it keeps none of them.
    """

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    for mark in CANDIDATES:
        tokens = encode(mark)
        separator = Separator(mark, tuple(tokens))
        hard = separator.escape(f"a{mark}\\")  # a text that needs what escaping needs
        # alone if it can be: sentencepiece puts a space's token in front
        for chosen in (tokens[-1:], tokens):
            answer = [*encode(" " + hard), *chosen, *encode(" " + hard)]
            back = tokenizer.decode(answer, skip_special_tokens=True)
            if chosen and [part.strip() for part in back.split(mark)] == [hard, hard]:
                return Separator(mark, tuple(chosen))
    raise UserError(
        "the LLM's tokenizer keeps no tab, line break or bar, so that transcript and "
        "translation cannot be told apart; train asr and st with this LLM"
    )


def parse_answer(text: str, separator: Separator) -> JointAnswer:
    """Take apart what an LLM wrote; a malformed answer yields what is there."""
    transcript, *rest = (separator.unescape(p) for p in text.split(separator.text))
    translation = " ".join(rest).strip()
    whole = len(rest) == 1 and bool(transcript and translation)
    return JointAnswer(transcript, translation, whole)
