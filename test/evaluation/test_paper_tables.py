"""Result tables: complete, with sources, and the same as in the recipes' READMEs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from speechllm.evaluation import paper_tables
from speechllm.evaluation.paper_tables import (
    find_results,
    read_results,
    read_tables,
    readmes,
    recipe_markdown,
    table_markdown,
    update_readmes,
    updated_readme,
)
from speechllm.utils.errors import UserError

ROOT = Path(__file__).parents[2]
RECIPES = (
    "common_voice", "covost2", "csj", "europarl_st", "fillets", "fleurs", "jsut",
    "librispeech",
    "mini_asterisk", "must_c", "reazonspeech",
)  # fmt: skip


def conf(recipe: str) -> Path:
    return ROOT / "egs2" / recipe / "speechllm1" / "conf"


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_config_of_a_recipe_is_a_row(recipe):
    rows = [r for t in read_tables() if t["recipe"] == recipe for r in t["rows"]]
    named = " ".join(row["command"] or "" for row in rows)
    named += "".join(f" conf/{row['decode']}.yaml" for row in rows)
    systems = [row["system"].removeprefix("speechllm_") for row in rows]
    named += "".join(f" conf/{system}.yaml" for system in systems)
    for path in conf(recipe).glob("*_*.yaml"):
        if path.name != "train_nue_asr.yaml" and path.stem.startswith("train_"):
            assert f"conf/{path.name}" in named, path.name
        if path.name != "decode_greedy.yaml" and path.stem.startswith("decode_"):
            assert f"conf/{path.name}" in named, path.name


def test_every_command_names_existing_files():
    for table in read_tables():
        folder = ROOT / "egs2" / table["recipe"] / "speechllm1"
        for row in table["rows"]:
            if row["command"] is None:
                continue
            first, *rest = row["command"].split()
            if first != "python":
                assert (folder / first).exists(), row["command"]
            for word in rest:
                if word.startswith("conf/"):
                    assert (folder / word).exists(), row["command"]


def test_names_in_the_results_match_the_template():
    """Stage 12 of a training config writes exp/speechllm_<config><suffix>/<decode>."""
    script = (ROOT / "egs2/TEMPLATE/speechllm1/speechllm.sh").read_text()
    assert 'train_suffix=$(models_tag "${train_config}")${suffix}' in script
    assert "${expdir}/speechllm_${train_tag}${train_suffix}" in script
    found = {(t["recipe"], r["system"], r["decode"]) for t in read_tables()
             for r in t["rows"]}  # fmt: skip
    assert {
        ("csj", "speechllm_train_ctc_removal", "decode_greedy"),
        ("csj", "speechllm_train_nue_asr", "decode_beam"),
        ("jsut", "speechllm_speechllm_train_nue_asr", "decode_greedy"),
        ("must_c", "speechllm_train_whisper_gemma2_9b_en_de", "decode"),
        ("must_c", "whisper-large-v3_nllb-200-3_3B", "decode_beam5"),
        ("reazonspeech", "whisper-large-v3", "decode_beam5"),
    } <= found


@pytest.mark.parametrize("recipe", RECIPES)
def test_readme_contains_the_printed_tables(recipe):
    """Our figures of a README are in the YAML file, so no exp folder is needed here."""
    paths = readmes(recipe)
    assert f"<!-- paper_tables.py {recipe}" in paths[0].read_text("utf-8")
    for path in paths:
        assert updated_readme(path, recipe, {}) == path.read_text("utf-8"), (
            f"run tools/paper_tables.py {recipe} --update"
        )


def test_every_recipe_with_a_table_is_tested():
    assert {table["recipe"] for table in read_tables()} == set(RECIPES)


# Our figures

TABLE = {
    "recipe": "corpus",
    "title": "A table",
    "paper": "Somebody 2020",
    "not_run": "the corpus is not at hand",
    "task": "asr_st",
    "language": "en",
    "target_language": "de",
    "decode": "decode",
    "suffix": "_en_de",
    "columns": [
        {"name": "test", "set": "test", "metric": "wer"},
        {"name": "test", "set": "test", "metric": "bleu"},
    ],
    "rows": [
        {
            "row": "theirs and ours",
            "train": "train_a",
            "command": "./run.sh | tee log",
            "figures": {"paper, Table 1": [10.0, None]},
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
    """A recipe with results; returns a function that reads its changed tables."""
    folder = tmp_path / "egs2" / "corpus" / "speechllm1"
    for name in ("train_a", "decode"):
        (folder / "conf").mkdir(parents=True, exist_ok=True)
        (folder / "conf" / f"{name}.yaml").write_text("")
    (folder / "exp").mkdir()
    (folder / "exp" / "RESULTS.json").write_text(json.dumps(RESULTS))

    def write(**changes) -> list[dict]:
        path = tmp_path / "tables.yaml"
        sources = {"page": "a page"}
        content = {"sources": sources, "tables": [TABLE | changes]}
        path.write_text(yaml.safe_dump(content))
        return read_tables(path, tmp_path / "egs2")

    monkeypatch.setattr(paper_tables, "RECIPES", tmp_path / "egs2")
    return write


def test_our_figure_follows_the_papers_with_the_difference(corpus, monkeypatch):
    tables = corpus()
    monkeypatch.setattr(paper_tables, "read_tables", lambda: tables)
    lines = recipe_markdown("corpus", find_results("corpus")).splitlines()
    assert lines == [
        "### A table",
        "",
        "Paper: Somebody 2020. In parentheses: our figure minus the paper's.",
        "",
        "| system | source | test WER | test BLEU |",
        "| --- | --- | ---: | ---: |",
        "| theirs and ours (`train_a.yaml`) | paper, Table 1 | 10.0 | unknown to us |",
        "| theirs and ours (`train_a.yaml`) | ours | 8.5 (-1.5) | 31.2 |",
        "| a baseline | paper | unknown to us | unknown to us |",
        "",
        "```sh",
        "./run.sh | tee log",
        "b.sh",
        "```",
    ]


def test_real_time_factors_have_three_digits(corpus, tmp_path):
    columns = [{"name": "test", "set": "test", "metric": "rtf"}]
    row = TABLE["rows"][0] | {"figures": {"paper": [0.5]}}
    (table,) = corpus(columns=columns, rows=[row])
    path = tmp_path / "RESULTS.json"
    path.write_text(json.dumps([RESULTS[0] | {"metric": "rtf", "value": 0.08765}]))
    text = table_markdown(table, read_results(path))
    assert "| system | source | test RTF |" in text
    assert "| ours | 0.0877 (-0.412) |" in text


def test_intervals_follow_our_figures(corpus, tmp_path):
    """From RESULTS.json, or from the YAML file as [figure, interval]."""
    path = tmp_path / "RESULTS.json"
    path.write_text(json.dumps([RESULTS[0] | {"interval": 1.26}, RESULTS[1]]))
    (table,) = corpus()
    text = table_markdown(table, read_results(path))
    assert "| ours | 8.5 ± 1.3 (-1.5) | 31.2 |" in text
    assert "±: half the width of the 95 % interval (bootstrap)." in text
    (table,) = corpus(rows=[TABLE["rows"][0] | {"ours": [[9, 2.5], None]}])
    assert "| ours | 9.0 ± 2.5 (-1.0) | – |" in table_markdown(table, {})
    assert "| ours | 8.5 ± 1.3 (-1.5) | 31.2 |" in table_markdown(
        table, read_results(path)
    )
    with pytest.raises(UserError, match=r"a value, or \[value, interval\]"):
        corpus(rows=[TABLE["rows"][0] | {"ours": [[9, 2, 1], None]}])


def test_decode_dirs_with_the_old_prefix_are_found(corpus, tmp_path):
    path = tmp_path / "RESULTS.json"
    rows = [row | {"decode": "decode_decode"} for row in RESULTS]
    path.write_text(json.dumps(rows))
    (table,) = corpus()
    assert "| ours | 8.5 (-1.5) | 31.2 |" in table_markdown(table, read_results(path))
    rows += [row | {"value": 1} for row in RESULTS]
    path.write_text(json.dumps(rows))
    assert "| ours | 1.0 " in table_markdown(table, read_results(path))


def test_results_of_another_set_are_not_used(corpus, tmp_path):
    path = tmp_path / "RESULTS.json"
    path.write_text(json.dumps([row | {"set": "dev"} for row in RESULTS]))
    (table,) = corpus()
    text = table_markdown(table, read_results(path))
    assert "Not run by us: the corpus is not at hand." in text
    assert "| ours |" not in text


def test_rows_of_our_own_are_marked_where_they_are_not_run(corpus):
    rows = [row | {"in_paper": False, "figures": {}} for row in TABLE["rows"]]
    (table,) = corpus(rows=rows)
    text = table_markdown(table, {})
    assert "Not run by us: the corpus is not at hand." in text
    assert "| a baseline | ours | – | – |" in text
    rows[0]["ours"] = [9, None]
    (table,) = corpus(rows=rows)
    text = table_markdown(table, {})
    assert "Paper: Somebody 2020. –: not run by us." in text
    assert "| theirs and ours (`train_a.yaml`) | ours | 9.0 | – |" in text
    (table,) = corpus(rows=rows, paper=None)
    assert "Paper" not in table_markdown(table, {})


def test_figures_of_other_sources_have_lines_of_their_own(corpus):
    row = {"row": "a baseline", "figures": {"page": [1.5, 2]}}
    (table,) = corpus(rows=[row])
    text = table_markdown(table, {})
    assert "| a baseline | a page | 1.5 | 2 |" in text
    assert "unknown to us" not in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": "train_b"}, "no config .*train_b.yaml"),
        ({"figures": {"paper": [1.0]}}, "paper does not have a figure for each column"),
        ({"ours": [1.0]}, "ours does not have a figure for each column"),
        ({"figures": {None: [1.0, 2.0]}}, "figures without a source"),
        ({"figures": {"book": [1.0, 2.0]}}, "figures without a source: 'book'"),
        ({"command": None, "figures": {}}, "neither a command nor figures"),
        ({"papper": [1, 2]}, "unknown key 'papper'"),
    ],
)
def test_wrong_rows_are_named(corpus, change, message):
    with pytest.raises(UserError, match=f"'theirs and ours': {message}"):
        corpus(rows=[TABLE["rows"][0] | change])


def test_bad_results_are_named(tmp_path):
    (tmp_path / "RESULTS.json").write_text('[{"system": "x"}]')
    with pytest.raises(UserError, match=r"not a RESULTS.json; run stage 13"):
        read_results(tmp_path / "RESULTS.json")
    with pytest.raises(UserError, match="no such file; run stage 13 first"):
        find_results("must_c", tmp_path / "none.json")
    with pytest.raises(UserError, match="there are common_voice, covost2, csj, eu"):
        recipe_markdown("tedlium", {})


# READMEs and the command


def test_readmes_are_updated_between_their_markers(corpus, tmp_path, monkeypatch):
    tables = corpus() + corpus(title="Another")
    monkeypatch.setattr(paper_tables, "read_tables", lambda: tables)
    monkeypatch.setattr(paper_tables, "TOP_README", tmp_path / "README.md")
    own, top = readmes("corpus")
    own.write_text("Before.\n")
    top.write_text("Nothing.\n")
    with pytest.raises(
        UserError, match=r"README.md: no place .*paper_tables.py corpus"
    ):
        update_readmes("corpus", {})
    marked = "Before.\n<!-- paper_tables.py corpus{} -->\n{}<!-- end -->\nAfter.\n"
    own.write_text(marked.format("", "old\n"))
    top.write_text(marked.format(": Another", "old\n"))
    assert update_readmes("corpus", {}) == [own, top]
    assert own.read_text() == marked.format("", recipe_markdown("corpus", {}))
    (_, table) = tables
    assert top.read_text() == marked.format(
        ": Another", table_markdown(table, {}, heading=False)
    )
    top.write_text(marked.format(": None", "old\n"))
    with pytest.raises(UserError, match="no table 'None' of corpus; there are 'A tab"):
        update_readmes("corpus", {})


def test_columns_and_rows_may_have_their_own_task(corpus, tmp_path):
    columns = [
        {"name": "en", "set": "test", "metric": "wer", "task": "asr",
         "language": "en", "target_language": "en"},
        {"name": "de", "set": "test", "metric": "bleu"},
    ]  # fmt: skip
    first, second = TABLE["rows"]
    (table,) = corpus(columns=columns, rows=[first, second | {"task": "st"}])
    names = ("system", "decode", "set", "task", "language", "target_language", "metric")
    ours, theirs = "speechllm_train_a_en_de", "x"
    rows = [
        (ours, "decode", "test", "asr", "en", "en", "wer", 7.0),
        (ours, "decode", "test", "asr_st", "en", "de", "bleu", 30.0),
        (theirs, "beam5", "test", "st", "en", "de", "bleu", 20.0),
    ]
    path = tmp_path / "RESULTS.json"
    path.write_text(json.dumps([dict(zip((*names, "value"), row)) for row in rows]))
    text = table_markdown(table, read_results(path))
    assert "| ours | 7.0 (-3.0) | 30.0 |" in text
    assert "| a baseline | ours | – | 20.0 |" in text


def test_results_columns_of_the_recipe_tables_match_the_yaml():
    """Figures in the recipes' overviews are those of the tables."""
    ours = {
        row["row"]: row["ours"]
        for table in read_tables()
        if table["recipe"] == "mini_asterisk"
        for row in table["rows"]
        if table["title"] == "English and French"
    }["joint search, first pass by fine-tuned Whisper"]
    english, _, french, _, bleu, _ = (f"{figure:.1f}" for figure in ours)
    expected = f"WER {english} % en, {french} % fr; BLEU {bleu}"
    for path in (ROOT / "README.md", ROOT / "egs2" / "README.md"):
        assert expected in path.read_text("utf-8"), path


def test_command_prints_markdown(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "paper_tables.py"), "csj"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert done.stdout.startswith("### Domain adaptation by LoRA\n")
    assert "not published here" not in done.stdout
