"""Recipe processes: kills, locks of output folders, folders that cannot be written.

Most stages run with a stand-in for ``python3 -m``, since only the shell is tested.
"""

from __future__ import annotations

import fcntl
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
from processes import alive, wait_until
from recipe_clone import ROOT, clone

PYTHON = """#!/usr/bin/env bash
# Runs scripts and the launcher; any other program is recorded, and waits or ends.
if [ "$1" != -m ] || [ "$2" = espnet2.bin.launch ]; then exec {python} "$@"; fi
{{ printf '%q ' "${{@:2}}"; echo; }} >> calls
echo $$ > pid.new && mv pid.new pid
if [ -e wait ]; then sleep 60; fi
"""
DATA = """#!/usr/bin/env bash
set -euo pipefail
datadir=
. utils/parse_options.sh
if [ -e wait_in_data ]; then python3 -m wait; fi
"""
FLOCK = """#!/usr/bin/env bash
# flock with short waits
[ "$2" != 5 ] || set -- -w 0.02 "${{@:3}}"
exec {flock} "$@"
"""
NO_LOCKS = """#!/usr/bin/env bash
exit 71  # as flock on a file system without locks
"""
HOLDER = "run 7 on host9, since 2026-01-02 03:04:05"
TRAIN = "exp/speechllm_train"


@pytest.fixture
def recipe(tmp_path):
    """Return a recipe with stand-ins for Python and data preparation."""
    folder = clone(tmp_path) / "TEMPLATE" / "speechllm1"
    write_script(folder / "utils/python3", PYTHON.format(python=sys.executable))
    write_script(folder / "utils/flock", FLOCK.format(flock=shutil.which("flock")))
    write_script(folder / "local/data.sh", DATA)
    return folder


def write_script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def start(
    recipe: Path, *arguments: str, script: str = "run.sh", **options
) -> subprocess.Popen:
    return subprocess.Popen(
        ["bash", script, *arguments],
        cwd=recipe,
        env={**os.environ, "SPEECHLLM_PID": "", "PYTHONPATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def only(stage: int) -> tuple[str, ...]:
    """Return the options that run a single stage."""
    options = ["--stage", str(stage), "--stop_stage", str(stage), "--hf_repo", "me/a"]
    if stage == 2:
        options += ["--speed_perturb_factors", "0.9 1.0"]
    if stage == 8:
        options += ["--warmup_config", "conf/train.yaml"]
    return tuple(options)


def fail(recipe: Path, *arguments: str) -> list[str]:
    """Run the recipe, which fails; return its lines on stderr."""
    process = start(recipe, *arguments)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    return errors.splitlines()


def fill(recipe: Path, *names: str) -> None:
    for name in names:
        path = recipe / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a\n")


def fill_examples(recipe: Path) -> None:
    fill(recipe, "data/token_list/char/tokens.txt")
    for name in ("train", "train_warmup", "dev_warmup", "train_second", "dev_second"):
        fill_set(recipe, name)
    for name in ("train_sp", "dev", "test"):
        fill_set(recipe, name)


def fill_set(recipe: Path, name: str) -> None:
    tables = ("wav.scp", "text", "text_ctc", "utt2task")
    fill(recipe, *(f"dump/examples/{name}/{table}" for table in tables))


def fill_all(recipe: Path) -> None:
    """Write what the stages read, and what they print of their output."""
    fill_examples(recipe)
    for phase in ("warmup", "train", "second"):
        stats = f"exp/speechllm_stats_{phase}"
        fill(recipe, *(f"{stats}/{name}" for name in (".done", "train/speech_shape")))
    fill(recipe, "data/train/text", "data/train_sp/text", "dump/STATISTICS.md")
    for experiment in (TRAIN, f"{TRAIN}_train"):
        fill(recipe, f"{experiment}/valid.acc.ave.pth")
    fill(recipe, f"{TRAIN}/decode/test/text", f"{TRAIN}/model/config.yaml")
    fill(recipe, f"{TRAIN}/model/model.safetensors")
    fill(recipe, "exp/RESULTS.md")


@contextmanager
def locked(recipe: Path, folder: str):
    """Lock a folder as another run does."""
    fill(recipe, f"{folder}/.lock")
    (recipe / folder / ".lock").write_text(f"{HOLDER}\n")
    with open(recipe / folder / ".lock") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def wait_for_pid(recipe: Path) -> int:
    wait_until((recipe / "pid").exists, 20)
    return int((recipe / "pid").read_text())


# ---------------------------------------------------------------- kills


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize(
    ("stage", "where"),
    [(1, "wait_in_data"), (1, "wait"), (9, "wait")],  # data.sh, a job, a training
)
def test_children_end_when_run_sh_is_killed(recipe, stage, where, number):
    fill_all(recipe)
    fill(recipe, "wait", where)
    process = start(recipe, *only(stage))
    pid = wait_for_pid(recipe)
    assert alive(pid)
    process.send_signal(number)
    process.communicate(timeout=20)  # returns when no child holds the pipes
    wait_until(lambda: not alive(pid), 20)
    assert process.returncode == -number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_waiting_run_ends_when_it_is_killed(recipe, number):
    with locked(recipe, "data"):
        process = start(recipe, *only(1))
        while "locked by" not in process.stdout.readline():
            pass
        process.send_signal(number)
        process.communicate(timeout=20)
    assert process.returncode == -number
    assert not (recipe / "calls").exists()


def test_an_installation_ends_when_the_top_script_is_killed(tmp_path):
    clone(tmp_path, "mini_asterisk")
    (tmp_path / "tools").unlink()
    (tmp_path / "tools").mkdir()
    install = "#!/usr/bin/env bash\necho $$ > pid.new && mv pid.new pid\nsleep 60\n"
    write_script(tmp_path / "tools" / "install.sh", install)
    shutil.copy(ROOT / "run.sh", tmp_path)
    process = start(tmp_path)
    pid = wait_for_pid(tmp_path)
    process.terminate()
    process.communicate(timeout=20)
    wait_until(lambda: not alive(pid), 20)


# ---------------------------------------------------------------- locks


@pytest.mark.parametrize(
    ("stage", "folder"),
    [
        (1, "data"),
        (1, "dump/log"),
        (2, "data"),
        (2, "dump/log"),
        (3, "data"),
        (3, "dump"),
        (4, "dump"),
        (5, "dump"),
        (5, "data/token_list"),
        (6, TRAIN),
        (7, "exp/log"),
        (7, "exp/speechllm_stats_train"),
        (8, TRAIN),
        (9, TRAIN),
        (10, TRAIN),
        (11, TRAIN),
        (12, f"{TRAIN}/decode"),
        (13, f"{TRAIN}/decode"),
        (13, "exp/log"),
        (14, TRAIN),
        (15, TRAIN),
    ],
)
def test_a_stage_waits_for_the_run_that_writes_into_its_folder(recipe, stage, folder):
    fill_all(recipe)
    prefix = f"(speechllm.sh) Stage {stage}: {folder}"
    lock = f"{folder}/.lock"
    with locked(recipe, folder):
        process = start(recipe, *only(stage))
        process.stdout.readline()  # the stage begins
        lines = [process.stdout.readline().partition(" ")[2] for _ in range(3)]
        assert lines == [
            f"{prefix} is locked by {HOLDER}; waiting for its end (lock: {lock})\n",
            f"{prefix}: waiting for {HOLDER}, 1 min\n",
            f"{prefix}: waiting for {HOLDER}, 2 min\n",
        ]
        called = (recipe / "calls").exists()
        assert called == (
            (stage, folder) == (13, "exp/log")
        )  # the report follows the scores
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert f"{prefix} is not locked any more; continuing\n" in out
    assert f"Stage {stage}: done in " in out
    if stage != 1:
        assert (recipe / "calls").exists()
    holder = (recipe / folder / ".lock").read_text()
    assert holder.startswith(f"run {process.pid} on {os.uname().nodename}, since 2")


def test_stage_1_waits_for_the_run_that_downloads(recipe):
    fill_all(recipe)
    with locked(recipe, "downloads"):
        process = start(recipe, *only(1))
        lines = [process.stdout.readline() for _ in range(2)]
        assert f"Stage 1: downloads is locked by {HOLDER}; waiting" in lines[1]
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


@pytest.mark.parametrize(
    ("script", "options", "folders"),
    [
        (
            "baselines.sh",
            ["--test_sets", "test", "--nllb", "", "--seamless", ""],
            ["dump", "exp/whisper-large-v3/decode_beam5", "exp/log"],
        ),
        (
            "local/baselines.sh",
            [],
            ["dump", "exp/whisper_base/decode_greedy"]
            + [
                "exp/whisper_finetuned/decode_greedy",
                "exp/cascade/decode_beam4",
                "exp/log",
            ],
        ),
        (
            "local/joint_baselines.sh",
            [],
            ["exp_asr_st/cascade/decode_beam4", "dump_asr_st"]
            + ["exp_asr_st/whisper_base/decode_greedy"]
            + ["exp_asr_st/whisper_finetuned/decode_beam5", "exp_asr_st/log"],
        ),
    ],
)
def test_baselines_wait_for_the_run_that_writes_into_a_folder(
    tmp_path, script, options, folders
):
    recipe = clone(tmp_path, "mini_asterisk") / "mini_asterisk" / "speechllm1"
    if script == "baselines.sh":
        recipe = tmp_path / "egs2/TEMPLATE/speechllm1"
    write_script(recipe / "run_asr_st.sh", "#!/usr/bin/env bash\n")
    write_script(recipe / "utils/python3", PYTHON.format(python=sys.executable))
    write_script(recipe / "utils/flock", FLOCK.format(flock=shutil.which("flock")))
    fill_examples(recipe)
    fill(recipe, f"{TRAIN}/decode/test/text", "exp/RESULTS.md")
    asr_st = "exp_asr_st/speechllm_train_asr_st/decode_asr_st/test/text"
    fill(recipe, asr_st, "exp_asr_st/RESULTS.md")
    for folder in folders:
        with locked(recipe, folder):
            process = start(recipe, *options, script=script)
            lines = iter(process.stdout.readline, "")
            assert any(f"{folder} is locked by {HOLDER}; waiting" in x for x in lines)
            process.terminate()
            process.communicate(timeout=20)
    calls = (recipe / "calls").read_text().splitlines()
    assert not any("bin.report" in call for call in calls)


def test_a_killed_run_leaves_no_lock(recipe):
    fill_all(recipe)
    fill(recipe, "wait")
    killed = start(recipe, *only(10))
    pid = wait_for_pid(recipe)
    killed.kill()
    killed.communicate(timeout=20)
    wait_until(lambda: not alive(pid), 20)
    (recipe / "wait").unlink()
    process = start(recipe, *only(10))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


def test_a_file_system_without_locks(recipe):
    fill_all(recipe)
    write_script(recipe / "utils/flock", NO_LOCKS)
    process = start(recipe, *only(10))
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert f"{TRAIN} cannot be locked (the file system has no locks" in out


@pytest.mark.slow
def test_two_runs_in_one_folder_end_with_equal_data(tmp_path):
    """Run stages 1 to 5 alone, and twice at once; nothing is a stand-in."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    noise = np.random.default_rng(1).normal(scale=0.1, size=16000)
    for name in ("train", "dev", "test"):
        soundfile.write(corpus / f"{name}.wav", noise, 16000)
        lines = [f"{speaker}\t{name}.wav\tGood {name}.\n" for speaker in "bab"]
        (corpus / f"{name}.tsv").write_text("".join(lines))
    folders, processes = {}, []
    for count in (1, 2):
        folders[count] = clone(tmp_path / str(count)) / "TEMPLATE" / "speechllm1"
        arguments = ["--my_corpus_dir", str(corpus), "--stop_stage", "5"]
        arguments += ["--test_sets", "dev", "--datadir", "elsewhere", "--nj", "1"]
        processes += [start(folders[count], *arguments) for _ in range(count)]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert errors == ""
    contents = [
        {
            path.relative_to(folder): path.read_bytes()
            for root in ("elsewhere", "dump")
            for path in (folder / root).rglob("*")
            if path.is_file() and path.name != ".lock" and "log" not in path.parts
        }
        for folder in folders.values()
    ]
    assert contents[0] == contents[1]
    assert Path("dump/examples/train/text") in contents[0]
    assert not (folders[1] / "data").exists()


# ---------------------------------------------------------------- folders


@pytest.mark.parametrize(
    ("stage", "option", "folder"),
    [(1, "--datadir", "file/data"), (3, "--dumpdir", "file/dump")],
)
def test_a_folder_that_cannot_be_written_is_one_line(recipe, stage, option, folder):
    fill(recipe, "file")
    assert fail(recipe, *only(stage), option, folder) == [
        f"speechllm.sh: error: stage {stage} cannot write into {folder}: it is "
        "read-only, its disk is full, or it is not a folder"
    ]


@pytest.mark.parametrize("stage", [8, 10])
def test_a_full_disk_is_one_line(recipe, stage):
    fill_all(recipe)
    (recipe / TRAIN / ".lock").symlink_to("/dev/full")
    assert fail(recipe, *only(stage)) == [
        f"speechllm.sh: error: stage {stage} cannot write into {TRAIN}: it is "
        "read-only, its disk is full, or it is not a folder"
    ]


def full_disk() -> None:
    """Limit the size of files, which acts as a disk that fills up."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))


@pytest.mark.parametrize(("stage", "log"), [(8, "train.log"), (10, "export.log")])
def test_a_disk_that_fills_up_is_one_line_of_the_runner(recipe, stage, log):
    fill_all(recipe)
    process = start(recipe, *only(stage), preexec_fn=full_disk)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    first, *others = errors.splitlines()
    assert first == (
        f"run.pl: error: {TRAIN}/{log}: File too large; free disk space, or choose a "
        "folder that can be written"
    )
    stopped = (
        f"speechllm.sh: error: stage 8 stopped; log: {TRAIN}/train.log; the same "
        "command resumes from the last checkpoint"
    )
    assert others == ([stopped] if stage == 8 else [])


@pytest.mark.parametrize("runner", ["run.pl", "slurm.pl"])
def test_a_runner_that_cannot_write_prints_one_line(recipe, runner):
    fill(recipe, "file")
    for log, place, reason, options in (
        ("file/log/a.log", "file/log", "Not a directory", {}),
        (
            "a.log",
            {"run.pl": "a.log", "slurm.pl": "q/a.sh"}[runner],
            "File too large",
            {"preexec_fn": full_disk},
        ),
    ):
        done = subprocess.run(
            [sys.executable, recipe / "utils" / runner, log, "echo", "a" * 200],
            cwd=recipe,
            capture_output=True,
            text=True,
            timeout=60,
            **options,
        )
        assert done.returncode == 2
        assert done.stderr == (
            f"{runner}: error: {place}: {reason}; free disk space, or choose a folder "
            "that can be written\n"
        )


def test_a_runner_whose_output_is_closed_prints_nothing(recipe):
    program = "for i in 1 2 3; do echo progress: $i; sleep 0.3; done; sleep 60"
    words = [sys.executable, "utils/run.pl", "a.log", "bash", "-c", program]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer) as stream:
        done = subprocess.run(
            words,
            cwd=recipe,
            stdout=stream,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


# ---------------------------------------------------------------- inputs


def test_stage_7_without_stage_5_is_one_line(recipe):
    assert fail(recipe, *only(7)) == [
        "speechllm.sh: error: no examples in dump/examples/train (wav.scp is missing); "
        "run stage 5 first"
    ]
    fill_examples(recipe)
    (recipe / "data/token_list/char/tokens.txt").unlink()
    assert fail(recipe, *only(7)) == [
        "speechllm.sh: error: no CTC vocabulary data/token_list/char/tokens.txt; run "
        "stage 5 first"
    ]


@pytest.mark.parametrize(
    ("stage", "option", "program"),
    [
        (7, "--train_args", "speechllm.bin.collect_shapes"),
        (9, "--train_args", "speechllm.bin.speechllm_train"),
        (12, "--inference_args", "speechllm.bin.decode"),
        (13, "--score_opts", "speechllm.bin.score"),
    ],
)
def test_arguments_of_programs_are_shell_words(recipe, stage, option, program):
    fill_all(recipe)
    process = start(recipe, *only(stage), option, "--a 'b c' --flag")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    lines = (recipe / "calls").read_text().splitlines()
    calls = [words for words in map(shlex.split, lines) if words[0] == program]
    assert calls
    for words in calls:
        assert words[words.index("--a") :][:3] == ["--a", "b c", "--flag"]


def calls_of(recipe: Path, program: str, *arguments: str) -> list[list[str]]:
    """Run the recipe; return the arguments of its calls of a program."""
    process = start(recipe, *arguments)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    lines = (recipe / "calls").read_text().splitlines()
    (recipe / "calls").unlink()
    return [words[1:] for words in map(shlex.split, lines) if words[0] == program]


def test_audio_is_formatted_by_an_array_of_jobs(recipe):
    """One for each thousand utterances, up to --nj, and then one for the tables."""
    for name, size in (("train", 2001), ("dev", 1000)):
        fill(recipe, f"data/{name}/utt2spk")
        (recipe / f"data/{name}/utt2spk").write_text("a b\n" * size)
    for nj, jobs in (("2", 2), ("9", 3)):
        arguments = [*only(3), "--nj", nj, "--audio_format", "wav.ark"]
        calls = calls_of(recipe, "speechllm.bin.format_audio", *arguments)
        by_set: dict[str, list[list[str]]] = {}
        for words in calls:
            assert words[4:6] == ["--audio_format", "wav.ark"]
            by_set.setdefault(Path(words[1]).name, []).append(words[6:])
        *array, tables = by_set["train"]
        assert sorted(array) == [
            ["--num_jobs", str(jobs), "--job", str(job + 1)] for job in range(jobs)
        ]
        assert tables == by_set["dev"][0] == []
        logs = {path.name for path in (recipe / "dump/log").iterdir()}
        assert {f"format_train.{job + 1}.log" for job in range(jobs)} < logs


def test_training_tables_are_split_in_stage_7(recipe):
    fill_all(recipe)
    examples, stats = recipe / "dump/examples/train", "exp/speechllm_stats_train"
    (examples / "wav.scp").write_text("a\nb\n")
    fill(recipe, f"{stats}/train/text_shape")
    option = ("--num_splits_speechllm", "2")
    assert fail(recipe, *only(9), *option) == [
        f"speechllm.sh: error: no {stats}/splits2, or of other examples; run stage 7 "
        "with --num_splits_speechllm 2 first"
    ]
    splits = f"{stats}/splits2"
    fill(recipe, f"{splits}/wav.scp/split.0")  # of the stand-in
    (call,) = calls_of(recipe, "espnet2.bin.split_scps", *only(7), *option)
    tables = [f"dump/examples/train/{n}" for n in ("wav.scp", "text", "text_ctc")]
    tables += ["dump/examples/train/utt2task", f"{stats}/train/speech_shape"]
    tables += [f"{stats}/train/text_shape"]
    assert call == [*("--scps", *tables, "--num_splits", "2", "--output_dir", splits)]
    assert calls_of(recipe, "espnet2.bin.split_scps", *only(7), *option) == []
    (train,) = calls_of(recipe, "speechllm.bin.speechllm_train", *only(9), *option)
    assert f"{splits}/wav.scp,speech,sound" in train
    assert train[train.index("--train_shape_file") + 1] == f"{splits}/speech_shape"
    assert train[train.index("--valid_shape_file") + 1] == f"{stats}/valid/speech_shape"
    assert train[train.index("--multiple_iterator") + 1] == "true"
    errors = fail(recipe, *only(7), "--num_splits_speechllm", "3")
    assert errors == [
        "speechllm.sh: error: --num_splits_speechllm 3: 2 examples in "
        "dump/examples/train are too few for so many splits"
    ]


def test_the_validation_set_is_decoded_and_scored_on_request(recipe):
    fill_all(recipe)
    fill(recipe, f"{TRAIN}/decode/dev/text")
    for options, sets in (
        ([], ["test"]),
        (["--eval_valid_set", "true"], ["test", "dev"]),
    ):
        arguments = ["--stage", "12", "--stop_stage", "13", *options]
        process = start(recipe, *arguments)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        lines = (recipe / "calls").read_text().splitlines()
        (recipe / "calls").unlink()
        for program in ("decode", "score"):
            calls = [x for x in map(shlex.split, lines) if x[0].endswith(program)]
            found = [call[call.index("--examples") + 1] for call in calls]
            assert found == [f"dump/examples/{name}" for name in sets]


RUN_SCRIPTS = sorted(
    path
    for path in ROOT.glob("egs2/*/speechllm1/run*.sh")
    # own_data takes any path and names its folders itself: test_recipe_own_data.py
    if path.parts[-3] not in ("TEMPLATE", "own_data")
)


@pytest.mark.parametrize("script", RUN_SCRIPTS, ids=lambda p: f"{p.parts[-3]}-{p.stem}")
def test_the_data_dir_reaches_the_data_preparation(tmp_path, script):
    recipe = clone(tmp_path, script.parts[-3]) / script.parts[-3] / "speechllm1"
    write_script(recipe / "utils/python3", PYTHON.format(python=sys.executable))
    corpora = (recipe / "db.sh").read_text().replace("=\n", "=/corpus\n")
    (recipe / "db.sh").write_text(corpora)
    process = start(recipe, "--stop_stage", "1", "--datadir", "else where")
    process.communicate(timeout=60)
    calls = [shlex.split(line) for line in (recipe / "calls").read_text().splitlines()]
    prepared = [call for call in calls if "speechllm.bin.prepare_data" in call]
    assert prepared
    for call in prepared:
        assert call[call.index("--output") + 1].startswith("else where")
    validated = [call for call in calls if "validate" in call]
    assert len(validated) == 1
    inputs = validated[0][validated[0].index("--input") + 1 :]
    assert inputs and all(name.startswith("else where/") for name in inputs)
    assert not list(recipe.glob("data*"))


@pytest.mark.parametrize("script", RUN_SCRIPTS, ids=lambda p: f"{p.parts[-3]}-{p.stem}")
def test_the_folder_of_a_corpus_may_have_spaces(tmp_path, script):
    recipe = clone(tmp_path, script.parts[-3]) / script.parts[-3] / "speechllm1"
    write_script(recipe / "utils/python3", PYTHON.format(python=sys.executable))
    found = re.search(r"find_corpus (--\w+)", (recipe / "local/data.sh").read_text())
    if found is None:
        pytest.skip("local/data.sh takes no folder of a corpus")
    own = found[1]
    corpus = "it's my corpus"
    for options in ([own, corpus], ["--local_data_opts", f'{own} "{corpus}"']):
        process = start(recipe, "--stop_stage", "1", *options, script=script.name)
        process.communicate(timeout=60)
        lines = (recipe / "calls").read_text().splitlines()
        (recipe / "calls").unlink()
        calls = [shlex.split(line) for line in lines]
        prepared = [call for call in calls if "speechllm.bin.prepare_data" in call]
        assert any(corpus in call for call in prepared)


# ---------------------------------------------------------------- Lightning


def test_lightning_trains_with_the_strategy(recipe):
    fill_all(recipe)
    options = ("--ngpu", "0", "--trainer", "lightning", "--strategy", "fsdp")
    process = start(recipe, *only(9), *options)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    (call,) = (recipe / "calls").read_text().splitlines()
    begin = "speechllm.bin.lightning_train --strategy fsdp --ngpu 0 --num_nodes 1 "
    assert call.startswith(begin + "--config conf/train.yaml ")
    assert f"--output_dir {TRAIN} --resume true" in call


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--trainer", "torch"), "--trainer takes espnet or lightning, not 'torch'"),
        (("--strategy", "fsdp"), "--strategy fsdp goes with --trainer lightning"),
        (
            ("--trainer", "lightning", "--strategy", "zero"),
            "--strategy takes ddp, fsdp or deepspeed, not 'zero'",
        ),
    ],
)
def test_a_wrong_trainer_or_strategy_prints_one_line(recipe, options, message):
    assert fail(recipe, *only(9), *options)[-1].endswith(message)
