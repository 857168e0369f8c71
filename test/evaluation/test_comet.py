"""COMET in a separate environment: requests, results and errors.

The environment is a real one; its ``comet`` is a stand-in with the functions of
``unbabel-comet`` 2.2.7 whose score is the share of the reference's words in the
translation.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import speechllm
from speechllm.bin.score import main
from speechllm.evaluation import comet
from speechllm.evaluation.comet import comet_model, comet_python, comet_scores
from speechllm.evaluation.report import write_report
from speechllm.evaluation.score import score_decode_dir
from speechllm.utils.errors import UserError

COMET = """
import json, sys
print("chatter of a library")

def download_model(name):
    raise KeyError(f"Model '{name}' not supported by COMET.")

def load_from_checkpoint(path):
    return Model(json.load(open(path)))

class Model:
    def __init__(self, options):
        self.options = options

    def predict(self, samples, batch_size, gpus, progress_bar):
        json.dump(samples, open(self.options["seen"], "w"))
        scores = []
        for sample in samples:
            words, found = sample["ref"].split() or [""], sample["mt"].split() or [""]
            scores.append(sum(word in found for word in words) / len(words))
        if self.options.get("die"):
            raise RuntimeError("the GPU is on fire")
        scores = scores[self.options.get("lose", 0):]
        return {"scores": scores, "system_score": sum(scores) / len(scores)}
"""
TORCH = """
class cuda:
    is_available = staticmethod(lambda: False)
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """Python of an environment with only ``comet`` and ``torch``."""
    folder = tmp_path_factory.mktemp("comet") / "venv"
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True
    )
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "comet.py").write_text(COMET)
    (packages / "torch.py").write_text(TORCH)
    return folder / "bin" / "python"


@pytest.fixture
def model(tmp_path) -> Path:
    return write_model(tmp_path / "comet-model", tmp_path)


def write_model(folder: Path, root: Path, **options) -> Path:
    """Write a model folder in the layout of the hub."""
    (folder / "checkpoints").mkdir(parents=True)
    content = {"seen": str(root / "seen.json"), **options}
    (folder / "checkpoints" / "model.ckpt").write_text(json.dumps(content))
    return folder


@pytest.fixture
def installed(environment, model, monkeypatch):
    monkeypatch.setenv("SPEECHLLM_COMET_PYTHON", str(environment))
    monkeypatch.setenv("SPEECHLLM_COMET_MODEL", str(model))


REFERENCES = {
    "u1-asr-en": "good day", "u1-st-de": "guten Tag",
    "u2-asr_st-de": "please hold\tbitte warten Sie", "u3-st-fr": "au revoir",
}  # fmt: skip
TASKS = {
    "u1-asr-en": "asr en en", "u1-st-de": "st en de",
    "u2-asr_st-de": "asr_st en de", "u3-st-fr": "st en fr",
}  # fmt: skip
HYPOTHESES = {
    "u1-asr-en": "good day", "u1-st-de": "guten Abend",
    "u2-asr_st-de": "bitte warten Sie", "u3-st-fr": "au revoir",
}  # fmt: skip


@pytest.fixture
def case(tmp_path) -> tuple[Path, Path]:
    examples = tmp_path / "examples"
    decode_dir = tmp_path / "exp" / "system" / "decode" / "test"
    for folder, tables in (
        (examples, {"text": REFERENCES, "utt2task": TASKS}),
        (
            decode_dir,
            {"text": HYPOTHESES, "text.transcript": {"u2-asr_st-de": "please cold"}},
        ),
    ):
        folder.mkdir(parents=True)
        for name, table in tables.items():
            lines = "".join(f"{key} {value}\n" for key, value in table.items())
            (folder / name).write_text(lines)
    return examples, decode_dir


def test_sentences_are_sent_and_scores_returned(environment, model, tmp_path):
    sources, hypotheses = ["good day", "ein ›Haus‹"], ["guten Abend", "a house"]
    values, signature = comet_scores(
        sources, hypotheses, ["guten Tag", "a house"], str(model), environment
    )
    assert values == [0.5, 1.0]
    assert signature == f"model:{model}|scale:100|version:unknown"
    assert json.loads((tmp_path / "seen.json").read_text()) == [
        {"src": "good day", "mt": "guten Abend", "ref": "guten Tag"},
        {"src": "ein ›Haus‹", "mt": "a house", "ref": "a house"},
    ]


def test_translations_are_scored_with_the_reference_transcript(
    installed, case, tmp_path
):
    examples, decode_dir = case
    rows, left_out = score_decode_dir(examples, decode_dir)
    found = {
        (row["task"], row["target_language"]): row["value"]
        for row in rows
        if row["metric"] == "comet"
    }
    assert found == {("st", "de"): 50.0, ("asr_st", "de"): 100.0}
    (sentence,) = left_out
    assert sentence == (
        "st_en_fr: no COMET: u3-st-fr has no transcript among the examples; make "
        "asr:en examples too"
    )
    sources = [s["src"] for s in json.loads((tmp_path / "seen.json").read_text())]
    assert sorted(sources) == ["good day", "please hold"]
    table = (decode_dir / "score_st_en_de" / "scores.tsv").read_text().splitlines()
    assert table[0].split("\t") == [
        "id", "bleu", "chrf", "comet", "reference", "hypothesis",
    ]  # fmt: skip
    assert table[1].split("\t")[3] == "50.00"
    write_report(tmp_path / "exp", tmp_path / "RESULTS")
    report = (tmp_path / "RESULTS.md").read_text()
    assert "| COMET |" in report and "COMET is shown times 100." in report
    assert "- COMET (de): `model:" in report


@pytest.mark.parametrize("text", ["", "♪ ♪"])
def test_speech_without_words_has_a_comet_score(installed, case, tmp_path, text):
    """An empty transcript is one; COMET needs no normalised text."""
    examples, decode_dir = case
    for name, line in (
        ("text", f"u4-asr-en {text}\nu4-st-de {text}\n"),
        ("utt2task", "u4-asr-en asr en en\nu4-st-de st en de\n"),
    ):
        with open(examples / name, "a") as stream:
            stream.write(line)
    with open(decode_dir / "text", "a") as stream:
        stream.write(f"u4-asr-en oh\nu4-st-de {text}\n")
    rows, left_out = score_decode_dir(examples, decode_dir)
    (comet,) = (
        row
        for row in rows
        if row["metric"] == "comet" and (row["task"], row["utterances"]) == ("st", 2)
    )
    assert comet["value"] == 75.0  # 50 and 100
    assert not any("u4" in sentence for sentence in left_out)
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert {"src": text, "mt": text, "ref": text} in seen


def test_missing_installation_is_reported(case, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("SPEECHLLM_COMET_PYTHON", raising=False)
    monkeypatch.delenv("SPEECHLLM_COMET_MODEL")
    assert comet_model() == "Unbabel/wmt22-comet-da"
    monkeypatch.setattr(
        "speechllm.evaluation.comet.WORKER", tmp_path / "a" / "b" / "worker.py"
    )
    examples, decode_dir = case
    main(["--examples", str(examples), "--decode_dir", str(decode_dir)])
    printed = capsys.readouterr()
    assert "st en-de bleu" in printed.out
    assert "no COMET: it is not installed, tools/install_comet.sh" in printed.err
    write_report(tmp_path / "exp", tmp_path / "RESULTS")
    assert "COMET: not scored; `tools/" in (tmp_path / "RESULTS.md").read_text()


def test_environment_in_the_checkout_is_found(environment, tmp_path, monkeypatch):
    monkeypatch.delenv("SPEECHLLM_COMET_PYTHON", raising=False)
    clone = tmp_path / "tools" / "venv-comet" / "bin"
    clone.mkdir(parents=True)
    (clone / "python").symlink_to(environment)
    worker = comet.WORKER.relative_to(Path(speechllm.__file__).parents[1])
    monkeypatch.setattr(comet, "WORKER", tmp_path / worker)
    assert comet_python() == clone / "python"


def test_comet_can_be_disabled(installed, case, monkeypatch):
    monkeypatch.setenv("SPEECHLLM_COMET_MODEL", "none")
    assert comet_model() is None
    rows, left_out = score_decode_dir(*case)
    assert left_out == [] and "comet" not in {row["metric"] for row in rows}


def test_model_that_cannot_be_loaded_is_an_error(installed, case, monkeypatch):
    """All other scores are written."""
    score_decode_dir(*case)
    examples, decode_dir = case
    monkeypatch.setenv("SPEECHLLM_COMET_MODEL", "Unbabel/nowhere")
    with pytest.raises(UserError) as caught:
        score_decode_dir(examples, decode_dir)
    message = str(caught.value)
    assert "COMET model Unbabel/nowhere cannot be loaded" in message
    assert "not supported by COMET" in message
    assert "SPEECHLLM_COMET_MODEL" in message
    rows = json.loads((decode_dir / "score_st_en_de" / "scores.json").read_text())
    assert {row["metric"] for row in rows} >= {"bleu", "chrf", "ter"}
    assert "comet" not in {row["metric"] for row in rows}


def test_failing_worker_and_lost_sentences_are_errors(environment, tmp_path):
    sentences = (["a", "b"], ["a", "b"], ["a", "b"])
    dying = write_model(tmp_path / "dying", tmp_path, die=True)
    with pytest.raises(UserError, match="COMET failed in .*the GPU is on fire"):
        comet_scores(*sentences, str(dying), environment)
    losing = write_model(tmp_path / "losing", tmp_path, lose=1)
    with pytest.raises(UserError, match="1 scores for 2 sentences"):
        comet_scores(*sentences, str(losing), environment)


def test_environment_without_comet_is_an_error(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "v")], check=True
    )
    with pytest.raises(UserError, match="cannot be loaded: No module named 'comet'"):
        comet_scores(["a"], ["a"], ["a"], "x", tmp_path / "v" / "bin" / "python")


def test_missing_python_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("SPEECHLLM_COMET_PYTHON", str(tmp_path / "none"))
    with pytest.raises(UserError, match="SPEECHLLM_COMET_PYTHON=.*no such file"):
        comet_python()
