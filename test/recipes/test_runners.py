"""Job runners utils/run.pl and slurm.pl: command line, logs, failures, kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import alive, wait_until

UTILS = Path(__file__).parents[2] / "egs2" / "TEMPLATE" / "speechllm1" / "utils"
RUN = [sys.executable, str(UTILS / "run.pl")]
SLURM = [sys.executable, str(UTILS / "slurm.pl")]

SBATCH = """#!/usr/bin/env bash
# Fake sbatch: runs the jobs of the array one after the other.
array=0-0
for word in "$@"; do
    case ${word} in
        --output=*) output=${word#*=} ;;
        --array=*) array=${word#*=} ;;
    esac
    script=${word}
done
echo "$@" > "${SBATCH_CALL}"
echo 77
code=0
for ((task = ${array%-*}; task <= ${array#*-}; task++)); do
    SLURM_JOB_ID=77 SLURM_ARRAY_TASK_ID=${task} bash "${script}" \\
        > "${output//%a/${task}}" 2>&1 || code=$?
done
exit "${code}"
"""

SLOW_SBATCH = """#!/usr/bin/env bash
# Fake sbatch --wait that waits for the jobs; its number comes after ${SBATCH_DELAY} s.
echo "$@" > "${SBATCH_CALL}"
sleep "${SBATCH_DELAY}"
echo "77;cluster"
exec sleep 60
"""
SCANCEL = """#!/usr/bin/env bash
echo "$@" >> "${SBATCH_CALL}.cancelled"
"""


def call(arguments: list, runner: list[str] = RUN, **options):
    words = [*runner, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Install a fake sbatch; return the file that records its arguments."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text(SBATCH)
    (folder / "sbatch").chmod(0o755)
    (folder / "scancel").write_text(SCANCEL)
    (folder / "scancel").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SBATCH_CALL", str(tmp_path / "call"))
    return tmp_path / "call"


def test_words_are_passed_on_unchanged(tmp_path):
    log = tmp_path / "new" / "a.log"
    words = ["two words", "it's", "", "$HOME", "a;b", 'say "x"']
    program = "import sys; print(sys.argv[1:])"
    done = call([log, sys.executable, "-c", program, *words])
    assert done.returncode == 0, done.stderr
    text = log.read_text()
    assert repr(words) in text
    assert text.startswith("# ") and "# Started at" in text
    assert "# Ended (code 0)" in text.splitlines()[-1]


def test_pipes_and_redirections(tmp_path):
    log, out = tmp_path / "a.log", tmp_path / "out"
    assert call([log, "printf", "b\\na\\n", "|", "sort", ">", out]).returncode == 0
    assert out.read_text() == "a\nb\n"
    assert call([log, "false", "|", "cat"]).returncode == 1


def test_an_array_of_jobs(tmp_path):
    log = tmp_path / "a.JOB.log"
    done = call(["--max-jobs-run", 2, "JOB=1:5", log, "echo", "job", "JOB."])
    assert done.returncode == 0
    for job in range(1, 6):
        assert f"job {job}.\n" in (tmp_path / f"a.{job}.log").read_text()


def test_failed_jobs_are_reported_with_their_error(tmp_path):
    log = tmp_path / "a.JOB.log"
    program = "test JOB != 2 || { echo 'error: no file x'; exit 7; }"
    done = call(["JOB=1:3", log, "bash", "-c", program])
    assert done.returncode == 7
    assert f"1 of 3 jobs failed: status 7, log {tmp_path}/a.2.log" in done.stderr
    assert "error: no file x" in done.stderr
    assert "# Ended (code 7)" in (tmp_path / "a.2.log").read_text()


def test_a_killed_job_returns_the_shells_status(tmp_path):
    done = call([tmp_path / "a.log", "bash", "-c", "kill -KILL $$"])
    assert done.returncode == 128 + signal.SIGKILL


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "1", "log", "true"], "unknown option '--gpus'"),
        (["--gpu"], "needs a value"),
        (["--gpu", "x", "log", "true"], "needs a whole number"),
        (["log"], "a log file and a command"),
        (["JOB=3:2", "log.JOB", "true"], "not a range"),
        (["JOB=1:2", "log", "true"], "must have JOB in its name"),
    ],
)
def test_invalid_command_lines(arguments, message, tmp_path):
    done = call(arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_progress_is_printed_and_logged(tmp_path):
    program = "echo start; echo 'progress: 1/2'; sleep 0.6; echo 'progress: 2/2'"
    done = call([tmp_path / "a.log", "bash", "-c", program])
    assert [line.strip() for line in done.stdout.splitlines()] == [
        "progress: 1/2",
        "progress: 2/2",
    ]
    assert "start\nprogress: 1/2\nprogress: 2/2\n" in (tmp_path / "a.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_the_job_ends_with_the_runner(tmp_path, number):
    log = tmp_path / "a.log"
    runner = subprocess.Popen(
        [*RUN, str(log), "bash", "-c", "echo pid=$$; sleep 60"],
        # a test run in the background inherits an ignored SIGINT
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_until(lambda: log.exists() and "\npid=" in log.read_text())
    pid = int(log.read_text().split("\npid=")[1].split()[0])
    assert alive(pid)
    runner.send_signal(number)
    runner.wait(15)
    wait_until(lambda: not alive(pid))


def test_the_job_ends_when_the_recipe_is_killed(tmp_path):
    log = tmp_path / "a.log"
    # The runner is a grandchild, as under espnet2.bin.launch, which is not killed.
    recipe = subprocess.Popen(
        ["bash", "-c", 'export SPEECHLLM_PID=$(hostname):$$; setsid "$@" & wait', "-"]
        + ["bash", "-c", '"$@"; :', "-", *RUN, str(log), "bash", "-c"]
        + ["echo pid=$$; sleep 60"]
    )
    wait_until(lambda: log.exists() and "\npid=" in log.read_text())
    pid = int(log.read_text().split("\npid=")[1].split()[0])
    recipe.kill()
    wait_until(lambda: not alive(pid))


def test_slurm_runs_an_array(tmp_path, slurm):
    log = tmp_path / "log" / "a.JOB.log"
    options = ["--gpu", 1, "--mem", "8G", "--num_threads", 4]
    program = "import sys; print(sys.argv[1:])"
    words = ["it's JOB", "$HOME", "x;y"]
    done = call(
        [*options, "JOB=1:3", log, sys.executable, "-c", program, *words], SLURM
    )
    assert done.returncode == 0, done.stderr
    for job in (1, 2, 3):
        text = (tmp_path / "log" / f"a.{job}.log").read_text()
        assert repr([f"it's {job}", "$HOME", "x;y"]) in text
    noted = slurm.read_text()
    for word in ("--wait", "--gres=gpu:1", "--mem=8G", "--cpus-per-task=4"):
        assert word in noted


@pytest.mark.parametrize("runner", [RUN, SLURM])
def test_arguments_are_never_run_as_shell(tmp_path, slurm, runner):
    words = [
        f"a\nEND_OF_COMMAND\ntouch {tmp_path}/entered\n",
        f"$(touch {tmp_path}/entered)",
        f"'; touch {tmp_path}/entered; '",
        f"`touch {tmp_path}/entered`",
        f"\\'\ntouch {tmp_path}/entered #",
    ]
    program = "import sys; print(sys.argv[1:])"
    log = tmp_path / "a.JOB.log"
    done = call(["JOB=1:1", log, sys.executable, "-c", program, *words], runner)
    assert done.returncode == 0, done.stderr
    assert repr(words) in (tmp_path / "a.1.log").read_text()
    assert not (tmp_path / "entered").exists()


@pytest.mark.parametrize("runner", [RUN, SLURM])
def test_folders_named_like_the_variable_stay(tmp_path, slurm, runner):
    folder = tmp_path / "JOB" / "my.JOB.data" / "JOBS"
    folder.mkdir(parents=True)
    log = folder / "a.JOB.log"
    words = [f"{folder}/x.JOB", "JOB", "--shard=JOB", "BIGJOB", "data/JOB/text"]
    program = "import sys; print(sys.argv[1:])"
    done = call(
        ["JOB=1:2", log, sys.executable, "-c", program, *words],
        [
            *(
                str(Path(word).resolve()) if Path(word).exists() else word
                for word in runner
            )
        ],
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    expected = [f"{folder}/x.2", "2", "--shard=2", "BIGJOB", "data/JOB/text"]
    assert repr(expected) in (folder / "a.2.log").read_text()


def start_slurm(tmp_path, slurm, monkeypatch, delay="0", before=(), **options):
    """Start slurm.pl with an sbatch that waits, in a shell with further words."""
    (tmp_path / "bin/sbatch").write_text(SLOW_SBATCH)
    monkeypatch.setenv("SBATCH_DELAY", delay)
    words = [*before, *SLURM, str(tmp_path / "a.log"), "true"]
    process = subprocess.Popen(words, **options)
    wait_until(slurm.exists)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("delay", ["0", "1.5"])
def test_slurm_cancels_its_jobs(tmp_path, slurm, monkeypatch, number, delay):
    def default_signals():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    process = start_slurm(
        tmp_path, slurm, monkeypatch, delay, preexec_fn=default_signals
    )
    if delay == "0":
        time.sleep(0.3)
    process.send_signal(number)
    assert process.wait(20) == 130
    assert (tmp_path / "call.cancelled").read_text() == "77\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_slurm_cancels_its_jobs_when_the_recipe_is_killed(
    tmp_path, slurm, monkeypatch, number
):
    # The runner is a grandchild, as under espnet2.bin.launch, which is not killed.
    program = 'export SPEECHLLM_PID=$(hostname):$$; setsid "$@" & wait'
    before = ["bash", "-c", program, "-", "bash", "-c", '"$@"; :', "-"]
    recipe = start_slurm(tmp_path, slurm, monkeypatch, before=before)
    recipe.send_signal(number)
    recipe.wait(20)
    cancelled = tmp_path / "call.cancelled"
    wait_until(lambda: cancelled.exists() and cancelled.read_text() == "77\n")


@pytest.mark.parametrize("runner", [RUN, SLURM])
def test_nohup_keeps_a_runner_from_ending(tmp_path, slurm, runner):
    log = tmp_path / "a.log"
    words = [*runner, str(log), "bash", "-c", "echo begun; sleep 1.5; echo done"]
    process = subprocess.Popen(
        words, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    wait_until(lambda: log.exists() and "begun\n" in log.read_text())
    process.send_signal(signal.SIGHUP)
    assert process.wait(20) == 0
    assert "done\n" in log.read_text()


def test_slurm_reports_the_failed_job(tmp_path, slurm):
    log = tmp_path / "a.JOB.log"
    done = call(["JOB=1:2", log, "bash", "-c", "exit $((JOB == 2 ? 3 : 0))"], SLURM)
    assert done.returncode == 3
    assert f"1 of 2 jobs failed: status 3, log {tmp_path}/a.2.log" in done.stderr


def test_a_missing_sbatch_is_reported_in_one_line(tmp_path):
    done = call([tmp_path / "a.log", "true"], SLURM, env={"PATH": "/nowhere"})
    assert done.returncode == 2
    assert "sbatch is not installed here" in done.stderr
    assert "Traceback" not in done.stderr
