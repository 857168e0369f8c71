"""Decode dirs: the lines of examples that fail, and the progress of a queue."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from speechllm import SpeechToText
from speechllm.decoding.options import SearchOptions, search_options
from speechllm.inference import decode_dir
from speechllm.inference.decode_dir import read_hypotheses, write_hypotheses
from speechllm.inference.decode_examples import settings_key
from speechllm.text.tasks import Task
from speechllm.utils.errors import UserError

ENGLISH = Task("asr", "en", "en")


@pytest.fixture
def lines(monkeypatch, capsys):
    """Every progress line that was printed, as (done, total)."""
    monkeypatch.setattr(decode_dir, "PROGRESS_SECONDS", 0.0)

    def found() -> list[tuple[int, int]]:
        pattern = r"progress: (\d+)/(\d+) utterances, about \d+ min left"
        return [
            tuple(map(int, p)) for p in re.findall(pattern, capsys.readouterr().out)
        ]

    return found


def test_progress_advances_with_every_finished_utterance(tmp_path, lines):
    tasks = {f"u{i}": ENGLISH for i in range(5)}
    seen = []

    def decode(names, inputs, on_finished):
        for index, _ in enumerate(names):
            on_finished(index)
            seen.append(lines())
        return [{"text": text} for text in inputs]

    path = tmp_path / "hypotheses.1.jsonl"
    queues = [["u0", "u1", "u2"], ["u3", "u4"]]
    write_hypotheses(path, "key", False, queues, tasks, str.upper, decode)
    assert [found[-1] for found in seen] == [(n, 5) for n in range(1, 6)]
    assert lines()[-1] == (5, 5)
    assert read_hypotheses(path, "key")["u3"]["text"] == "U3"


def test_utterances_that_are_not_reported_are_counted_with_their_queue(tmp_path, lines):
    """A system that decodes a batch as a whole, and a file that cannot be read."""

    def load(name):
        if name == "u1":
            raise UserError("u1.wav: not audio")
        return name

    tasks = {f"u{i}": ENGLISH for i in range(4)}
    path = tmp_path / "hypotheses.1.jsonl"
    write_hypotheses(
        path,
        "key",
        False,
        [["u0", "u1"], ["u2", "u3"]],
        tasks,
        load,
        lambda names, inputs, on_finished: [{"text": name} for name in names],
    )
    assert lines() == [(2, 4), (4, 4)]
    assert (tmp_path / "failed.1.tsv").read_text() == "u1\tu1.wav: not audio\n"
    head, *written = map(json.loads, path.read_text().splitlines())
    assert head == {"settings": "key"}
    assert {line["id"]: line.get("failed", False) for line in written} == {
        "u0": False, "u1": True, "u2": False, "u3": False,
    }  # fmt: skip


def test_search_reports_each_utterance_once(tiny_model):
    """With a batch of two, the short outputs are reported before the long one."""
    model = SpeechToText.from_pretrained(tiny_model)
    generator = np.random.default_rng(0)
    waves = [
        0.1 * generator.standard_normal(size).astype(np.float32)
        for size in (32000, 4000, 6000, 8000)
    ]
    finished: list[int] = []
    options = SearchOptions(tokens_per_second=8.0, extra_tokens=1.0, min_tokens=99)
    results = model.decode(waves, [ENGLISH] * 4, options, 2, finished.append)
    assert sorted(finished) == [0, 1, 2, 3]
    assert finished[-1] == 0
    lengths = [len(result.tokens) for result in results]
    assert lengths == [options.max_tokens(len(wave) / 16000) for wave in waves]


def test_old_option_names_give_the_same_settings(tiny_model):
    """Decode dirs of earlier releases are resumed with the options' new names."""
    tasks = {"a": ENGLISH}
    keys = {
        settings_key(tiny_model, {name: 40}, "float32", {"a": "a.wav"}, tasks)
        for name in ("candidates", "pre_beam_size")
    }
    assert len(keys) == 1
    assert search_options({"candidates": 7}) == search_options({"pre_beam_size": 7})


class Bug(Exception):
    """Not an error of the user."""


def fail_at(bad, error):
    """Return a function that decodes a queue, unless it holds the input ``bad``."""

    def decode(names, inputs, on_finished):
        if bad in inputs:
            raise error
        return [{"text": text} for text in inputs]

    return decode


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Bug("a\nb"), "unexpected Bug: a b (--debug shows where)"),
        (UserError("c"), "c"),
    ],
)
def test_an_example_that_cannot_be_decoded_is_listed(tmp_path, error, reason):
    tasks = dict.fromkeys(("u0", "u1", "u2", "u3"), ENGLISH)
    path = tmp_path / "hypotheses.1.jsonl"
    queues = [["u0", "u1", "u2"], ["u3"]]
    arguments = (path, "key", False, queues, tasks, str, fail_at("u1", error))
    write_hypotheses(*arguments)
    assert (tmp_path / "failed.1.tsv").read_text() == f"u1\t{reason}\n"
    found = read_hypotheses(path, "key")
    assert {name: line["text"] for name, line in found.items()} == {
        "u0": "u0", "u1": "", "u2": "u2", "u3": "u3",
    }  # fmt: skip
    if isinstance(error, Bug):
        with pytest.raises(Bug):
            write_hypotheses(*arguments, debug=True)


def test_an_unexpected_error_of_reading_is_listed(tmp_path):
    def load(name):
        if name == "u1":
            raise Bug("a\nb")
        return name

    tasks = dict.fromkeys(("u0", "u1"), ENGLISH)
    decode = fail_at("", None)
    path = tmp_path / "hypotheses.1.jsonl"
    write_hypotheses(path, "key", False, [["u0", "u1"]], tasks, load, decode)
    expected = "u1\tunexpected Bug: a b (--debug shows where)\n"
    assert (tmp_path / "failed.1.tsv").read_text() == expected


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA")])
def test_full_memory_is_not_blamed_on_examples(tmp_path, error):
    path = tmp_path / "hypotheses.1.jsonl"
    tasks = dict.fromkeys(("u0", "u1"), ENGLISH)
    with pytest.raises(type(error)):
        write_hypotheses(
            path, "key", False, [["u0", "u1"]], tasks, str, fail_at("u0", error)
        )
    assert not (tmp_path / "failed.1.tsv").exists()
