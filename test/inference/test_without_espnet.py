"""Inference in a process that cannot import ESPnet; training says what to install."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from speechllm import SpeechToText

WITHOUT_ESPNET = """
import json, runpy, sys
sys.modules["espnet"] = sys.modules["espnet2"] = None
"""
MODULE = "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
TRANSCRIBE = """
from speechllm import SpeechToText
model, speech, options = sys.argv[1:]
model = SpeechToText.from_pretrained(model)
(result,) = model.transcribe([speech], **json.loads(options))
print(json.dumps([result.text, result.score, result.ctc_text, len(result.words)]))
"""


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code where ESPnet cannot be imported."""
    command = [sys.executable, "-c", WITHOUT_ESPNET + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def old_model(tiny_model, tmp_path_factory) -> Path:
    """Return the tiny model as stage 10 of release 0.2 exported it."""
    folder = tmp_path_factory.mktemp("old") / "model"
    folder.mkdir()
    for path in tiny_model.iterdir():
        (folder / path.name).symlink_to(path)
    config = yaml.safe_load((tiny_model / "config.yaml").read_text())
    config["encoder_conf"]["specaug"] = {"apply_time_warp": False}
    config["ctc_conf"] = {"ctc_type": "builtin2", "dropout_rate": 0.1, "reduce": True}
    (folder / "config.yaml").unlink()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_transcription_needs_no_espnet(old_model, tiny_model, speech_file):
    options = {
        "beam_size": 2, "ctc_weight": 0.3, "word_times": True,
        "tokens_per_second": 0.0, "extra_tokens": 6.0,
    }  # fmt: skip
    model = SpeechToText.from_pretrained(tiny_model)
    (expected,) = model.transcribe([speech_file], **options)
    done = run(TRANSCRIBE, old_model, speech_file, json.dumps(options))
    assert done.returncode == 0, done.stderr
    text, score, ctc_text, words = json.loads(done.stdout)
    assert (text, ctc_text) == (expected.text, expected.ctc_text)
    assert score == pytest.approx(expected.score, abs=1e-4)
    assert words == len(expected.words) > 0


def test_command_line_needs_no_espnet(old_model, speech_file, tmp_path):
    arguments = ["--model", old_model, "--output", tmp_path / "texts", speech_file]
    done = run(MODULE, "speechllm.cli", "transcribe", *arguments)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "texts").stat().st_size > 0


@pytest.mark.parametrize("module", ["speechllm_train", "collect_shapes"])
def test_training_without_espnet_is_one_line(module, tmp_path):
    files = ["--train", tmp_path, "--valid", tmp_path, "--output", tmp_path / "out"]
    arguments = files if module == "collect_shapes" else []
    done = run(MODULE, f"speechllm.bin.{module}", *arguments)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: training needs ESPnet (")
    assert "pip install 'speechllm[train]'" in line
    by_hand = "pip install --no-deps espnet==202511" in line
    assert by_hand == (sys.version_info < (3, 12))
