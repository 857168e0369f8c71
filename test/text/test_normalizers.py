"""Whisper's normalisers and ours, on texts of which people know the result."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechllm.text.normalizers import SPOKEN, WhisperNormalizer

SPELLING = {"colour": "color", "programme": "program"}
WHISPER = WhisperNormalizer(lambda: SPELLING)


@pytest.mark.parametrize(
    ("lang", "raw", "whisper", "spoken"),
    [
        (
            "en",
            "Um, he won't like the colour [laughs].",
            "he will not like the color",
            "um he won't like the colour laughs",
        ),
        ("en", "It's twenty-one", "it is 21", "it's twenty one"),
        ("en", "It is 21.", "it is 21", "it is twenty one"),
        ("en", "Mr. Smith, $5 (cash)", "mister smith $5", "mr smith five cash"),
        ("en", "two hundred and sixty four", "264", "two hundred sixty four"),
        ("fr", "L'été, 21 ! (bruit)", "l été 21", "l'été vingt et un bruit"),
        ("de", "Die Colour-Programme", "die colour programme", "die colour programme"),
        ("ja", "今日は、 １２ 時。", "今日は12時", "今日は十二時"),
        ("zh", "12 点。", "12点", "12点"),
        ("en", "♪ ♪", "", ""),
        ("fr", "♪ ♪", "", ""),
    ],
)
def test_texts_of_both_normalisers(lang, raw, whisper, spoken):
    assert WHISPER(raw, lang) == whisper
    assert SPOKEN(raw, lang) == spoken


def test_english_is_that_of_transformers_tokenizer():
    """``WhisperTokenizer.normalize`` is another way to the same text."""
    from transformers.models.whisper.tokenization_whisper import WhisperTokenizer

    tokenizer = WhisperTokenizer.__new__(WhisperTokenizer)
    tokenizer.english_spelling_normalizer = SPELLING
    text = "  The programme's colour isn't £3.50; it's twenty per cent off, uh, OK?"
    assert WHISPER(text, "en") == tokenizer.normalize(text).strip()
    french = "Où est l’Hôtel (de ville) ?"
    assert WHISPER(french, "fr") == tokenizer.basic_normalize(french).strip()


def test_spellings_are_loaded_for_english_only():
    calls = []

    def load() -> Mapping[str, str]:
        calls.append(1)
        return SPELLING

    normalizer = WhisperNormalizer(load)
    assert normalizer("colour", "fr") == "colour"
    assert not calls
    assert [normalizer("colour", "en") for _ in range(2)] == ["color"] * 2
    assert len(calls) == 1


def test_signatures_tell_class_and_version():
    assert SPOKEN.signature("en") == SPOKEN.signature("ja")
    assert SPOKEN.signature("en").startswith("speechllm|version:2|num2words:")
    english, french, japanese = map(WHISPER.signature, ("en", "fr", "ja"))
    assert english.startswith("whisper|EnglishTextNormalizer|transformers:5")
    assert french.startswith("whisper|BasicTextNormalizer|transformers:")
    assert japanese.startswith("whisper|BasicTextNormalizer|spaces:no|")


PARTS = st.sampled_from(
    "one twelve ninety hundred million o point and double minus dollars cents per cent "
    "a half 5 0.5 . $ % $5 first twentieth won't 1st ½ ² ٣ ２ ( ) [ ] < > 5,000 .5 "
    "'s".split()
)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(PARTS | st.text(max_size=3), max_size=8),
    st.sampled_from("en fr ja".split()),
)
def test_whispers_normalisers_never_raise(parts, lang):
    for gap in (" ", ""):
        text = WHISPER(gap.join(parts), lang)
        assert text == text.strip() and "\n" not in text
