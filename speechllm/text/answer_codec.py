"""Conversion between LLM tokens, text and CTC labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from speechllm.text.ctc_labels import END, CTCTokenizer
from speechllm.text.joint_target import JointAnswer, find_separator, parse_answer
from speechllm.text.normalization import ctc_text
from speechllm.text.prompts import answer_tokens, encode
from speechllm.text.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LabelFunction = Callable[[list[int]], list[int]]


class AnswerCodec:
    """Converter of the LLM's outputs to text and to CTC labels, and back.

    Args:
        tokenizer: of the LLM.
        ctc_tokenizer: of the CTC branch, over characters; None for a model without
            one.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        ctc_tokenizer: CTCTokenizer | None = None,
    ):
        self.tokenizer = tokenizer
        self.ctc_tokenizer = ctc_tokenizer

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of LLM tokens, special tokens left out."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Return the LLM tokens of a text as in an output of the LLM."""
        return answer_tokens(self.tokenizer, text)[:-1] if text else []

    def parse(self, text: str) -> JointAnswer:
        """Split an ``asr_st`` output into transcript and translation."""
        return parse_answer(text, find_separator(self.tokenizer))

    def transcript(self, text: str, task: Task) -> str:
        """Return the transcript in an output, as written."""
        if task.name == "asr_st":
            return text.partition(find_separator(self.tokenizer).text)[0]
        return text

    def label_fn(self, task: Task) -> LabelFunction | None:
        """Return a function from LLM tokens to the CTC labels of their transcript.

        A letter or digit without a label becomes ``<unk>``, which never has a high
        CTC probability; otherwise texts in such characters would have no CTC cost. For
        ``asr_st`` the labels are those of the transcript, followed by ``END`` once the
        separator is written. The result is None for a translation.
        """
        ctc_tokenizer = self.ctc_tokenizer
        if ctc_tokenizer is None or not task.has_transcript:
            return None
        tokenizer, language = self.tokenizer, task.source

        def labels_of_text(tokens: list[int]) -> list[int]:
            return ctc_tokenizer(ctc_text(str(tokenizer.decode(tokens)), language))

        if task.name != "asr_st":
            return labels_of_text
        separator = find_separator(self.tokenizer)

        def labels_of_transcript(tokens: list[int]) -> list[int]:
            text = str(tokenizer.decode(tokens))
            transcript, written, _ = text.partition(separator.text)
            spoken = ctc_text(separator.unescape(transcript), language)
            return ctc_tokenizer(spoken) + [END] * bool(written)

        return labels_of_transcript

    def ctc_labels(self, tokens: Sequence[int], task: Task) -> list[int] | None:
        """Return the CTC labels of an output's transcript; None for a translation."""
        label_fn = self.label_fn(task)
        if label_fn is None:
            return None
        return [label for label in label_fn(list(tokens)) if label != END]

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
            tokens.update(find_separator(self.tokenizer).tokens)
        return sorted(tokens)
