"""Options of the recipe scripts: what they take, and one clear line for the rest."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "egs2" / "TEMPLATE" / "speechllm1"
MINI = ROOT / "egs2" / "mini_asterisk" / "speechllm1"

SCRIPT = """
set -euo pipefail
nj=4
skip_train=false
train_args=
help_message="the help"
. utils/parse_options.sh
echo "${nj}|${skip_train}|${train_args}|$*"
"""


def bash(*words: str | Path, cwd: Path = TEMPLATE):
    return subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=60,
    )


def parse(*arguments: str):
    return bash("bash", "-c", SCRIPT, "script", *arguments)


@pytest.mark.parametrize(
    ("arguments", "out"),
    [
        ([], "4|false||"),
        (["--nj", "8", "--skip-train", "true"], "8|true||"),
        (["--train_args", "--max_epoch 3 $HOME"], "4|false|--max_epoch 3 $HOME|"),
        (["--nj", ""], "|false||"),
        (["--nj", "1", "rest", "--nj"], "1|false||rest --nj"),
    ],
)
def test_options_become_variables(arguments, out):
    assert parse(*arguments).stdout == out + "\n"


def test_a_config_file_is_read_first(tmp_path):
    config = tmp_path / "options.conf"
    config.write_text("nj=2\nskip_train=true\n")
    assert parse("--nj", "3", "--config", str(config)).stdout == "3|true||\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--njobs", "3"], "unknown option '--njobs'"),
        (["--PATH", "/x"], "unknown option '--PATH'"),
        (["--nj"], "--nj needs a value"),
        (["--nj", "--skip_train", "true"], "--nj needs a value"),
        (["--nj=3"], "--name value"),
        (["--skip_train", "yes"], "takes true or false"),
        (["--config", "none.conf"], "no file 'none.conf'"),
    ],
)
def test_what_is_no_option_gets_one_line(arguments, message):
    done = parse(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "0"], "from 1 to 15"),
        (["--stage", "9", "--stop_stage", "8"], "lies after"),
        (["--stop_stage", "x"], "from 1 to 15"),
        (["--skip_stages", "2 99"], "from 1 to 15"),
        (["--ngpu", "-1"], "--ngpu takes a whole number"),
        (["--token_type", "word"], "char or bpe"),
        (["--audio_format", "mp3"], "flac or wav"),
        (["--train_config", "conf/none.yaml"], "no file 'conf/none.yaml'"),
        (["--train_set", ""], "--train_set is needed"),
        (["--tiny", "maybe"], "true or false"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_bad_flags_of_a_recipe(arguments, message):
    done = bash(MINI / "run.sh", *arguments, cwd=ROOT)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_help_names_every_option():
    script = (TEMPLATE / "speechllm.sh").read_text()
    block = script.split("# ---- options")[1].split("# -----------")[0]
    names = re.findall(r"^([a-z_]+)=", block, re.MULTILINE)
    text = bash(MINI / "run.sh", "--help").stdout
    assert len(names) > 30
    missing = [name for name in names if not re.search(rf"--{name} ", text)]
    assert missing == []


def test_the_top_script_knows_its_recipes():
    done = bash(ROOT / "run.sh", "--recipe", "nope")
    assert done.returncode == 1
    assert "no recipe 'nope'; there are: " in done.stderr
    assert "mini_asterisk" in done.stderr
    done = bash(ROOT / "run.sh", "--help")
    assert done.returncode == 0 and "--recipe NAME" in done.stdout


def test_an_unknown_job_backend(monkeypatch):
    monkeypatch.setenv("cmd_backend", "queue")
    done = bash("bash", "-c", ". ./cmd.sh")
    assert done.returncode == 1
    assert "unknown cmd_backend 'queue'; there are: local slurm" in done.stderr


def test_a_missing_line_in_db_sh(tmp_path):
    root = tmp_path / "egs2" / "mini" / "speechllm1"
    (root / "local").mkdir(parents=True)
    for name in ("path.sh", "utils"):
        (root / name).symlink_to(TEMPLATE / name)
    (root / "db.sh").write_text("CSJ=\n")
    (root / "local" / "data.sh").write_text((MINI / "local" / "data.sh").read_text())
    done = bash("bash", "local/data.sh", cwd=root)
    assert done.returncode == 1
    assert "db.sh has no line ASTERISK=" in done.stderr
