"""Conversion between LLM tokens, text and CTC labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from speechllm.text.ctc_labels import END, PENDING, CTCTokenizer
from speechllm.text.hotwords import HotwordTrie, hotword_trie
from speechllm.text.joint_target import (
    JointAnswer,
    Separator,
    find_separator,
    parse_answer,
)
from speechllm.text.normalization import ctc_text
from speechllm.text.prompts import answer_tokens, encode
from speechllm.text.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LabelFunction = Callable[[list[int]], list[int]]
INCOMPLETE = "\ufffd"  # decoded bytes that are not a whole character
WINDOW = 24  # maximum number of tokens that are decoded to append one
CONTEXT = 12  # of these, what the text of the next token may depend on


class AnswerCodec:
    """Converter of the LLM's outputs to text and to CTC labels, and back.

    Args:
        tokenizer: of the LLM, or a ``LabelTokenizer`` for a model without one.
        ctc_tokenizer: of the CTC branch; None for a model without one.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        ctc_tokenizer: CTCTokenizer | None = None,
    ):
        self.tokenizer = tokenizer
        self.ctc_tokenizer = ctc_tokenizer

    def hotword_trie(self, words: tuple[str, ...]) -> HotwordTrie | None:
        """Return the automaton of hotwords; None for none."""
        return hotword_trie(self.tokenizer, words) if words else None

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of LLM tokens, special tokens left out."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Return the LLM tokens of a text as in an output of the LLM."""
        return answer_tokens(self.tokenizer, text)[:-1] if text else []

    @property
    def separator(self) -> Separator:
        """Separator between transcript and translation in an ``asr_st`` output."""
        return find_separator(self.tokenizer)

    def encode_part(self, text: str) -> list[int]:
        """Return the LLM tokens of one of the two texts in an ``asr_st`` output."""
        return encode(self.tokenizer, " " + self.separator.escape(text)) if text else []

    def parse(self, text: str) -> JointAnswer:
        """Split an ``asr_st`` output into transcript and translation."""
        return parse_answer(text, self.separator)

    def transcript(self, text: str, task: Task) -> str:
        """Return the transcript in an output, as written."""
        if task.name == "asr_st":
            return text.partition(self.separator.text)[0]
        return text

    def label_fn(self, task: Task) -> LabelFunction | None:
        """Return a function from LLM tokens to the CTC labels of their transcript.

        Where CTC labels are BPE pieces, they are code points of characters
        (:meth:`~speechllm.text.ctc_labels.CTCTokenizer.scoring_units`).

        A letter or digit without a label becomes ``<unk>``, which never has a high
        CTC probability; otherwise texts in such characters would have no CTC cost. For
        ``asr_st`` the labels are those of the transcript, followed by ``END`` once the
        separator is written. ``PENDING`` follows labels whose text ends with some of
        the bytes of a character. The result is None for a translation.
        """
        if self.ctc_tokenizer is None or not task.has_transcript:
            return None
        separator = self.separator if task.name == "asr_st" else None
        return TranscriptLabels(
            self.tokenizer, self.ctc_tokenizer, task.source, separator
        )

    def ctc_labels(self, tokens: Sequence[int], task: Task) -> list[int] | None:
        """Return the CTC labels of an output's transcript; None for a translation.

        They are those of :meth:`label_fn`.
        """
        label_fn = self.label_fn(task)
        if label_fn is None:
            return None
        return [k for k in label_fn(list(tokens)) if k not in (END, PENDING)]

    def ctc_candidates(self, ctc_transcript: str, task: Task) -> list[int]:
        """Return the LLM tokens of the CTC transcript, as is and capitalised.

        Joint search considers them at every step. For ``asr_st`` they include the
        separator's tokens; a translation has none.
        """
        if not task.has_transcript:
            return []
        capitalised = ctc_transcript[:1].upper() + ctc_transcript[1:]
        tokens = {
            token
            for text in {ctc_transcript, capitalised}
            for token in encode(self.tokenizer, " " + text)
        }
        if task.name == "asr_st":
            tokens.update(self.separator.tokens)
        return sorted(tokens)


class _Prefix(NamedTuple):
    """A sequence of tokens as text and CTC labels.

    Attributes:
        window: last tokens; the text of a next token depends on no others.
        head: text before that of the window.
        text: text of all tokens.
        spoken: normalised transcript.
        labels: CTC labels of ``spoken``.
    """

    window: tuple[int, ...]
    head: str
    text: str
    spoken: str
    labels: list[int]


class TranscriptLabels:
    """Label function of a search: decodes the last tokens of a growing output only.

    The prefixes that the last two steps have extended are cached, so that a token
    costs the decoding of at most ``WINDOW`` tokens, however long the output is.

    Args:
        tokenizer: of the LLM.
        ctc_tokenizer: of the CTC branch.
        language: of the speech.
        separator: between transcript and translation; None for a transcript alone.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        ctc_tokenizer: CTCTokenizer,
        language: str,
        separator: Separator | None = None,
    ):
        self.decode = token_decoder(tokenizer)
        self.ctc_tokenizer = ctc_tokenizer
        self.language, self.separator = language, separator
        self.size = 0  # tokens of the longest prefixes
        self.cached: list[dict[tuple[int, ...], _Prefix]] = [{}, {}]

    def __call__(self, tokens: list[int]) -> list[int]:
        """Return the CTC labels of LLM tokens; see :meth:`AnswerCodec.label_fn`."""
        if not tokens:
            return []
        prefix = self.append(self.prefix(tuple(tokens[:-1])), tokens[-1])
        if self.separator is not None and self.separator.text in prefix.text:
            return [*prefix.labels, END]
        incomplete = len(prefix.text) - len(prefix.text.rstrip(INCOMPLETE))
        if 1 <= incomplete <= 3:  # a character has four bytes at most
            return [*prefix.labels, PENDING]
        return prefix.labels

    def prefix(self, tokens: tuple[int, ...]) -> _Prefix:
        """Return a prefix, from the cache if it or its beginning was extended."""
        if (found := self.look_up(tokens)) is not None:
            return found
        parent = self.look_up(tokens[:-1]) if tokens else None
        if parent is not None:
            new = self.append(parent, tokens[-1])
        else:
            new = self.make(tokens, "", "", [])
        if len(tokens) > self.size:
            self.size = len(tokens)
            self.cached = [{}, self.cached[0]]
        self.cached[0][tokens] = new
        return new

    def look_up(self, tokens: tuple[int, ...]) -> _Prefix | None:
        """Return a cached prefix, or None."""
        newer, older = self.cached
        return newer.get(tokens) or older.get(tokens)

    def append(self, parent: _Prefix, token: int) -> _Prefix:
        """Append a token to a prefix."""
        window = (*parent.window, token)
        return self.make(window, parent.head, parent.spoken, parent.labels)

    def make(
        self, window: tuple[int, ...], head: str, before: str, labels: list[int]
    ) -> _Prefix:
        """Return the prefix whose last tokens are ``window``, after the text ``head``.

        Args:
            before: normalised transcript of its beginning.
            labels: CTC labels of ``before``.
        """
        text = head + self.decode(window)
        transcript = text
        if self.separator is not None:
            transcript = self.separator.unescape(text.partition(self.separator.text)[0])
        spoken = ctc_text(transcript, self.language)
        labels = self.ctc_tokenizer.extend(labels, before, spoken)
        if len(window) > WINDOW:
            last = window[-CONTEXT:]
            end = self.decode(last)
            # not in the midst of a character; some tokenizers strip a leading space
            if end and end[0] != INCOMPLETE and text.endswith(end):
                window, head = last, text[: len(text) - len(end)]
        return _Prefix(window, head, text, spoken, labels)


def token_decoder(
    tokenizer: PreTrainedTokenizerBase,
) -> Callable[[Sequence[int]], str]:
    """Return ``tokenizer.decode``, special tokens included.

    Of that of transformers most of the time goes into looking for arrays and lists of
    lists, so the ``tokenizers`` library is called where nothing else would be done.
    """
    from transformers import PreTrainedTokenizerFast as Fast

    kind = type(tokenizer)
    plain = isinstance(tokenizer, Fast) and not tokenizer.clean_up_tokenization_spaces
    if plain and (kind.decode, kind._decode) == (Fast.decode, Fast._decode):
        decode = tokenizer.backend_tokenizer.decode
        return lambda tokens: decode(tokens, skip_special_tokens=False)
    return lambda tokens: str(tokenizer.decode(list(tokens)))
