"""Recipe scripts: options, error messages, new recipes, files that git ignores."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
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


RECIPES = sorted(path.parts[-3] for path in ROOT.glob("egs2/*/speechllm1/run.sh"))
SCRIPTS = sorted(ROOT.glob("egs2/*/speechllm1/run*.sh"))

# A recipe's run.sh: prints its own options and those for speechllm.sh.
PASSING = """
set -euo pipefail
tgt_lang=de
nj=4
help_message="Usage: run.sh [options]
  --tgt_lang L  the language"
pass_to=./speechllm.sh
. utils/parse_options.sh
echo "${tgt_lang}|${nj}|${other_options[*]}"
"""


def bash(*words: str | Path, cwd: Path = TEMPLATE, **options):
    return subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
        check=False,
        **options,
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
    config.write_text("# options\nnj=2\nskip_train=true\n")
    assert parse("--nj", "3", "--config", str(config)).stdout == "3|true||\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nj=2\nnjobs=3\n", "unknown option '--njobs' in {}; --help lists"),
        ("skip_train=yes\n", "--skip_train takes true or false, not 'yes' in {}"),
        ("encoder: whisper\n", "no name=value line in '{}'"),
    ],
)
def test_invalid_config_files_print_one_line(content, message, tmp_path):
    config = tmp_path / "options.conf"
    config.write_text(content)
    done = parse("--config", str(config))
    assert done.returncode == 1
    assert message.format(config) in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "out"),
    [
        ([], "de|4|"),
        (["--tgt_lang", "fr", "--stage", "3"], "fr|4|--stage 3"),
        (["--nj", "8", "--tgt-lang", "fr"], "fr|4|--nj 8"),
        (["--config", "{}", "--nj", "2"], "es|4|--nj 1 --train_config a b --nj 2"),
    ],
)
def test_a_recipe_passes_on_the_options_that_it_does_not_list(arguments, out, tmp_path):
    config = tmp_path / "options.conf"
    config.write_text('nj=1\ntgt_lang=es\ntrain_config="a b"\n')
    arguments = [word.replace("{}", str(config)) for word in arguments]
    done = bash("bash", "-c", PASSING, "run.sh", *arguments)
    assert done.stdout == out + "\n", done.stderr


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
def test_invalid_options_print_one_line(arguments, message):
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
        (["--normalizer", "none"], "speechllm, whisper or whisper:FOLDER"),
        (["--train_config", "conf/none.yaml"], "no file 'conf/none.yaml'"),
        (["--train_set", ""], "--train_set is needed"),
        (["--tiny", "maybe"], "true or false"),
        (["--datdir", "x"], "unknown option '--datdir'"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_invalid_options_of_a_recipe(arguments, message):
    done = bash(MINI / "run.sh", *arguments, cwd=ROOT)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: f"{p.parts[-3]}-{p.stem}")
def test_the_help_begins_with_the_recipes_own_options(script):
    done = bash(script, "--help", cwd=ROOT)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith(f"Usage: {script.name} [options]")
    own, _, rest = done.stdout.partition("\nUsage: speechllm.sh ")
    assert re.search("^  --local_data_opts ", own, re.MULTILINE)
    assert "\n  --stop_stage N " in rest and "--stop_stage" not in own


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_help_of_data_preparation(recipe):
    done = bash("local/data.sh", "--help", cwd=ROOT / "egs2" / recipe / "speechllm1")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: local/data.sh [options]\n")
    assert "\n  --datadir DIR " in done.stdout


def test_the_help_lists_every_option():
    script = (TEMPLATE / "speechllm.sh").read_text()
    block = script.split("# ---- options")[1].split("# -----------")[0]
    names = re.findall(r"^([a-z_]+)=", block, re.MULTILINE)
    text = bash(MINI / "run.sh", "--help").stdout
    assert len(names) > 30
    missing = [name for name in names if not re.search(rf"--{name} ", text)]
    assert missing == []


def test_the_top_script_lists_its_recipes():
    done = bash(ROOT / "run.sh", "--recipe", "nope")
    assert done.returncode == 1
    assert "no recipe 'nope'; there are: " in done.stderr
    assert "mini_asterisk" in done.stderr and "TEMPLATE" not in done.stderr
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


def test_a_missing_environment_is_reported_in_one_line(tmp_path):
    shutil.copytree(
        MINI,
        tmp_path / "egs2" / "mini_asterisk" / "speechllm1",
        symlinks=True,
        ignore=shutil.ignore_patterns("data*", "dump*", "exp*", "downloads"),
    )
    shutil.copytree(TEMPLATE, tmp_path / "egs2" / "TEMPLATE" / "speechllm1")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin" / "python3").chmod(0o755)
    script = tmp_path / "egs2" / "mini_asterisk" / "speechllm1" / "run_asr_st.sh"
    done = bash(script, cwd=tmp_path, env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin"})
    assert done.returncode == 1
    message = f"error: no Python environment; run {tmp_path}/tools/install.sh first\n"
    assert done.stderr == f"speechllm.sh: {message}"


# ---------------------------------------------------------------- new recipes


@pytest.fixture
def clone(tmp_path):
    """Return the root of a clone that has only the template."""
    shutil.copytree(TEMPLATE, tmp_path / "egs2" / "TEMPLATE" / "speechllm1")
    for name in ("tools", "speechllm"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def setup(clone: Path, *arguments: str):
    return bash("egs2/TEMPLATE/speechllm1/setup.sh", *arguments, cwd=clone)


def test_a_new_recipe_runs_and_keeps_its_edits(clone):
    done = setup(clone, "egs2/my_talks/speechllm1")
    assert done.returncode == 0, done.stderr
    recipe = clone / "egs2" / "my_talks" / "speechllm1"
    help_text = bash(recipe / "run.sh", "--help", cwd=clone).stdout
    assert "\n  --my_talks_dir DIR " in help_text and "\n  --stage N " in help_text
    for name in ("path.sh", "speechllm.sh", "baselines.sh", "utils"):
        assert str((recipe / name).readlink()) == f"../../TEMPLATE/speechllm1/{name}"
    done = bash("local/data.sh", cwd=recipe)
    assert "db.sh has no line MY_TALKS=…; write the folder of" in done.stderr

    edited = {"cmd.sh": "cmd_backend=slurm\n", "db.sh": "MY_TALKS=/talks\n"}
    for name, text in edited.items():
        assert not (recipe / name).is_symlink()
        (recipe / name).write_text(text)
    assert "nothing was changed" in setup(clone, "my_talks").stdout
    (recipe / "path.sh").unlink()
    done = setup(clone, "my_talks")
    assert done.stdout == "setup.sh: added to egs2/my_talks/speechllm1: path.sh\n"
    assert {name: (recipe / name).read_text() for name in edited} == edited


def test_a_new_recipe_prepares_a_corpus(clone):
    setup(clone, "my_talks")
    recipe = clone / "egs2" / "my_talks" / "speechllm1"
    corpus = clone / "corpus"
    corpus.mkdir()
    for name in ("train", "dev", "test"):
        (corpus / f"{name}.wav").write_bytes(b"")
        lines = [f"{speaker}\t{name}.wav\tGood morning.\n" for speaker in "bab"]
        (corpus / f"{name}.tsv").write_text("".join(lines))
    done = bash("local/data.sh", "--my_talks_dir", corpus, cwd=recipe)
    assert done.returncode == 0, done.stderr
    sets = [recipe / "data" / name for name in ("train", "dev", "test")]
    assert (sets[0] / "text").read_text().startswith("a-000002 Good morning.\nb-000001")
    command = ["-m", "speechllm.bin.data_dir", "validate", "--input", *sets]
    done = bash(sys.executable, *command, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected one argument"),
        (["My-Corpus"], "'My-Corpus' is not a corpus name"),
        (["TEMPLATE"], "'TEMPLATE' is not a corpus name"),
        (["elsewhere/talks/speechllm1"], "is not egs2/<corpus>/speechllm1"),
    ],
)
def test_invalid_arguments_of_setup(clone, arguments, message):
    done = setup(clone, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in (clone / "egs2").iterdir()] == ["TEMPLATE"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_has_its_own_settings(recipe):
    folder = ROOT / "egs2" / recipe / "speechllm1"
    for name in ("cmd.sh", "db.sh", "run.sh"):
        assert (folder / name).is_file() and not (folder / name).is_symlink()
    lines = re.findall(r"^([A-Z_0-9]+)=", (folder / "db.sh").read_text(), re.MULTILINE)
    scripts = (folder / "run.sh").read_text() + (folder / "local/data.sh").read_text()
    used = re.search(r"find_corpus --\w+ \S+ (\w+)", scripts).group(1)
    assert used in lines
    assert all(name == used or f"${{{name}:-" in scripts for name in lines)


def test_every_config_exists_once():
    files = [p for p in ROOT.glob("egs2/*/speechllm1/conf/**/*") if p.is_file()]
    contents = [path.read_bytes() for path in files if not path.is_symlink()]
    assert len(set(contents)) == len(contents) < len(files)


# ---------------------------------------------------------------- git


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git repository")
def test_git_ignores_what_recipes_write():
    names = ["data", "data_five", "data_tiny", "data_tiny_asr_st", "dump", "dump_st"]
    names += ["dump_tiny", "exp", "exp_asr_st", "exp_tiny_st", "downloads", "models"]
    written = [f"egs2/csj/speechllm1/{name}" for name in (*names, "model.zip")]
    written += ["tools/venv-comet", "tools/.install.lock", "tools/activate_python.sh"]
    kept = ["speechllm/data/x.py", "speechllm/models/x.py", "test/data/x.py"]
    kept += ["egs2/csj/speechllm1/local/data.sh", "egs2/csj/speechllm1/conf/new.yaml"]
    done = bash("git", "check-ignore", *written, *kept, cwd=ROOT)
    assert set(done.stdout.split()) == set(written)
