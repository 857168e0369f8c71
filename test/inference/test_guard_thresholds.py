"""Statistics of a hypothesis, the limits they are compared with, and their file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from speechllm.inference.guard_thresholds import (
    LOW_CTC_SCORE,
    REPETITION,
    TOO_LONG,
    TOO_SHORT,
    Limits,
    Statistics,
    Thresholds,
    count_repetition,
    ctc_confidence,
    measure_text,
    read_thresholds,
    write_thresholds,
)
from speechllm.text.tasks import Task
from speechllm.utils.errors import UserError

ENGLISH = Task("asr", "en", "en")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("okay", 0),
        ("Okay, okay. Okay!", 2),
        ("press one press one", 2),
        ("press one press two press", 0),
        ("a b c d a b c d a", 5),
        ("the the cat cat cat", 2),
    ],
)
def test_repeated_words_are_counted(text, count):
    assert count_repetition(text, "en") == count


def test_repeated_characters_are_counted_in_japanese():
    assert count_repetition("はいはいはい。", "ja") == 4
    assert count_repetition("こんにちは", "ja") == 0


def test_statistics_of_a_text():
    found = measure_text("So so so, good.", ENGLISH, "so good", 2.0, 0.8, 1.5)
    assert found.rate == 13 / 2  # "so so so good"
    assert found.length_ratio == (13 + 5) / (7 + 5)
    assert (found.repetition, found.ctc_confidence, found.ctc_margin) == (2, 0.8, 1.5)
    # repetition in the audio is not counted
    assert measure_text("no no no", ENGLISH, "no no no", 2.0, 1.0).repetition == 0
    assert measure_text("", ENGLISH, "", 1.0, 0.0).length_ratio == 1.0


def test_ctc_confidence_is_the_mean_over_letters():
    names = ["<blank>", "<unk>", "<space>", "a", "b", "<sos/eos>"]
    probabilities = torch.tensor(
        [
            [0.9, 0.02, 0.02, 0.02, 0.02, 0.02],  # blank
            [0.1, 0.1, 0.1, 0.5, 0.1, 0.1],  # a
            [0.04, 0.02, 0.9, 0.02, 0.01, 0.01],  # space
            [0.05, 0.05, 0.05, 0.05, 0.7, 0.1],  # b
        ]
    )
    assert ctc_confidence(probabilities.log(), names) == pytest.approx(0.6)
    assert ctc_confidence(probabilities[:1].log(), names) == 0.0


def test_statistics_beyond_the_limits_are_flagged():
    limits = Limits(20.0, 0.5, 2.0, 1, 3.0)
    normal = Statistics(0.9, 10.0, 1.0, 0, 1.0)
    assert limits.flags(normal) == []
    for change, flag in (
        ({"rate": 21.0}, TOO_LONG),
        ({"length_ratio": 2.1}, TOO_LONG),
        ({"length_ratio": 0.4}, TOO_SHORT),
        ({"repetition": 2}, REPETITION),
        ({"ctc_margin": 3.1}, LOW_CTC_SCORE),
    ):
        assert limits.flags(replace(normal, **change)) == [flag]
    assert limits.flags(replace(normal, ctc_margin=None)) == []
    assert limits.max_characters("abcde", 100.0) == 15  # 2 · (5 + 5) − 5
    assert limits.max_characters("abcde", 0.5) == 10


def test_missing_task_has_the_widest_limits():
    groups = {
        "asr_en": Limits(20.0, 0.5, 2.0, 1, 3.0, 12.0),
        "st_en_fr": Limits(25.0, 0.7, 3.0, 0, None, 4.0),
    }
    found = Thresholds(0.5, 0.5, groups)
    assert found.limits(ENGLISH) == groups["asr_en"]
    assert found.limits(Task("asr", "fr", "fr")) == Limits(25.0, 0.5, 3.0, 1, 3.0, 12.0)


# Thresholds file


def test_written_thresholds_are_read_back(tmp_path):
    assert read_thresholds(tmp_path) is None
    found = Thresholds(0.5, 0.7, {"asr_en": Limits(20.0, 0.5, 2.0, 1, 3.0)}, "dev")
    write_thresholds(found, tmp_path)
    assert read_thresholds(tmp_path) == found


@pytest.mark.parametrize(
    "content",
    [
        "clarity: 0.5",
        "a: [",
        "clarity: x\nctc_weight: 0.5\ngroups: {a: {rate: 1, least_expansion: 1}}",
        "clarity: 0.5\nctc_weight: 0.5\ngroups: {}",
        "clarity: 0.5\nctc_weight: 0.5\ngroups: {asr_en: {rate: 1}}",
        "clarity: 0.5\nctc_weight: 0.5\ngroups: [1]",
        "clarity: .nan\nctc_weight: 0.5\ngroups: {asr_en: {rate: 1, "
        "least_expansion: 0.5, most_expansion: 2, repetition: 1}}",
        "clarity: 0.5\nctc_weight: 7\ngroups: {asr_en: {rate: 1, "
        "least_expansion: 0.5, most_expansion: 2, repetition: 1}}",
        "clarity: 0.5\nctc_weight: 0.5\ngroups: {asr_en: {rate: .nan, "
        "least_expansion: 0.5, most_expansion: 2, repetition: 1}}",
    ],
)
def test_damaged_thresholds_file_is_an_error(tmp_path, content):
    (tmp_path / "guard.yaml").write_text(content)
    with pytest.raises(UserError, match=r"guard\.yaml"):
        read_thresholds(tmp_path)
