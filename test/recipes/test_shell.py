"""Recipe scripts: options, error messages, new recipes, files that git ignores."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from recipe_clone import OUTPUTS, ROOT
from recipe_clone import clone as copy_recipes

TEMPLATE = ROOT / "egs2" / "TEMPLATE" / "speechllm1"
MINI = ROOT / "egs2" / "mini_asterisk" / "speechllm1"

SCRIPT = """
set -euo pipefail
nj=4
skip_train=false
train_args=
help_message="the help"
. utils/parse_options.sh
echo "${nj}|${skip_train}|${train_args}|"
"""
WORDS = """
set -euo pipefail
dir=
data_opts=
help_message="the help"
. utils/parse_options.sh
words=()
split_words words --data_opts "$(as_words --dir "${dir}")${data_opts}"
[ ${#words[@]} -eq 0 ] || printf '%s\\0' "${words[@]}"
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
        (["--train_args", "--guard"], "4|false|--guard|"),
    ],
)
def test_options_become_variables(arguments, out):
    assert parse(*arguments).stdout == out + "\n"


@pytest.mark.parametrize(
    ("value", "out"),
    [
        ("8", "8 9"),
        ("08", "8 9"),  # an invalid octal number in shell arithmetic
        ("010", "10 11"),  # 8 as an octal number
        ("0", "from 1 to 128, not '0'"),
        ("129", "from 1 to 128, not '129'"),
        ("2.5", "from 1 to 128, not '2.5'"),
        ("1e2", "from 1 to 128, not '1e2'"),
    ],
)
def test_whole_numbers_are_decimal(value, out):
    script = SCRIPT + 'whole nj 1 128\necho "${nj} $((nj + 1))"'
    done = bash("bash", "-c", script, "script", "--nj", value)
    assert out in done.stdout.splitlines()[1:] + [done.stderr.strip()[-len(out) :]]


def test_an_option_may_be_called_name():
    script = 'name=\n. utils/parse_options.sh\necho "${name}"'
    assert bash("bash", "-c", script, "script", "--name", "a b").stdout == "a b\n"


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
@pytest.mark.parametrize(
    "value", ["a b", 'it\'s a "b"\nc', "$HOME *", "\\", "日 本", "&"]
)
def test_an_option_passes_any_value_as_shell_words(value, locale):
    words = ["bash", "-c", WORDS, "script", "--dir", value]
    done = bash(*words, env={**os.environ, "LC_ALL": locale})
    assert done.stdout == f"--dir\0{value}\0", done.stderr


@pytest.mark.parametrize(
    "line", ["", "--guard", "--a 'b  c' \"d e\"f g\\ h ''", "*.py $HOME # `date`"]
)
def test_arguments_are_split_as_shlex_does(line, tmp_path):
    done = bash("bash", "-c", WORDS, "script", "--data_opts", line)
    assert done.stdout == "".join(f"{word}\0" for word in shlex.split(line))


def test_an_open_quote_is_one_line():
    done = bash("bash", "-c", WORDS, "script", "--data_opts", "--a 'b")
    message = "script: error: --data_opts: a quote is not closed in: --a 'b\n"
    assert (done.returncode, done.stderr) == (1, message)


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
        (["--nj", "1", "rest", "--nj"], "unexpected argument 'rest'"),
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
        (["--num_processes", "2", "--ngpu", "1"], "is for --ngpu 0 and one machine"),
        (["--token_type", "word"], "char or bpe"),
        (["--audio_format", "mp3"], "flac, wav, flac.ark or wav.ark, not 'mp3'"),
        (["--fs", "8k"], "--fs 8k: speech encoders take 16 kHz"),
        (["--bpemode", "word"], "bpe or unigram"),
        (["--download_model", "./none"], "--download_model: no folder './none'"),
        (
            ["--download_model", "a/b", "--encoder", "c/d"],
            "--encoder is for a training, but a/b (--model, --download_model) is "
            "decoded as it is; leave one of them out",
        ),
        (["--dumpdir", "a,b"], "with a comma, 'a,b'"),
        (["--train_args", "'a"], "--train_args: a quote is not closed in: 'a"),
        (["--asr_exp", "a"], "--asr_exp is --speechllm_exp here; --help lists"),
        (["--cleaner", "none"], "--cleaner has no counterpart here, leave it out: "),
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


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: f"{p.parts[-3]}-{p.stem}")
def test_the_help_starts_no_program_that_takes_long(script, tmp_path):
    for name in ("python3", "nvidia-smi"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    begin = time.monotonic()
    done = bash(script, "--help", env={**os.environ, "PATH": path})
    seconds = time.monotonic() - begin
    assert done.returncode == 0 and not (tmp_path / "started").exists()
    assert seconds < 1


PROGRAMS = [
    *sorted(ROOT.glob("egs2/*/speechllm1/local/*.sh")),
    *(ROOT / "tools" / f"{name}.sh" for name in ("test", "lock", "install")),
]


@pytest.mark.parametrize(
    "script",
    [path for path in PROGRAMS if os.access(path, os.X_OK)],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_script_answers_help_and_does_nothing(script, tmp_path):
    for name in ("python3", "apt-get"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = bash(script, "--help", cwd=script.parents[1], env=environment)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("Usage: ")
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("recipe", RECIPES)
def test_stray_words_of_data_preparation_are_refused(recipe):
    folder = ROOT / "egs2" / recipe / "speechllm1"
    done = bash("local/data.sh", "stray", cwd=folder)
    assert done.returncode == 1
    assert done.stderr == (
        "data.sh: error: unexpected argument 'stray'; options have the form --name "
        "value\n"
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_help_of_data_preparation(recipe):
    done = bash("local/data.sh", "--help", cwd=ROOT / "egs2" / recipe / "speechllm1")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: local/data.sh [options]\n")
    assert "\n  --datadir DIR " in done.stdout


@pytest.mark.parametrize(
    ("tasks", "options"),
    [
        ("asr:en asr:fr", "--language en"),
        ("st:en:fr", "--task st --target_language fr --language en"),
        (
            "asr_st:cs:en asr_st:nl:en",
            "--task asr_st --target_language en --language cs",
        ),
    ],
)
def test_the_end_of_a_recipe_says_how_to_transcribe(tmp_path, tasks, options):
    model = tmp_path / "my model"
    model.mkdir()
    (model / "config.yaml").touch()
    script = f"""set -euo pipefail
. {TEMPLATE}/utils/model_folder.sh
model="my model" test_tasks="{tasks}" MAIN_ROOT=/clone
show_use
"""
    done = bash("bash", "-c", script, cwd=tmp_path)
    assert done.stderr == ""
    where = str(model).replace(" ", "\\ ")
    assert done.stdout.splitlines() == [
        f"model: {model}",
        "transcribe: . /clone/tools/activate_python.sh && speechllm transcribe "
        f"--model {where} {options} FILE",
    ]


@pytest.fixture
def export(tmp_path):
    """Return a function that runs ``exported`` on the export of a training."""
    (tmp_path / "exp/model").mkdir(parents=True)
    (tmp_path / "exp/model/config.yaml").touch()
    script = f"""set -euo pipefail
. {TEMPLATE}/utils/parse_options.sh
. {TEMPLATE}/utils/training.sh
. {TEMPLATE}/utils/model_folder.sh
download_model= first_pass_config= final_exp=exp model=exp/model inference_model=a.pth
exported
"""
    return lambda: bash("bash", "-c", script, "speechllm.sh", cwd=tmp_path)


@pytest.mark.parametrize(
    ("name", "later"),
    [("checkpoint.pth", True), ("last.ckpt", True), ("last.ckpt", False)],
)
def test_a_model_older_than_its_checkpoint_is_not_used(tmp_path, export, name, later):
    seconds = (tmp_path / "exp/model/config.yaml").stat().st_mtime
    seconds += 10 if later else -10
    (tmp_path / "exp" / name).touch()
    os.utime(tmp_path / "exp" / name, (seconds, seconds))
    done = export()
    assert done.returncode == int(later)
    message = "exp was trained after the export of exp/model; run stage 10 first\n"
    assert done.stderr == (f"speechllm.sh: error: {message}" if later else "")


def test_the_export_of_another_checkpoint_is_not_used(tmp_path, export):
    assert export().returncode == 0  # of a version that left no record
    record = tmp_path / "exp/model/.checkpoint"
    record.write_text("a.pth\n")
    assert export().returncode == 0
    record.write_text("b.pth\n")
    done = export()
    assert (done.returncode, done.stderr) == (
        1,
        "speechllm.sh: error: exp/model is the export of b.pth, not of a.pth "
        "(--inference_model); run stage 10 first\n",
    )


def test_a_finished_training_is_not_taken_for_one_of_other_examples(tmp_path):
    examples = tmp_path / "my examples"
    examples.mkdir()
    for name in ("text", "text_ctc", "utt2task", "utt2num_samples", "wav.scp"):
        (examples / name).write_text("a 1\n")
    script = f"""set -euo pipefail
. {TEMPLATE}/utils/parse_options.sh
. {TEMPLATE}/utils/training.sh
current=9
key=$(examples_key "my examples")
require_same_examples exp "${{key}}"
mkdir -p exp
echo "${{key}}" > exp/train.done
"""

    def train():
        return bash("bash", "-c", script, "speechllm.sh", cwd=tmp_path)

    assert train().returncode == 0
    (examples / "wav.scp").write_text("a 2\n")  # the same audio in another place
    assert (train().returncode, train().stderr) == (0, "")
    (examples / "text").write_text("a 1\nb 2\n")
    done = train()
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "stage 9: exp was trained on other examples than those that" in done.stderr
    assert "give another --expdir or move the folder away; to keep" in done.stderr
    (tmp_path / "exp").rename(tmp_path / "old")
    assert train().returncode == 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_tests_a_trained_model(recipe, tmp_path):
    folder = copy_recipes(tmp_path, recipe) / recipe / "speechllm1"
    (folder / "speechllm.sh").unlink()
    (folder / "speechllm.sh").write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    (folder / "speechllm.sh").chmod(0o755)
    options = ["--download_model", "me/my_model"]
    if recipe == "own_data":
        options += ["--data", "x"]
    done = bash(folder / "run.sh", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    last = dict(zip(words[::2], words[1::2], strict=True))
    assert last["--download_model"] == "me/my_model"
    assert "--stop_stage" not in last and "--skip_stages" not in last


@pytest.mark.parametrize("recipe", ["common_voice", "jsut"])
def test_a_model_to_test_is_not_trained(recipe, tmp_path):
    folder = ROOT / "egs2" / recipe / "speechllm1"
    done = bash(folder / "run.sh", "--model", tmp_path, "--llm", "a/b", cwd=folder)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"speechllm.sh: error: --llm is for a training, but {tmp_path} (--model, "
        "--download_model) is decoded as it is; leave one of them out\n"
    )


def test_the_help_lists_every_option():
    script = (TEMPLATE / "speechllm.sh").read_text()
    block = script.split("# ---- options")[1].split("# -----------")[0]
    names = re.findall(r"^([a-z_]+)=", block, re.MULTILINE)
    text = bash(MINI / "run.sh", "--help").stdout
    assert len(names) > 30
    missing = [name for name in names if not re.search(rf"--{name} ", text)]
    assert missing == []


def espnet_options() -> list[str]:
    """Return the options of ESPnet's asr.sh (commit 004c30c)."""
    return """
        stage stop_stage skip_stages skip_data_prep skip_train skip_eval skip_upload
        skip_upload_hf ngpu num_nodes nj inference_nj gpu_inference dumpdir expdir
        python debug local_data_opts speed_perturb_factors feats_type audio_format fs
        min_wav_duration max_wav_duration token_type nbpe bpemode oov blank sos_eos
        bpe_input_sentence_size bpe_nlsyms bpe_char_cover use_ngram ngram_exp ngram_num
        use_lm lm_tag lm_exp lm_stats_dir lm_config lm_args use_word_lm num_splits_lm
        word_vocab_size asr_tag asr_exp asr_stats_dir asr_config asr_args
        pretrained_model ignore_init_mismatch feats_normalize num_splits_asr hf_repo
        use_k2 k2_ctc_decoding use_nbest_rescoring num_paths nll_batch_size k2_config
        use_streaming batch_size inference_tag inference_config inference_args
        inference_lm inference_ngram inference_asr_model download_model train_set
        valid_set test_sets bpe_train_text lm_train_text lm_dev_text lm_test_text
        nlsyms_txt cleaner g2p lang score_opts local_score_opts
        asr_speech_fold_length asr_text_fold_length lm_fold_length eval_valid_set
    """.split()


def test_every_option_of_espnet_works_or_is_answered():
    script = (TEMPLATE / "speechllm.sh").read_text()
    block = script.split("# ---- options")[1].split("# -----------")[0]
    own = re.findall(r"^([a-z_]+)=", block, re.MULTILINE)
    program = """
        . utils/espnet_options.sh
        for name in "$@"; do echo "${name} $(espnet_option "${name}")"; done
    """
    words = ["bash", "-euc", program, "-", *espnet_options(), *own, "train_argz"]
    answers = dict(line.split(" ", 1) for line in bash(*words).stdout.splitlines())
    for name in espnet_options():
        assert bool(answers[name]) == (name not in own), name
    assert not any(answers[name] for name in [*own, "train_argz"])
    for answer in filter(None, answers.values()):
        assert answer.startswith(("has no counterpart here, leave it out: ", "is --"))
        if answer.startswith("is --"):
            assert re.match(r"is --(\w+)", answer)[1] in own


def test_the_top_script_lists_its_recipes():
    done = bash(ROOT / "run.sh", "--recipe", "nope")
    assert done.returncode == 1
    assert "no recipe 'nope'; there are: " in done.stderr
    assert "mini_asterisk" in done.stderr and "TEMPLATE" not in done.stderr
    done = bash(ROOT / "run.sh", "--help")
    assert done.returncode == 0 and "--recipe NAME" in done.stdout


def test_a_default_comes_from_the_job_runner(tmp_path):
    """In place of nproc and nvidia-smi on this machine, which may be a login node."""
    program = """
        set -euo pipefail
        nj=1
        . utils/parse_options.sh
        . utils/stages.sh
        nj=$(available nj cpus "$0")
        echo "nj=${nj}"
    """
    runner = tmp_path / "cluster.pl"
    runner.write_text('#!/bin/sh\n[ "$*" = "--mem 8G --count cpus" ] && echo 64\n')
    runner.chmod(0o755)
    done = bash("bash", "-c", program, f"{runner} --mem 8G")
    assert (done.returncode, done.stdout) == (0, "nj=64\n"), done.stderr
    done = bash("bash", "-c", program, f"{runner} --mem 9G")
    assert done.returncode == 1
    assert (
        f"error: --nj has no default, since '{runner} --mem 9G' cannot count cpus; "
        "give --nj\n"
    ) in done.stderr


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
    (root / "db.sh").write_text("CSJ=\nASTERISK=\n")
    done = bash("bash", "local/data.sh", cwd=root)
    assert f"ASTERISK= in {root}/db.sh is empty; write the folder" in done.stderr


def test_a_missing_environment_is_reported_in_one_line(tmp_path):
    shutil.copytree(
        MINI,
        tmp_path / "egs2" / "mini_asterisk" / "speechllm1",
        symlinks=True,
        ignore=OUTPUTS,
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
    assert f"MY_TALKS= in {recipe}/db.sh is empty; write the folder of" in done.stderr

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
    corpus = clone / "my corpus"
    corpus.mkdir()
    for name in ("train", "dev", "test"):
        (corpus / f"my {name}.wav").write_bytes(b"")
        lines = [f"{speaker}\tmy {name}.wav\tGood morning.\n" for speaker in "bab"]
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
    used = re.search(
        r'find_corpus (?:--\w+|"--\w+ or --download true") \S+ (\w+)', scripts
    ).group(1)
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
