"""Comparison of the systems of a report with the final one."""

from __future__ import annotations

import json
import os

import pytest

from speechllm.bin.report import main
from speechllm.evaluation.report import collect_results, results_table
from speechllm.evaluation.score import score_decode_dir
from speechllm.evaluation.significance import compare
from speechllm.evaluation.system_comparison import compare_systems
from speechllm.utils.errors import UserError

REFERENCES = {
    **{f"u{n:02}-asr-en": "press one to enter your number" for n in range(12)},
    **{f"u{n:02}-st-fr": "appuyez sur un maintenant" for n in range(12)},
    **{f"u{n:02}-asr_st-de": "press one\tdrücken Sie eins jetzt" for n in range(12)},
}


def task(name: str) -> str:
    kind, target = name.split("-")[1:]
    return f"{kind} en {target}"


def write(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{key} {value}\n" for key, value in table.items()))


@pytest.fixture
def root(tmp_path):
    """Systems ``final`` (with a model), ``worse``, and ``other`` with fewer tasks."""
    write(tmp_path / "examples" / "text", REFERENCES)
    tasks = {name: task(name) for name in REFERENCES}
    write(tmp_path / "examples" / "utt2task", tasks)
    for system, wrong in (("final", 2), ("worse", 9)):
        folder = tmp_path / "exp" / system / "decode" / "test"
        outputs, transcripts = {}, {}
        for name, text in REFERENCES.items():
            *transcript, text = text.split("\t")
            bad = int(name[1:3]) < wrong
            outputs[name] = "nothing of this" if bad else text
            if transcript:
                transcripts[name] = "press two" if bad else transcript[0]
        write(folder / "text", outputs)
        write(folder / "text.transcript", transcripts)
        score_decode_dir(tmp_path / "examples", folder)
    (tmp_path / "exp" / "final" / "model").mkdir()
    (tmp_path / "exp" / "final" / "model" / "config.yaml").touch()
    return tmp_path


def by_metric(rows, system):
    return {
        (row["task"], row["metric"]): row for row in rows if row["system"] == system
    }


def test_p_values_are_those_of_the_compare_command(root):
    rows = collect_results(root / "exp")
    assert compare_systems(rows, root / "exp", root / "exp" / "final" / "decode") == []
    found = by_metric(rows, "worse")
    folders = [root / "exp" / name / "decode" / "test" for name in ("final", "worse")]
    compared = 0
    for row in compare(root / "examples", *folders):
        if row.metric == "ter":
            continue
        compared += 1
        ours = found[row.task, row.metric]
        assert ours["difference"] == pytest.approx(row.b - row.a, abs=0.01)
        assert ours["p_value"] == pytest.approx(row.p, abs=1e-4)
        assert ours["compared_with"] == "final/decode"
    assert compared == 2 + 2 + 4
    assert found["asr", "wer"]["difference"] == 58.33  # 7 of 12 sentences, all words
    assert found["asr", "wer"]["p_value"] < 0.01
    assert all("p_value" not in row for row in by_metric(rows, "final").values())
    assert "p_value" not in found["asr", "wer_raw"]


def test_intervals_of_scores_are_those_of_the_compare_command(root):
    rows = by_metric(collect_results(root / "exp"), "worse")
    folders = [root / "exp" / name / "decode" / "test" for name in ("final", "worse")]
    for row in compare(root / "examples", *folders):
        assert rows[row.task, row.metric]["interval"] == round(row.b_interval, 2)
        assert rows[row.task, row.metric]["value"] == round(row.b, 2)


def test_report_shows_intervals_sizes_and_comparison(root):
    main(["--exp_root", str(root / "exp"), "--output", str(root / "RESULTS")])
    text = (root / "RESULTS.md").read_text()
    assert "## Comparison with final/decode" in text  # the one with a model
    start = "| worse/decode | test asr en | +58.3 (p 0.001) |"
    assert any(line.startswith(start) for line in text.splitlines())
    table = results_table(collect_results(root / "exp"), "asr").splitlines()
    cells = [cell.strip() for cell in table[2].split("|")]
    assert cells[4:9] == ["12", "72 words", "6", "6", "0"]  # of final
    assert cells[9].startswith("16.7 ± ")
    assert "bootstrap over the utterances, 1000 samples, seed 12345" in text
    assert "test en (72 words)" in text and "test en → fr (12 sentences)" in text
    rows = json.loads((root / "RESULTS.json").read_text())
    assert {row.get("compared_with") for row in rows} == {None, "final/decode"}


def test_other_references_are_named_and_not_compared(root):
    """Two words of one reference; all else can be compared."""
    path = root / "exp" / "worse" / "decode" / "test" / "score_asr_en" / "scores.tsv"
    path.write_text(path.read_text().replace("enter your", "enter you're", 1))
    rows = collect_results(root / "exp")
    (note,) = compare_systems(rows, root / "exp")
    assert note.startswith("worse/decode, test asr en: other references")
    found = by_metric(rows, "worse")
    assert "p_value" not in found["asr", "wer"] and "p_value" in found["st", "bleu"]
    path.write_text(path.read_text().replace("u00-", "x00-", 1))
    (note,) = compare_systems(rows, root / "exp")
    assert note == "worse/decode, test asr en: other examples"
    path.unlink()
    (note,) = compare_systems(rows, root / "exp")
    assert note == "worse/decode, test asr en: no scores.tsv"


def test_comet_of_different_models_is_not_compared(root):
    for system, version in (("final", "1"), ("worse", "2")):
        path = root / "exp" / system / "decode" / "test" / "score_st_en_fr/scores.tsv"
        header, *lines = path.read_text().splitlines()
        columns = [f"comet\t{header}", *(f"{70 + n}\t{x}" for n, x in enumerate(lines))]
        path.write_text("".join(f"{line}\n" for line in columns))
        path = path.with_name("scores.json")
        rows = json.loads(path.read_text())
        comet = rows[0] | {"metric": "comet", "signature": f"version:{version}"}
        path.write_text(json.dumps([*rows, comet]))
    rows = collect_results(root / "exp")
    (note,) = compare_systems(rows, root / "exp")
    assert note == (
        "worse/decode, test st en → fr: different COMETs: version:1 and version:2"
    )
    found = by_metric(rows, "worse")
    assert "p_value" not in found["st", "comet"] and "p_value" in found["st", "bleu"]
    path.write_text(path.read_text().replace("version:2", "version:1"))
    rows = collect_results(root / "exp")
    assert compare_systems(rows, root / "exp") == []
    assert by_metric(rows, "worse")["st", "comet"]["p_value"] == 1.0


def test_the_model_exported_last_is_the_reference(root):
    config = root / "exp" / "worse" / "model" / "config.yaml"
    config.parent.mkdir()
    config.touch()
    os.utime(config, (2e9, 2e9))
    rows = collect_results(root / "exp")
    compare_systems(rows, root / "exp")
    assert by_metric(rows, "final")["asr", "wer"]["compared_with"] == "worse/decode"
    for path in (root / "exp").glob("*/model/config.yaml"):
        path.unlink()
    rows = collect_results(root / "exp")
    assert compare_systems(rows, root / "exp") == []
    assert not any("p_value" in row for row in rows)


def test_unknown_reference_and_damaged_table_are_errors(root):
    rows = collect_results(root / "exp")
    with pytest.raises(UserError, match="--compare_with exp/none/decode: no scores"):
        compare_systems(rows, root / "exp", "exp/none/decode")
    path = root / "exp" / "worse" / "decode" / "test" / "score_asr_en" / "scores.tsv"
    path.write_text("id\treference\n")
    path.write_text("id\treference\nu1\n")
    with pytest.raises(UserError, match="scores.tsv: not a table of scores; score"):
        compare_systems(rows, root / "exp")


def test_a_broken_interval_is_a_damaged_score_file(root):
    path = next((root / "exp").glob("worse/*/*/score_asr_en/scores.json"))
    rows = json.loads(path.read_text())
    for interval in ("6.2", -1, float("nan"), None):
        path.write_text(json.dumps([rows[0] | {"interval": interval}]))
        with pytest.raises(UserError, match="scores.json: not a list of scores"):
            collect_results(root / "exp")


def test_ctc_transcripts_are_scored(root):
    """CTC reads one word of six wrong in three utterances of twelve."""
    folder = root / "exp" / "final" / "decode" / "test"
    lines = [{"settings": "a"}]
    for name in REFERENCES:
        text = "press one to enter your number"
        if int(name[1:3]) < 3:
            text = text.replace("press", "dress")
        lines.append({"id": name, "text": "", "ctc_text": text})
    stale = [{"settings": "b"}, {"id": "u00-asr-en", "text": "", "ctc_text": "x"}]
    for shard, content in ((1, lines), (2, stale)):
        path = folder / f"hypotheses.{shard}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in content))
    rows, _ = score_decode_dir(root / "examples", folder)
    found = {(row["task"], row["metric"]): row for row in rows}
    assert found["asr", "wer_ctc"]["value"] == round(100 * 3 / 72, 2)
    assert found["asr", "cer_ctc"]["reference_characters"] == 12 * 30
    assert found["asr", "wer_ctc"]["normalizer"] == found["asr", "wer"]["normalizer"]
    assert ("st", "wer_ctc") not in found
    (folder / "hypotheses.1.jsonl").write_text("".join(
        json.dumps(line) + "\n" for line in lines[:5]))  # fmt: skip
    rows, _ = score_decode_dir(root / "examples", folder)
    assert not any(row["metric"] == "wer_ctc" for row in rows)
