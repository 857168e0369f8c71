"""Paired bootstrap compared with sacrebleu's command line and direct computations."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from speechllm.bin.compare import main
from speechllm.evaluation.score import score_decode_dir
from speechllm.evaluation.significance import (
    compare,
    compare_other_tasks,
    p_value,
    ratio_bootstrap,
)
from speechllm.utils.errors import UserError

ENDINGS = ("asr-en", "st-fr")
WORDS = ["press", "one", "to", "enter", "your", "number", "then", "the", "pound", "key"]


def noisy(sentence: str, share: float, generator: random.Random) -> str:
    """Replace a share of the words."""
    words = sentence.split()
    return " ".join(
        generator.choice(WORDS) if generator.random() < share else word
        for word in words
    )


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Forty sentences of three tasks; B has fewer errors than A."""
    folder = tmp_path_factory.mktemp("compare")
    generator = random.Random(0)
    references, tasks, a, b = {}, {}, {}, {}
    transcripts = {"a": {}, "b": {}}
    for number in range(40):
        text = " ".join(generator.choices(WORDS, k=generator.randint(5, 9)))
        for task in ("asr-en", "st-de", "asr_st-de"):
            name = f"u{number:02}-{task}"
            kind, target = task.split("-")
            tasks[name] = f"{kind} en {target}"
            references[name] = f"{text}\t{text}" if kind == "asr_st" else text
            a[name] = noisy(text, 0.4, generator)
            b[name] = noisy(text, 0.1, generator)
            if kind == "asr_st":
                transcripts["a"][name] = noisy(text, 0.3, generator)
                transcripts["b"][name] = noisy(text, 0.3, generator)
    paths = {"examples": folder / "examples"}
    for name, outputs in (("a", a), ("b", b)):
        paths[name] = folder / "exp" / f"system_{name}" / "greedy" / "test"
        write(paths[name] / "text", outputs)
        write(paths[name] / "text.transcript", transcripts[name])
    write(paths["examples"] / "text", references)
    write(paths["examples"] / "utt2task", tasks)
    return paths


def write(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{key} {value}\n" for key, value in table.items()))


def read(path) -> dict[str, str]:
    return dict(line.split(" ", 1) for line in path.read_text().splitlines())


@pytest.fixture(scope="module")
def rows(case):
    found = compare(case["examples"], case["a"], case["b"], samples=300)
    return {(row.task, row.metric): row for row in found}


def test_compared_tasks_and_metrics(rows):
    assert set(rows) == {
        *product(["asr", "asr_st"], ["wer", "cer"]),
        *product(["st", "asr_st"], ["bleu", "chrf", "ter"]),
    }


def test_translation_scores_equal_those_of_the_sacrebleu_command(case, rows, tmp_path):
    """Same number of samples and same seed as in the command."""
    references = read(case["examples"] / "text")
    names = sorted(name for name in references if "-st-" in name)
    for label, table in (
        ("ref", references),
        ("a", read(case["a"] / "text")),
        ("b", read(case["b"] / "text")),
    ):
        (tmp_path / label).write_text("".join(f"{table[n]}\n" for n in names))
    done = subprocess.run(
        [sys.executable, "-m", "sacrebleu", "ref", "-i", "a", "b", "-m", "bleu", "chrf",
         "ter", "--paired-bs", "--paired-bs-n", "300", "-f", "text"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    # | Baseline: a | 65.3 (65.5 ± 11.1) | …, | b | …, | | (p = 0.0033)* | …
    scores = re.findall(r"([0-9.]+) \([0-9.]+ ± ([0-9.]+)\)", done.stdout)
    values = re.findall(r"p = ([0-9.]+)\)", done.stdout)
    for index, metric in enumerate(("bleu", "chrf", "ter")):
        row = rows["st", metric]
        found = row.a, row.a_interval, row.b, row.b_interval, row.p
        printed = *scores[index], *scores[index + 3], values[index]
        for value, text in zip(found, printed, strict=True):
            assert value == pytest.approx(float(text), abs=0.051)
        assert row.p == pytest.approx(float(values[index]), abs=1e-4)
    assert rows["st", "bleu"].p < 0.05


def test_word_error_rate_equals_a_direct_computation(case, rows):
    """Samples one by one, errors by edit distance, rates in plain Python."""
    references = read(case["examples"] / "text")
    names = sorted(name for name in references if "-asr-" in name)

    def distance(left, right):
        table = list(range(len(right) + 1))
        for i, x in enumerate(left, 1):
            previous, table[0] = table[0], i
            for j, y in enumerate(right, 1):
                previous, table[j] = (
                    table[j],
                    min(table[j] + 1, table[j - 1] + 1, previous + (x != y)),
                )
        return table[-1]

    words = [len(references[n].split()) for n in names]
    errors = {}
    for label in ("a", "b"):
        outputs = read(case[label] / "text")
        errors[label] = [
            distance(references[n].split(), outputs[n].split()) for n in names
        ]
    row = rows["asr", "wer"]
    assert row.a == pytest.approx(100 * sum(errors["a"]) / sum(words))
    assert row.b == pytest.approx(100 * sum(errors["b"]) / sum(words))
    observed = row.b - row.a
    differences, better = [], 0
    draws = np.random.default_rng(12345).choice(len(names), (300, len(names)))
    for draw in draws.tolist():
        total = sum(words[i] for i in draw)
        rates = [100 * sum(errors[x][i] for i in draw) / total for x in ("a", "b")]
        differences.append(rates[1] - rates[0])
        better += rates[1] < rates[0]
    mean = sum(differences) / len(differences)
    beyond = sum(abs(d - mean) >= abs(observed) for d in differences)
    assert row.p == pytest.approx((beyond + 1) / 301)
    assert row.improvement == pytest.approx(better / 300)
    assert row.p < 0.01 and row.improvement == 1.0


def test_intervals_agree_with_the_normal_approximation():
    """For errors of single words the interval is that of a binomial proportion."""
    generator = random.Random(1)
    a = [generator.random() < 0.3 for _ in range(2000)]
    value, _, interval, *_ = ratio_bootstrap(a, a, [1] * 2000, 1000)
    share = value / 100
    expected = 100 * 1.96 * (share * (1 - share) / 2000) ** 0.5
    assert interval == pytest.approx(expected, rel=0.1)


def test_references_without_words_are_compared_as_they_are_scored(tmp_path):
    """All references are signs: 3 inserted words are 100 %, as in the scores."""
    examples = tmp_path / "examples"
    names = [f"u{number}" for number in range(4)]
    write(
        examples / "utt2task",
        {f"{n}-asr-en": "asr en en" for n in names}
        | {f"{n}-st-fr": "st en fr" for n in names},
    )
    write(examples / "text", {f"{n}-{task}": "♪ ♪" for n in names for task in ENDINGS})
    outputs = {"a": ["oh", "oh no", "", ""], "b": [""] * 4}
    folders = {}
    for system, texts in outputs.items():
        folders[system] = tmp_path / "exp" / system / "decode" / "test"
        table = {
            f"{n}-{task}": text
            for n, text in zip(names, texts, strict=True)
            for task in ENDINGS
        }
        write(folders[system] / "text", table)
        rows, _ = score_decode_dir(examples, folders[system])
        scored = {row["metric"]: row["value"] for row in rows if row["task"] == "asr"}
        assert scored["wer"] == (100.0 if system == "a" else 0.0)
    found = {r.metric: r for r in compare(examples, *folders.values(), samples=200)}
    assert (found["wer"].a, found["wer"].b) == (100.0, 0.0)
    assert (found["cer"].a, found["cer"].b) == (100.0, 0.0)
    assert found["bleu"].a == 0.0


def test_a_bootstrap_sample_without_words_counts_errors_by_themselves():
    """Of two utterances, one without words and with an error; half the draws mix."""
    value_a, value_b, *_, higher = ratio_bootstrap([1, 0], [0, 0], [0, 5], 1000)
    assert (value_a, value_b) == (20.0, 0.0)
    # B is higher only in ties: when the second utterance is drawn twice, 1 in 4
    assert higher == pytest.approx(0.125, abs=0.03)


def test_equal_systems_do_not_differ(case):
    for row in compare(case["examples"], case["a"], case["a"], samples=100):
        assert row.a == row.b and row.p == 1.0
        assert row.improvement in (None, 0.5)


def test_p_value_includes_the_observed_sample():
    differences = np.array([1.0, 1.0, 1.0, 9.0])  # minus their mean: -2, -2, -2, 6
    assert p_value(differences, 5.0) == 2 / 5
    assert p_value(-differences, -7.0) == 1 / 5
    assert p_value(differences, 2.0) == 5 / 5


def test_additional_tasks_of_a_system_are_ignored(case, tmp_path):
    for name in ("text", "utt2task"):
        table = read(case["examples"] / name)
        write(tmp_path / name, {k: v for k, v in table.items() if "-asr-" in k})
    found = compare(tmp_path, case["a"], case["b"], samples=100)
    assert {row.task for row in found} == {"asr"}


def split_case(case, tmp_path) -> dict[str, Path]:
    """Write the examples of st and asr_st into a folder each."""
    found = {}
    for task in ("st", "asr_st"):
        found[task] = tmp_path / task
        for name in ("text", "utt2task"):
            table = read(case["examples"] / name)
            chosen = {k: v for k, v in table.items() if k[4:].startswith(f"{task}-")}
            write(found[task] / name, chosen)
    return found


def test_translations_of_two_tasks_are_compared_by_utterance(case, tmp_path, capsys):
    """Equal to the comparison of one task with the hypotheses of both."""
    folders = split_case(case, tmp_path)
    renamed = tmp_path / "exp/other/greedy/test"
    outputs = read(case["b"] / "text")
    write(renamed / "text", {
        k: outputs[k.replace("-st-", "-asr_st-")] for k in read(folders["st"] / "text")
    })  # fmt: skip
    expected = compare(folders["st"], case["a"], renamed, samples=300)
    examples = folders["st"], folders["asr_st"]
    found = compare_other_tasks(examples, (case["a"], case["b"]), samples=300)
    assert [row.metric for row in found] == ["bleu", "chrf", "ter"]
    assert {row.task for row in found} == {"st, asr_st"}
    assert [(r.a, r.b, r.p) for r in found] == [(r.a, r.b, r.p) for r in expected]
    main([
        "--examples", str(folders["st"]), "--a", str(case["a"]),
        "--examples_b", str(folders["asr_st"]), "--b", str(case["b"]),
    ])  # fmt: skip
    assert "| st, asr_st en → de | chrF |" in capsys.readouterr().out


def test_utterances_without_a_transcript_are_left_out(case, tmp_path, capsys):
    """``make_examples --keep_empty`` has translation examples of them only."""
    folders = split_case(case, tmp_path)
    dirs = case["a"], case["b"]
    both = folders["st"], folders["asr_st"]
    table = read(folders["st"] / "text")
    first, *others = [name for name in table if name.endswith("-st-de")]
    for name in ("text", "utt2task"):
        rows = read(folders["asr_st"] / name)
        other = first.replace("-st-", "-asr_st-")
        write(folders["asr_st"] / name, {k: v for k, v in rows.items() if k != other})
    found = compare_other_tasks(both, dirs)
    assert capsys.readouterr().err == (
        f"{folders['st']}: 1 utterances from en into de are left out, which the other "
        "set lacks\n"
    )
    for name in ("text", "utt2task"):
        rows = read(folders["st"] / name)
        write(folders["st"] / name, {k: v for k, v in rows.items() if k != first})
    assert compare_other_tasks(both, dirs) == found
    assert others and capsys.readouterr().err == ""


def test_translations_of_other_references_are_not_compared(case, tmp_path):
    folders = split_case(case, tmp_path)
    table = read(folders["st"] / "text")
    write(folders["st"] / "text", {**table, "u03-st-de": "another text"})
    dirs = case["a"], case["b"]
    with pytest.raises(UserError, match="different references from en into de"):
        compare_other_tasks((folders["st"], folders["asr_st"]), dirs)
    write(folders["st"] / "utt2task", dict.fromkeys(table, "asr en en"))
    with pytest.raises(UserError, match="no common translation"):
        compare_other_tasks((folders["st"], folders["asr_st"]), dirs)


def write_comet(folder, gain: float, signature: str = "model:x") -> None:
    """Add COMET to the scores of a group: 60, 61, … plus ``gain``."""
    path = folder / "score_st_en_de" / "scores.tsv"
    header, *lines = [line.split("\t") for line in path.read_text().splitlines()]
    header.insert(3, "comet")
    for number, line in enumerate(lines):
        line.insert(3, f"{60 + number + gain:.2f}")
    path.write_text("".join("\t".join(line) + "\n" for line in [header, *lines]))
    row = {"metric": "comet", "signature": signature}
    path = path.with_name("scores.json")
    path.write_text(json.dumps([*json.loads(path.read_text()), row]))


@pytest.fixture
def scored(case, tmp_path):
    """Decode dirs with COMET; B is better by half a point in each sentence."""
    folders = {}
    for label, gain in (("a", 0.0), ("b", 0.5)):
        folders[label] = tmp_path / label
        for name in ("text", "text.transcript"):
            write(folders[label] / name, read(case[label] / name))
        score_decode_dir(case["examples"], folders[label])
        write_comet(folders[label], gain)
    return folders


def test_comet_is_compared_if_both_systems_have_it(case, scored, capsys):
    found = compare(case["examples"], scored["a"], scored["b"], samples=200)
    (row,) = [row for row in found if row.metric == "comet"]
    assert (row.task, row.a, row.b) == ("st", pytest.approx(79.5), pytest.approx(80.0))
    assert row.improvement == 1.0 and row.p < 0.01
    assert capsys.readouterr().err == ""


def test_comet_of_other_texts_is_left_out(case, scored, capsys):
    """B was decoded again after it was scored: one sentence is another."""
    texts = read(scored["b"] / "text")
    write(scored["b"] / "text", texts | {"u07-st-de": "now perfect"})
    found = compare(case["examples"], scored["a"], scored["b"], samples=100)
    assert {row.metric for row in found if row.task == "st"} == {"bleu", "chrf", "ter"}
    folder = scored["b"] / "score_st_en_de"
    assert capsys.readouterr().err == (
        f"warning: st_en_de: COMET in {folder} is of other texts; score this "
        "set again (stage 13)\n"
    )


def test_comet_of_different_models_is_left_out(case, scored, capsys):
    score_decode_dir(case["examples"], scored["b"])
    write_comet(scored["b"], 0.5, "model:y")
    found = compare(case["examples"], scored["a"], scored["b"], samples=100)
    assert {row.metric for row in found if row.task == "st"} == {"bleu", "chrf", "ter"}
    assert "different COMETs: model:x and model:y" in capsys.readouterr().err


def test_damaged_comet_scores_are_an_error(case, scored):
    (scored["b"] / "score_st_en_de" / "scores.json").unlink()
    with pytest.raises(UserError, match="score_st_en_de: damaged scores; score this"):
        compare(case["examples"], scored["a"], scored["b"], samples=100)


def test_command_prints_a_table(case, capsys):
    folders = ["--a", str(case["a"]), "--b", str(case["b"])]
    main(["--examples", str(case["examples"]), *folders, "--samples", "100"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "| set | metric | system_a/greedy | system_b/greedy | difference | p "
        "| system_b/greedy better |"
    )
    assert lines[2].startswith("| asr en | WER | ")
    assert any(line.startswith("| asr_st en → de | chrF | ") for line in lines)
    assert "100 draws (seed 12345)" in lines[-1]


def test_missing_hypothesis_is_named(case, tmp_path):
    write(tmp_path / "text", {"u00-asr-en": "one"})
    with pytest.raises(UserError, match="u00-asr_st-de is missing"):
        compare(case["examples"], case["a"], tmp_path)
    with pytest.raises(UserError, match="samples 10"):
        compare(case["examples"], case["a"], case["b"], samples=10)


@pytest.mark.parametrize("samples", [-1, 99, 10**19])
def test_number_of_samples_is_limited(case, samples):
    with pytest.raises(UserError, match=f"samples {samples}: from 100 to 1000000"):
        compare(case["examples"], case["a"], case["b"], samples)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("foo en de", "no example has a task that is compared: asr, st, asr_st"),
        ("asr en de", r"u1: recognition \(asr\) from en into de"),
    ],
)
def test_tasks_that_cannot_be_compared_are_an_error(tmp_path, task, message):
    write(tmp_path / "examples" / "text", {"u1": "press one"})
    write(tmp_path / "examples" / "utt2task", {"u1": task})
    for name in ("a", "b"):
        write(tmp_path / name / "text", {"u1": "press two"})
    with pytest.raises(UserError, match=message):
        compare(tmp_path / "examples", tmp_path / "a", tmp_path / "b")
