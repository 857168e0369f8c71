"""The papers' tables: complete, sourced, and with our figures where there are any."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from speechllm.evaluation import paper_tables
from speechllm.evaluation.paper_tables import (
    read_results,
    read_tables,
    recipe_markdown,
    table_markdown,
)
from speechllm.utils.errors import UserError

ROOT = Path(__file__).parents[2]
RECIPES = ("csj", "must_c", "reazonspeech")


def conf(recipe: str) -> Path:
    return ROOT / "egs2" / recipe / "speechllm1" / "conf"


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_config_of_a_recipe_is_a_row(recipe):
    rows = [r for t in read_tables() if t["recipe"] == recipe for r in t["rows"]]
    named = " ".join(row["command"] for row in rows)
    for path in conf(recipe).glob("*_*.yaml"):
        if path.name != "train_nue_asr.yaml" and path.stem.startswith("train_"):
            assert f"conf/{path.name}" in named, path.name
        if path.stem.startswith("decode_"):
            assert f"conf/{path.name}" in named, path.name


def test_every_command_names_files_that_are_there():
    for table in read_tables():
        folder = ROOT / "egs2" / table["recipe"] / "speechllm1"
        for row in table["rows"]:
            first, *rest = row["command"].split()
            if first != "python":
                assert (folder / first).exists(), row["command"]
            for word in rest:
                if word.startswith("conf/"):
                    assert (folder / word).exists(), row["command"]


def test_the_names_in_the_results_are_those_that_the_template_gives():
    """Stage 12 of a training config writes exp/speechllm_<config><suffix>/…"""
    script = (ROOT / "egs2/TEMPLATE/speechllm1/speechllm.sh").read_text()
    assert "train_exp=${expdir}/speechllm_${train_tag}${suffix}" in script
    assert "decode_dir=${final_exp}/${decode_name}" in script
    found = {(t["recipe"], r["system"], r["decode"]) for t in read_tables()
             for r in t["rows"]}  # fmt: skip
    assert {
        ("csj", "speechllm_train_ctc_removal", "decode_greedy"),
        ("csj", "speechllm_train_nue_asr", "decode_beam"),
        ("must_c", "speechllm_train_whisper_gemma2_9b_en_de", "decode"),
        ("must_c", "whisper-large-v3_nllb-200-3_3B", "decode_beam5"),
        ("reazonspeech", "whisper-large-v3", "decode_beam5"),
    } <= found


def test_must_c_has_its_table_in_the_readme():
    readme = (ROOT / "egs2/must_c/speechllm1/README.md").read_text("utf-8")
    (table,) = [t for t in read_tables() if t["recipe"] == "must_c"]
    assert table_markdown(table, {}) in readme


# ---------------------------------------------------------------- our figures

TABLE = {
    "recipe": "corpus",
    "title": "A table",
    "paper": "Somebody 2020",
    "task": "asr_st",
    "language": "en",
    "target_language": "de",
    "decode": "decode",
    "suffix": "_en_de",
    "columns": [
        {"name": "WER", "set": "test", "metric": "wer"},
        {"name": "BLEU", "set": "test", "metric": "bleu"},
    ],
    "rows": [
        {
            "row": "theirs and ours",
            "train": "train_a",
            "command": "./run.sh | tee log",
            "paper": [10.0, None],
            "source": "Table 1",
        },
        {"row": "a baseline", "system": "x", "decode": "beam5", "command": "b.sh"},
    ],
}
RESULTS = [
    {"system": "speechllm_train_a_en_de", "decode": "decode", "set": "test",
     "task": "asr_st", "language": "en", "target_language": "de", "metric": metric,
     "value": value}
    for metric, value in (("wer", 8.5), ("bleu", 31.25))
]  # fmt: skip


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A recipe, its results, and a tables file; returns a way to change the table."""
    folder = tmp_path / "egs2" / "corpus" / "speechllm1"
    for name in ("train_a", "decode"):
        (folder / "conf").mkdir(parents=True, exist_ok=True)
        (folder / "conf" / f"{name}.yaml").write_text("")
    (folder / "exp").mkdir()
    (folder / "exp" / "RESULTS.json").write_text(json.dumps(RESULTS))

    def write(**changes) -> list[dict]:
        path = tmp_path / "tables.yaml"
        path.write_text(yaml.safe_dump({"tables": [TABLE | changes]}))
        return read_tables(path, tmp_path / "egs2")

    monkeypatch.setattr(paper_tables, "RECIPES", tmp_path / "egs2")
    return write


def test_our_figure_stands_beside_the_paper_s_with_the_difference(corpus, monkeypatch):
    tables = corpus()
    monkeypatch.setattr(paper_tables, "read_tables", lambda: tables)
    lines = recipe_markdown("corpus").splitlines()
    assert lines[:3] == ["### A table", "", "Somebody 2020."]
    assert lines[4].startswith("| row | config | command | paper: WER / BLEU | ours |")
    assert lines[6] == (
        "| theirs and ours | `train_a.yaml` | `./run.sh \\| tee log` | 10 / – "
        "| 8.50 / 31.25 | -1.50 / – |"
    )
    assert lines[7] == "| a baseline |  | `b.sh` | not published here | not run |  |"
    assert "- theirs and ours: the paper's figures from Table 1." in lines


def test_a_run_of_another_set_is_not_taken(corpus, tmp_path):
    path = tmp_path / "RESULTS.json"
    path.write_text(json.dumps([row | {"set": "dev"} for row in RESULTS]))
    (table,) = corpus()
    assert "| 10 / – | not run |" in table_markdown(table, read_results(path))


def test_figures_by_others_are_told_apart(corpus):
    row = TABLE["rows"][1] | {"elsewhere": [1.5, 2], "source": "a page"}
    (table,) = corpus(rows=[row])
    text = table_markdown(table, {})
    assert "| not published here | not run |" in text
    assert (
        "By others, whose normalisation may differ: a baseline 1.5 / 2 (a page)."
        in (text)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": "train_b"}, "no config .*train_b.yaml"),
        ({"paper": [1.0], "source": "x"}, "paper has not a figure for each column"),
        ({"source": None}, "figures without a source"),
        ({"papper": [1, 2]}, "unknown key 'papper'"),
    ],
)
def test_a_wrong_row_is_named(corpus, change, message):
    with pytest.raises(UserError, match=f"'theirs and ours': {message}"):
        corpus(rows=[TABLE["rows"][0] | change])


def test_bad_results_are_named(tmp_path):
    (tmp_path / "RESULTS.json").write_text('[{"system": "x"}]')
    with pytest.raises(UserError, match=r"not a RESULTS.json; run stage 13"):
        read_results(tmp_path / "RESULTS.json")
    with pytest.raises(UserError, match="no such file; run stage 13 first"):
        recipe_markdown("must_c", tmp_path / "none.json")
    with pytest.raises(UserError, match="there are csj, must_c, reazonspeech"):
        recipe_markdown("librispeech")


def test_the_command_prints_markdown(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "paper_tables.py"), "csj"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert done.stdout.startswith("### Domain adaptation by LoRA: CER\n")
    assert "figure not known" not in done.stdout
