"""The mini recipe run whole, all stages, on a handful of prompts of real speech."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, asterisk_dir):
    """Run stages 1 to 13; returns the recipe's folder in a copy of egs2."""
    root = tmp_path_factory.mktemp("clone")
    shutil.copytree(
        ROOT / "egs2",
        root / "egs2",
        symlinks=True,
        ignore=shutil.ignore_patterns(
            "data*_tiny", "dump*", "exp*", "downloads", "data", "models"
        ),
    )
    for name in ("speechllm", "tools"):
        (root / name).symlink_to(ROOT / name)
    folder = root / "egs2" / "mini_asterisk" / "speechllm1"
    done = run(folder, asterisk_dir, "--stage", "1", "--stop_stage", "13")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    (folder / "first.log").write_text(done.stdout)
    return folder


def run(folder: Path, asterisk_dir: Path, *arguments: str):
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    return subprocess.run(
        ["./run.sh", "--tiny", "true", "--asterisk_dir", str(asterisk_dir), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=900,
    )


def table(folder: Path) -> list[dict]:
    return json.loads((folder / "exp_tiny" / "RESULTS.json").read_text())


@pytest.mark.slow
def test_all_stages_end_in_a_table(recipe):
    log = (recipe / "first.log").read_text()
    for stage in range(1, 14):
        assert f"Stage {stage}: " in log or stage == 10
    for stage in (*range(1, 10), 11, 12, 13):
        assert f"Stage {stage}: done in" in log
    scored = {
        (row["task"], row["language"], row["target_language"]) for row in table(recipe)
    }
    assert scored >= {("asr", "en", "en"), ("asr", "fr", "fr"), ("st", "en", "fr")}
    metrics = {row["metric"].upper() for row in table(recipe)}
    assert any("WER" in name for name in metrics)
    assert any("BLEU" in name for name in metrics)


@pytest.mark.slow
def test_a_second_run_gives_the_same_table(recipe, asterisk_dir):
    before = table(recipe)
    done = run(recipe, asterisk_dir, "--stage", "3", "--stop_stage", "13")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert "up to date" in done.stdout
    assert table(recipe) == before


@pytest.mark.slow
def test_a_stage_without_what_it_needs_says_which_stage_makes_it(recipe, asterisk_dir):
    arguments = ("--stage", "12", "--stop_stage", "12", "--expdir", "elsewhere")
    done = run(recipe, asterisk_dir, *arguments)
    assert done.returncode == 1
    assert "run stage 11 first" in done.stderr
