"""Reports of small experiment folders, and training curves from TensorBoard files."""

from __future__ import annotations

import json
import struct

import pytest

from speechllm.bin.report import main
from speechllm.evaluation.report import (
    collect_results,
    normalizer_lines,
    results_table,
)
from speechllm.evaluation.training_curves import (
    draw_training_curves,
    epoch_curves,
    varying_statistics,
)
from speechllm.utils.errors import UserError

ASR = [
    {"metric": "wer", "value": 12.5, "reference_words": 40, "substitutions": 3,
     "deletions": 2, "insertions": 0},
    {"metric": "cer", "value": 5.0, "reference_characters": 200, "substitutions": 6,
     "deletions": 3, "insertions": 1},
]  # fmt: skip
ST = [{"metric": "bleu", "value": 31.4, "signature": "nrefs:1|tok:13a|version:2.6.0"}]


def write_scores(exp_root, system, rows, task, source, target, decode="decode_greedy"):
    """Write the ``scores.json`` of one group of the set ``test``."""
    folder = exp_root / system / decode / "test" / f"score_{task}_{source}_{target}"
    folder.mkdir(parents=True)
    place = {"task": task, "language": source, "target_language": target}
    scored = [row | place | {"utterances": 10} for row in rows]
    (folder / "scores.json").write_text(json.dumps(scored))


@pytest.fixture
def exp_root(tmp_path):
    root = tmp_path / "exp"
    write_scores(root, "joint", ASR, "asr", "en", "en")
    write_scores(root, "joint", ST, "st", "en", "fr")
    write_scores(root, "baseline", ASR, "asr", "en", "en")
    return root


def write_events(folder, epochs):
    """Log epochs as ESPnet's trainer does: single iterations, then epoch means.

    The losses of an epoch's three iterations are 9/epoch, 10/epoch and 11/epoch.
    """
    from espnet2.train.reporter import Reporter
    from torch.utils.tensorboard import SummaryWriter

    train = SummaryWriter(str(folder / "train"))
    valid = SummaryWriter(str(folder / "valid"))
    reporter = Reporter()
    for epoch in range(1, epochs[-1] + 1):
        reporter.set_epoch(epoch)
        with reporter.observe("train") as observed:
            for value in (9.0, 10.0, 11.0):
                observed.register({"loss": value / epoch})
                observed.next()
                if epoch in epochs:
                    observed.tensorboard_add_scalar(train, -1)
        with reporter.observe("valid") as observed:
            observed.register({"loss": 12.0 / epoch, "wer": 1.0 / epoch})
            observed.next()
        if epoch in epochs:
            reporter.tensorboard_add_scalar(train, key1="train")
            reporter.tensorboard_add_scalar(valid, key1="valid")
    train.close()
    valid.close()


def test_every_scored_set_is_found(exp_root):
    rows = collect_results(exp_root)
    names = [(row["task"], row["system"], row["metric"]) for row in rows]
    assert names == [
        ("asr", "baseline", "wer"), ("asr", "baseline", "cer"),
        ("asr", "joint", "wer"), ("asr", "joint", "cer"), ("st", "joint", "bleu"),
    ]  # fmt: skip
    last = rows[-1]
    assert last["set"] == "test" and last["decode"] == "decode_greedy"
    assert last["hypotheses_file"] == str(exp_root / "joint/decode_greedy/test/text")
    assert last["signature"].startswith("nrefs:1")


def test_table_of_a_task(exp_root):
    assert results_table(collect_results(exp_root), "asr").splitlines()[2] == (
        "| baseline/decode_greedy | test | en | 10 "
        "| 40 words | 3 | 2 | 0 | 12.50 | 5.00 |"
    )
    assert results_table(collect_results(exp_root), "st").splitlines() == [
        "| system | set | language | utterances | BLEU |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| joint/decode_greedy | test | en → fr | 10 | 31.40 |",
    ]


def test_report_files(exp_root, tmp_path, capsys):
    write_events(exp_root / "joint" / "tensorboard", [1, 2])
    output = tmp_path / "RESULTS"
    command = "./run.sh --stage 1 --stop_stage 13"
    main(["--exp_root", str(exp_root), "--output", str(output), "--command", command])
    rows = json.loads((tmp_path / "RESULTS.json").read_text())
    assert len(rows) == 5
    wanted = {"set", "task", "language", "target_language", "metric", "value",
              "utterances", "hypotheses_file", "system", "decode"}  # fmt: skip
    assert all(wanted <= row.keys() for row in rows)
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    for part in (
        "- python version: `3.", "- pytorch version: `2.", "- espnet version: `",
        "- speechllm git hash: `", "- machine: `", f"    {command}",
        "## Speech recognition (asr)", "## Speech translation (st)",
        "- BLEU (fr): `nrefs:1|tok:13a|version:2.6.0`",
        "![joint](exp/joint/training_curves.png)",
    ):  # fmt: skip
        assert part in text
    assert "baseline/training_curves" not in text
    assert "5 scores" in capsys.readouterr().out


def test_normalisers_are_listed_and_systems_named_where_they_differ(exp_root):
    rows = collect_results(exp_root)
    assert normalizer_lines(rows) == (
        "- en: `not recorded, scored with an earlier release`\n"
    )
    for row in rows:
        if row["metric"] in ("wer", "cer"):
            row["normalizer"] = "ours|1" if row["system"] == "joint" else "theirs|1"
    extra = {"language": "fr", "target_language": "fr", "normalizer": "ours|fr"}
    rows.append({**rows[0], **extra})
    assert normalizer_lines(rows).splitlines() == [
        "- en: `theirs|1` (baseline/decode_greedy)",
        "- en: `ours|1` (joint/decode_greedy)",
        "- fr: `ours|fr`",
    ]


def test_folder_without_scores_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no scores below it"):
        collect_results(tmp_path)


@pytest.mark.parametrize("content", ["{", "{}", "[1]", '[{"task": "asr"}]'])
def test_damaged_score_file_is_named(exp_root, content):
    path = next(exp_root.glob("joint/*/*/score_asr_*/scores.json"))
    path.write_text(content)
    with pytest.raises(UserError, match="score_asr_en_en.*score this set again"):
        collect_results(exp_root)


@pytest.mark.parametrize(
    "change",
    [
        {"value": "12.5"}, {"value": None}, {"value": float("nan")}, {"value": True},
        {"metric": ["wer"]}, {"task": 5}, {"language": None}, {"utterances": "10"},
        {"utterances": -1}, {"substitutions": "3"}, {"insertions": 0.5},
    ],
)  # fmt: skip
def test_scores_of_another_type_are_an_error(exp_root, change):
    write_scores(exp_root, "damaged", ASR, "asr", "en", "en")
    path = next(exp_root.glob("damaged/*/*/*/scores.json"))
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([rows[0] | change]))
    with pytest.raises(UserError, match="scores.json: not a list of scores"):
        collect_results(exp_root)


def test_deeply_nested_scores_are_an_error(exp_root):
    next(exp_root.glob("joint/*/*/*/scores.json")).write_text("[" * 100_000)
    with pytest.raises(UserError, match="scores.json: not a list of scores"):
        collect_results(exp_root)


@pytest.mark.parametrize("output", [".", "..", "", "folder/"])
def test_report_needs_a_name(exp_root, tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="give a name without suffix"):
        main(["--exp_root", str(exp_root), "--output", output])
    assert {path.name for path in tmp_path.iterdir()} == {"exp"}


def test_curves_contain_only_epoch_means(tmp_path):
    write_events(tmp_path, [1, 2, 3])
    curves = epoch_curves(tmp_path)
    assert curves["train"]["loss"] == pytest.approx({1: 10.0, 2: 5.0, 3: 10 / 3})
    assert curves["valid"]["loss"] == pytest.approx({1: 12.0, 2: 6.0, 3: 4.0})
    assert curves["valid"]["wer"] == pytest.approx({1: 1.0, 2: 0.5, 3: 1 / 3})
    assert "iter_epoch" not in curves["train"]


def test_curves_of_a_resumed_training_are_joined(tmp_path):
    write_events(tmp_path, [1, 2])
    write_events(tmp_path, [2, 3])
    assert list(epoch_curves(tmp_path)["valid"]["loss"]) == [1, 2, 3]


def test_files_of_curves_are_read_in_the_order_of_time(tmp_path):
    """Writers of one second number their files: 10 comes before 9."""
    for epoch, number in ((1, 9), (2, 10)):
        write_events(tmp_path, [epoch])
        for path in tmp_path.glob("*/events.*"):
            if not path.name.startswith("events.out.tfevents.0."):
                path.rename(path.with_name(f"events.out.tfevents.0.vm.1.{number}"))
    assert list(epoch_curves(tmp_path)["valid"]["loss"]) == [1, 2]


def test_training_curves_are_a_png_of_readable_size(tmp_path):
    write_events(tmp_path / "tensorboard", [1, 2, 3])
    picture = draw_training_curves(tmp_path)
    content = picture.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert width > 600 and height > 200
    assert picture == tmp_path / "training_curves.png"


def test_statistics_that_never_change_have_no_panel():
    curves = {
        "train": {"loss": {1: 2.0, 2: 2.0}, "loss_ctc": {1: 0.0, 2: 0.0}},
        "valid": {"loss": {1: 3.0}, "loss_ctc": {2: 0.0}, "acc": {1: 0.5, 2: 0.6}},
    }
    assert varying_statistics(curves) == ["loss", "acc"]
    assert varying_statistics({}) == []


def test_no_figure_without_a_training(tmp_path):
    (tmp_path / "tensorboard" / "train").mkdir(parents=True)
    assert draw_training_curves(tmp_path) is None
