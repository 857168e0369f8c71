"""Hotwords for the prompt: those that fit, and resemble the transcript."""

from __future__ import annotations

import pytest
from rapidfuzz.distance import LCSseq

from speechllm.text.hotword_lists import choose_hotwords, letter_pairs, resemblance


def test_resemblance():
    places = letter_pairs("please leave the asterix server")
    # pairs of " asterisk ": a, as, st, te, er, ri are in a row, is, sk, k_ are not
    assert resemblance("Asterisk", places) == pytest.approx(6 / 9)
    assert resemblance("please", places) == 1.0
    assert resemblance("leave the", places) == 1.0
    assert resemblance("zoo", places) == 0.0
    assert resemblance("asterisk", letter_pairs("")) == 0.0
    # a letter too many or too few; more break the row
    assert resemblance("serrver", places) == pytest.approx(7 / 8)
    assert resemblance("srver", places) == pytest.approx(5 / 6)
    assert resemblance("東京", letter_pairs("今日は東京です")) == pytest.approx(1 / 3)


def test_a_short_list_is_kept_as_it_is(tokenizer):
    words = ["weasels", "New  York\nCity", "art", "東京"]
    found = choose_hotwords(words, "the art of", tokenizer, 48)
    assert found == ("weasels", "New York City", "art", "東京")
    assert choose_hotwords([], "the art of", tokenizer, 48) == ()
    assert choose_hotwords(words, "the art of", tokenizer, 0) == ()


def test_a_long_list_is_reduced_to_what_resembles_the_transcript(tokenizer):
    others = [f"{a}{b}{c}ump" for a in "bdfghj" for b in "aeiou" for c in "lmnrst"]
    words = [*others[:90], "voicemail", *others[90:], "conference"]
    found = choose_hotwords(words, "the voice male conferance", tokenizer, 24)
    assert {"voicemail", "conference"} <= {*found} and len(found) < 20
    assert list(found) == [word for word in words if word in found]
    for transcript in ("the voice male conferance", "balump", ""):
        found = choose_hotwords(words, transcript, tokenizer, 24)
        size = sum(len(tokenizer(f" {word},")["input_ids"]) for word in found)
        assert 20 < size <= 24
    assert found[:6] == tuple(words[:6])  # nothing resembles an empty transcript
    # the most alike by an independent measure is among them
    for word in words[::7]:
        heard = word[:2] + "x" + word[2:]
        assert LCSseq.normalized_similarity(word, heard) > 0.85
        assert word in choose_hotwords(words, f"press {heard} now", tokenizer, 24)


def test_words_that_would_end_the_prompt_are_left_out(tokenizer):
    end = tokenizer.eos_token
    words = [end, f"a{end}b", "<|im_start|>", "im_end", "one"]
    assert choose_hotwords(words, end, tokenizer, 48) == ("im_end", "one")
