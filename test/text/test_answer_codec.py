"""AnswerCodec with SmolLM2's tokenizer; CTC labels spelt by hand."""

from __future__ import annotations

import pytest
from tiny_models import LABELS

from speechllm.text.answer_codec import AnswerCodec
from speechllm.text.ctc_labels import END, CTCTokenizer
from speechllm.text.t5_tokenizer import load_tokenizer
from speechllm.text.tasks import Task

ASR, ST = Task("asr", "en", "en"), Task("st", "en", "fr")
BOTH = Task("asr_st", "en", "fr")


@pytest.fixture(scope="module")
def codec(smollm2) -> AnswerCodec:
    return AnswerCodec(load_tokenizer(smollm2), CTCTokenizer(LABELS))


def labels_of(text: str) -> list[int]:
    return [LABELS.index({" ": "<space>"}.get(c, c)) for c in text]


@pytest.mark.parametrize("text", ["Press one.", "a", "Élan vital", ""])
def test_decode_inverts_encode(codec, text):
    assert codec.decode(codec.encode(text)).strip() == text


def test_ctc_labels_are_those_of_the_normalised_transcript(codec):
    assert codec.ctc_labels(codec.encode("Press one, please!"), ASR) == labels_of(
        "press one please"
    )
    assert codec.ctc_labels(codec.encode("Appuyez"), ST) is None
    unknown = codec.ctc_tokenizer.unknown
    assert codec.ctc_labels(codec.encode("aßb"), ASR) == [
        *labels_of("a"), unknown, *labels_of("b"),
    ]  # fmt: skip


def test_labels_of_a_joint_output_end_with_the_transcript(codec):
    tokens = codec.tokenizer(" Press one\t Appuyez")["input_ids"]
    label_fn = codec.label_fn(BOTH)
    assert label_fn(tokens) == [*labels_of("press one"), END]
    assert codec.ctc_labels(tokens, BOTH) == labels_of("press one")
    text = codec.decode(tokens)
    assert codec.transcript(text, BOTH).strip() == "Press one"
    assert codec.transcript(text, ASR) == text
    answer = codec.parse(text)
    assert (answer.transcript, answer.translation) == ("Press one", "Appuyez")


def test_ctc_candidates_spell_the_ctc_transcript(codec):
    found = codec.ctc_candidates("press one", ASR)
    assert set(found) >= set(codec.encode("press one")) | set(codec.encode("Press one"))
    assert codec.ctc_candidates("press one", ST) == []
    assert set(codec.ctc_candidates("press one", BOTH)) - set(found)


def test_without_a_ctc_branch_nothing_has_labels(smollm2):
    codec = AnswerCodec(load_tokenizer(smollm2))
    assert codec.label_fn(ASR) is None
    assert codec.ctc_labels([1, 2], ASR) is None
