"""AnswerCodec with SmolLM2's tokenizer; CTC labels spelt by hand."""

from __future__ import annotations

import random

import pytest
from tiny_models import LABELS, write_tokenizer

from speechllm.text.answer_codec import WINDOW, AnswerCodec, token_decoder
from speechllm.text.ctc_labels import END, PENDING, CTCTokenizer
from speechllm.text.normalization import ctc_text
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


def test_bytes_of_an_incomplete_character_are_pending(codec):
    tokens = codec.tokenizer("a鵺")["input_ids"]  # "a" and three tokens of one byte
    label_fn = codec.label_fn(ASR)
    assert [label_fn(tokens[:n]) for n in range(1, 5)] == [
        labels_of("a"),
        [*labels_of("a"), PENDING],
        [*labels_of("a"), PENDING],
        [*labels_of("a"), codec.ctc_tokenizer.unknown],
    ]
    assert codec.ctc_labels(tokens[:3], ASR) == labels_of("a")
    invalid = codec.tokenizer("鵺")["input_ids"][:1] * 4  # no character has such bytes
    assert label_fn([tokens[0], *invalid]) == labels_of("a")


def test_bytes_of_a_sentencepiece_tokenizer_are_pending(tmp_path):
    """Byte fallback as in rinna's tokenizers."""
    write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    labels = ["<blank>", "<unk>", "今", "鵺", "<sos/eos>"]
    codec = AnswerCodec(tokenizer, CTCTokenizer(labels))
    tokens = tokenizer("今鵺", add_special_tokens=False)["input_ids"]
    label_fn = codec.label_fn(Task("asr", "ja", "ja"))
    first = len(tokens) - 3
    assert tokenizer.decode(tokens[:first]).strip() == "今"
    assert [label_fn(tokens[:n]) for n in range(first, len(tokens) + 1)] == [
        [2],
        [2, PENDING],
        [2, PENDING],
        [2, 3],
    ]


class CountingTokenizer:
    """Tokenizer that counts the tokens which it decodes."""

    def __init__(self, tokenizer):
        self.tokenizer, self.sizes = tokenizer, []

    def decode(self, tokens, **options):
        self.sizes.append(len(tokens))
        return self.tokenizer.decode(tokens, **options)

    def __call__(self, *args, **options):
        return self.tokenizer(*args, **options)


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("smollm2", ASR),
        ("smollm2", BOTH),
        ("smollm2", Task("asr", "ja", "ja")),
        ("sentencepiece", Task("asr", "ja", "ja")),
    ],
)
def test_incremental_labels_equal_those_of_the_whole_text(codec, tmp_path, kind, task):
    if kind == "smollm2":
        tokenizer = codec.tokenizer
        text = " Don't press «one»... 鵺 你好吗? 한국어 - C'est l'été, n'est-ce pas. "
    else:
        write_tokenizer(tmp_path)
        tokenizer, text = load_tokenizer(tmp_path), "今日は鵺と hello world, 天気です。"
    counting = CountingTokenizer(tokenizer)
    label_fn = AnswerCodec(counting, CTCTokenizer(LABELS)).label_fn(task)
    encode = tokenizer(text, add_special_tokens=False)["input_ids"]
    draw = random.Random(1)
    tokens: list[int] = []
    reference = AnswerCodec(tokenizer)
    for step in range(200):
        candidates = [
            *draw.sample(encode, 5),
            draw.randrange(300),
            encode[step % len(encode)],
        ]
        for token in candidates:
            whole = str(tokenizer.decode([*tokens, token]))
            spoken = whole
            if task == BOTH:
                spoken = reference.parse(whole).transcript
            found = [k for k in label_fn([*tokens, token]) if k >= 0]
            assert found == CTCTokenizer(LABELS)(ctc_text(spoken, task.source)), whole
        tokens.append(candidates[-1])
    del counting.sizes[:3]
    assert max(counting.sizes) <= WINDOW + 2
    # one for each candidate, a few for each step
    assert len(counting.sizes) < 200 * (len(candidates) + 3)


def test_fast_decoding_is_that_of_transformers(smollm2):
    """Of bytes of no character, special tokens, and with the spaces cleaned up."""
    tokenizer = load_tokenizer(smollm2)
    generator = random.Random(1)
    lines = [generator.sample(range(len(tokenizer)), 12) for _ in range(200)]
    lines += [
        [],
        [tokenizer.eos_token_id, 5],
        tokenizer(" don 't , été 語 .").input_ids,
    ]
    for clean_up in (False, True):
        tokenizer.clean_up_tokenization_spaces = clean_up
        decode = token_decoder(tokenizer)
        assert [decode(line) for line in lines] == [
            tokenizer.decode(line) for line in lines
        ]
