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
from speechllm.inference.decode_dir import (
    Timing,
    pool_decode_dirs,
    read_hypotheses,
    write_hypotheses,
    write_tables,
)
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


@pytest.fixture
def clock(monkeypatch):
    """A clock of timing that stands still until ``clock[0]`` is increased."""
    now = [100.0]
    monkeypatch.setattr(decode_dir.time, "perf_counter", lambda: now[0])
    return now


def timed_decode(clock, pace=0.25, bad=None):
    """Return a function that takes ``pace`` seconds per second of its inputs."""

    def decode(names, inputs, on_finished):
        clock[0] += pace * sum(inputs)
        if bad in inputs:
            raise UserError("bad")
        return [{"text": name} for name in names]

    return decode


def test_times_are_summed_over_jobs_resumed_runs_and_devices(tmp_path, clock):
    """Loading models, reading audio and failed attempts are not timed."""
    durations = {f"u{i}": float(i + 1) for i in range(6)}  # seconds
    tasks = dict.fromkeys(durations, ENGLISH)

    def load(name):
        clock[0] += 50.0
        return durations[name]

    def run(shard, resumed, queues, device, **options):
        path = tmp_path / f"hypotheses.{shard}.jsonl"
        decode = timed_decode(clock, **options)
        timing = Timing(device, float)
        write_hypotheses(
            path, "key", resumed, queues, tasks, load, decode, timing=timing
        )
        write_tables(tmp_path, sorted(tasks), "key")

    run(1, False, [["u0", "u1"]], "slow", pace=0.5)  # 3 s of audio in 1.5 s
    assert not (tmp_path / "rtf.json").exists()
    run(1, True, [["u2", "u3"]], "fast", pace=0.1, bad=3.0)  # u3: 4 s in 0.4 s
    run(2, False, [["u4"], ["u5"]], "fast", pace=0.1)  # 11 s in 1.1 s
    timing = json.loads((tmp_path / "rtf.json").read_text())
    assert timing == {
        "examples": 5,
        "seconds": 3.0,
        "audio_seconds": 18.0,
        "devices": ["fast", "slow"],
    }
    # a re-run decodes u2, which failed, and its line replaces the empty one
    run(1, True, [["u2"]], "slow", pace=0.5)
    timing = json.loads((tmp_path / "rtf.json").read_text())
    assert (timing["examples"], timing["seconds"]) == (6, 4.5)
    assert timing["audio_seconds"] == sum(durations.values())


def test_decode_dirs_of_earlier_releases_have_no_times(tmp_path):
    lines = [{"settings": "key"}, {"id": "u0", "text": "a"}]
    path = tmp_path / "hypotheses.1.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_tables(tmp_path, ["u0"], "key")
    assert (tmp_path / "text").read_text() == "u0 a\n"
    assert not (tmp_path / "rtf.json").exists()


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


def test_decode_dirs_of_folds_are_pooled(tmp_path):
    """Texts, transcripts, flags and times; the hypotheses of stale shards are not."""
    for fold in (1, 2):
        folder = tmp_path / str(fold)
        folder.mkdir()
        entry = {
            "id": f"u{fold}", "text": f"text {fold}", "transcript": f"said {fold}",
            "flags": ["malformed"] if fold == 2 else [], "ctc_text": "sad",
            "audio_seconds": 2.0, "decoding_seconds": fold * 1.0, "device": "a CPU",
        }  # fmt: skip
        lines = [{"settings": f"key{fold}"}, entry]
        stale = [{"settings": "old"}, entry | {"text": "old"}]
        for shard, content in ((1, lines), (2, stale)):
            path = folder / f"hypotheses.{shard}.jsonl"
            path.write_text("".join(json.dumps(line) + "\n" for line in content))
        write_tables(folder, [f"u{fold}"], f"key{fold}")
    output = tmp_path / "pooled"
    sources = [tmp_path / "2", tmp_path / "1"]
    for _ in range(2):  # a re-run replaces it
        assert pool_decode_dirs(sources, output) == 2
    assert (output / "text").read_text() == "u1 text 1\nu2 text 2\n"
    assert (output / "text.transcript").read_text() == "u1 said 1\nu2 said 2\n"
    assert (output / "flags").read_text() == "u2 malformed\n"
    timing = json.loads((output / "rtf.json").read_text())
    assert (timing["seconds"], timing["audio_seconds"]) == (3.0, 4.0)
    with pytest.raises(UserError, match="1: u1 is also in another decode dir"):
        pool_decode_dirs([tmp_path / "1", tmp_path / "1"], output)
    (tmp_path / "1" / "text").write_text("u1 text 1\nu9 more\n")
    with pytest.raises(UserError, match=r"u9 is not in hypotheses.\*.jsonl; decode"):
        pool_decode_dirs(sources, output)
    (tmp_path / "1" / "hypotheses.1.jsonl").write_text("{")
    with pytest.raises(UserError, match="hypotheses.1.jsonl: damaged; decode this"):
        pool_decode_dirs(sources, output)
    (tmp_path / "1" / "text").unlink()
    with pytest.raises(UserError, match="1: no file text; finish the decoding first"):
        pool_decode_dirs(sources, output)
    assert (output / "text").read_text() == "u1 text 1\nu2 text 2\n"
