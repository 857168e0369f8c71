"""`pip install .` in an empty environment."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from speechllm import SpeechToText

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def run(*command: object) -> subprocess.CompletedProcess[str]:
    """Run a command outside the clone."""
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, cwd="/")


@pytest.fixture(scope="module")
def binaries(tmp_path_factory):
    """Return the folder of the programs of an environment with speechllm alone."""
    folder = tmp_path_factory.mktemp("installed")
    skipped = shutil.ignore_patterns("__pycache__", "venv*")
    for name in ("speechllm", "tools"):  # a copy, since setuptools builds in it
        shutil.copytree(ROOT / name, folder / "clone" / name, ignore=skipped)
    for name in ("setup.py", "README.md"):
        shutil.copy(ROOT / name, folder / "clone")
    environment = folder / "environment"
    run(sys.executable, "-m", "venv", environment).check_returncode()
    pin = ["-c", ROOT / "tools/requirements/torch.txt"]
    pip = environment / "bin" / "pip"
    done = run(pip, "install", "-q", "--no-cache-dir", *pin, folder / "clone")
    if "NewConnectionError" in done.stderr or "NameResolutionError" in done.stderr:
        pytest.skip("no package registry can be reached")
    assert done.returncode == 0, done.stderr
    yield environment / "bin"
    shutil.rmtree(environment)  # 1.5 GB


def test_the_installed_package_transcribes(binaries, tiny_model, speech_file):
    done = run(binaries / "pip", "check")
    assert done.returncode == 0, done.stdout
    done = run(binaries / "python", "-c", "from speechllm import SpeechToText")
    assert (done.returncode, done.stderr) == (0, "")
    assert run(binaries / "python", "-c", "import espnet").returncode == 1
    done = run(
        binaries / "speechllm", "transcribe", "--model", tiny_model,
        "--language", "en", "--format", "json", speech_file,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    model = SpeechToText.from_pretrained(tiny_model)
    (expected,) = model.transcribe([speech_file], language="en")
    assert json.loads(done.stdout)["text"] == expected.text


def test_a_missing_extra_prints_the_command_to_install_it(binaries):
    python = binaries / "python"
    code = "from speechllm.utils.errors import run_main; "
    code += "run_main(lambda: __import__('jiwer'))"
    done = run(python, "-c", code)
    line = "error: jiwer is not installed: pip install 'speechllm[train]'\n"
    assert (done.returncode, done.stderr) == (1, line)
    done = run(python, "-m", "speechllm.bin.speechllm_train")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: training needs ESPnet (No module named ")
