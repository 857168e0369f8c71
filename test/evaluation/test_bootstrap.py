"""Intervals of scores compared with sacrebleu's and with direct computations."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from speechllm.evaluation import bootstrap
from speechllm.evaluation.bootstrap import (
    half_width,
    ratio_samples,
    resampled_sums,
    score_samples,
    sentence_statistics,
)
from speechllm.evaluation.groups import Group
from speechllm.evaluation.recognition import score_recognition
from speechllm.evaluation.translation import score_translation, translation_metric

WORDS = ["press", "one", "to", "enter", "your", "number", "then", "the", "pound", "key"]


def sentences(number: int, share: float = 0.3) -> tuple[list[str], list[str]]:
    """Return random references, and hypotheses with a share of replaced words."""
    generator = random.Random(number)
    references = [
        " ".join(generator.choices(WORDS, k=generator.randint(3, 12)))
        for _ in range(number)
    ]
    hypotheses = [
        " ".join(
            generator.choice(WORDS) if generator.random() < share else word
            for word in reference.split()
        )
        for reference in references
    ]
    return references, hypotheses


@pytest.mark.parametrize("block", [1, 100, 2**22])
def test_sums_are_those_of_the_drawn_utterances(monkeypatch, block):
    """Draw by draw, for blocks of one sample, of several and of all."""
    monkeypatch.setattr(bootstrap, "_BLOCK", block)
    statistics = np.random.default_rng(0).integers(0, 9, (30, 3))
    draws = np.random.default_rng(12345).choice(30, (50, 30))
    expected = [statistics[draw].sum(0) for draw in draws]
    assert np.array_equal(resampled_sums(statistics, 50), expected)


@pytest.mark.parametrize("name", ["bleu", "chrf", "ter"])
def test_translation_intervals_are_those_of_sacrebleu(name):
    references, hypotheses = sentences(60)
    metric = translation_metric(name, "en")
    assert "SACREBLEU_SEED" not in os.environ
    theirs = metric.corpus_score(hypotheses, [references], n_bootstrap=1000)
    statistics = sentence_statistics(metric, references, hypotheses)
    ours = score_samples(metric, statistics)
    assert half_width(ours) == pytest.approx(theirs._ci, abs=1e-4)
    rows = score_translation(
        Group("st", "de", "en", [f"{n:02}" for n in range(60)], references, hypotheses)
    ).rows
    row = next(row for row in rows if row["metric"] == name)
    assert row["interval"] == round(theirs._ci, 2)
    assert row["value"] == round(theirs.score, 2)
    assert "bs:" not in row["signature"]  # the value is not a bootstrap mean


def test_word_error_interval_equals_the_percentiles_of_direct_samples():
    """One error in each of the first 10 of 50 utterances, of four words each."""
    hypotheses = ["one two three six"] * 10 + ["one two three four"] * 40
    group = Group(
        "asr", "en", "en", [f"u{n}" for n in range(50)],
        ["one two three four"] * 50, hypotheses,
    )  # fmt: skip
    draws = np.random.default_rng(12345).choice(50, (1000, 50))
    rates = np.sort(100 * (draws < 10).sum(1) / 200)
    expected = (rates[974] - rates[25]) / 2  # 25 samples on either side are left out
    row = score_recognition(group).rows[0]
    assert (row["metric"], row["value"]) == ("wer", 5.0)
    assert row["interval"] == round(float(expected), 2)
    binomial = 25 * 1.96 * (0.2 * 0.8 / 50) ** 0.5
    assert row["interval"] == pytest.approx(binomial, rel=0.15)


def test_single_utterance_has_no_interval():
    group = Group("asr", "en", "en", ["a"], ["one two"], ["one"])
    assert all("interval" not in row for row in score_recognition(group).rows)
    group = Group("st", "de", "en", ["a"], ["one two"], ["one"])
    assert all("interval" not in row for row in score_translation(group).rows)


def test_ten_thousand_utterances_take_seconds():
    """Bootstrap of 18 statistics, as chrF has them; the memory stays below 1 GB."""
    code = (
        "import resource, time, numpy as np\n"
        "from speechllm.evaluation.bootstrap import resampled_sums\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "resampled_sums(np.ones((10_000, 18)), 1000)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    begin = time.process_time()
    ratio_samples([1] * 10_000, [5] * 10_000)
    assert time.process_time() - begin < 10
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 2**20  # KiB
