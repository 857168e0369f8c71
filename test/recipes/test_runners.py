"""Job runners utils/run.pl and slurm.pl: command line, logs, failures, kills."""

from __future__ import annotations

import os
import shutil
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
# Fake sbatch: runs the jobs of the array one after the other, notes their final states.
array=0-0
for word in "$@"; do
    case ${word} in
        --output=*) output=${word#*=} ;;
        --array=*) array=${word#*=} ;;
    esac
    script=${word}
done
echo "$@" > "${SBATCH_CALL}"
for ((task = ${array%-*}; task <= ${array#*-}; task++)); do
    state=COMPLETED
    SLURM_JOB_ID=77 SLURM_ARRAY_TASK_ID=${task} \\
        env ${CPUS:+SLURM_CPUS_PER_TASK="${CPUS}"} bash "${script}" \\
        > "${output//%a/${task}}" 2>&1 || state=FAILED
    echo "${task}|${state}|None" >> "${SBATCH_CALL}.states"
done
echo 77
"""

SLOW_SBATCH = """#!/usr/bin/env bash
# Fake sbatch whose number comes after ${SBATCH_DELAY} s, of a job that runs until it is
# cancelled.
echo "$@" > "${SBATCH_CALL}"
sleep "${SBATCH_DELAY}"
echo "N/A|RUNNING|None" > "${SBATCH_CALL}.states"
echo "77;cluster"
"""
SCANCEL = """#!/usr/bin/env bash
echo "$@" >> "${SBATCH_CALL}.cancelled"
echo "N/A|CANCELLED|None" > "${SBATCH_CALL}.states"
"""
SQUEUE = """#!/usr/bin/env bash
# Fake squeue: each call prints the next block of the states, the last one again.
read -r -d % block < "${SBATCH_CALL}.states"
printf '%s' "${block}"
case $(< "${SBATCH_CALL}.states") in
    *%*) sed -i '1,/%/d' "${SBATCH_CALL}.states" ;;
esac
"""
SINFO = """#!/usr/bin/env bash
case "$*" in
    "--noheader --format=%G --partition=gpu") echo "gpu:a100:4(S:0-1),mps:9 gpu:2" ;;
    "--noheader --format=%G"*) echo "(null)" ;;
    "--noheader --format=%c"*) printf '64\\n32\\n' ;;
esac
"""


def call(arguments: list, runner: list[str] = RUN, **options):
    words = [*runner, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Install fake Slurm programs; return the file that records sbatch's arguments."""
    folder = tmp_path / "bin"
    folder.mkdir()
    fakes = {"sbatch": SBATCH, "scancel": SCANCEL, "squeue": SQUEUE, "sinfo": SINFO}
    for name, content in fakes.items():
        (folder / name).write_text(content)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SBATCH_CALL", str(tmp_path / "call"))
    monkeypatch.delenv("SBATCH_PARTITION", raising=False)
    return tmp_path / "call"


def given_states(tmp_path, *blocks: str) -> None:
    """Have sbatch run nothing, and squeue print these states, one block per call."""
    states = "%\n".join(f"{block}\n" for block in blocks)
    (tmp_path / "given").write_text(states)
    (tmp_path / "bin/sbatch").write_text(
        '#!/usr/bin/env bash\necho "$@" > "${SBATCH_CALL}"\n'
        f'cp "{tmp_path}/given" "${{SBATCH_CALL}}.states"\necho 77\n'
    )


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


def test_a_file_that_is_not_a_log_is_kept(tmp_path):
    log = tmp_path / "train.log"
    log.write_text("diary\n")
    for words in (["echo", "one"], ["echo", "two"]):
        assert call([log, *words]).returncode == 0
    assert (tmp_path / "train.log.previous").read_text() == "diary\n"
    assert "two" in log.read_text() and "one" not in log.read_text()
    assert sorted(p.name for p in tmp_path.glob("train.log*")) == [
        "train.log", "train.log.previous",
    ]  # fmt: skip


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
        (["--count", "cores"], "--count takes gpus or cpus"),
        (["--count", "cpus", "log", "true"], "no command follows"),
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
    for word in ("--array=1-3", "--gres=gpu:1", "--mem=8G", "--cpus-per-task=4"):
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
    assert (
        f"1 of 2 jobs failed: status 3 (Slurm job 77_2: FAILED), log {tmp_path}/a.2.log"
    ) in done.stderr


def test_a_job_that_slurm_ended_is_reported_at_once(tmp_path, slurm):
    """Its log has no exit status; a requeued task is waited for."""
    running = "1|COMPLETED|None\n2|RUNNING|None\n3|PENDING|BeginTime"
    ended = "2|TIMEOUT|None\n3|COMPLETED|None"  # task 1 was forgotten since
    given_states(tmp_path, running, ended)
    for job, end in (
        (1, "# Ended (code 0)"),
        (2, "error: late"),
        (3, "# Ended (code 0)"),
    ):
        (tmp_path / f"log.{job}").write_text(f"# Started at 9\nwork\n{end}\n")
    program = (
        f'for job in 1 2 3; do cp "{tmp_path}/log.$job" "{tmp_path}/a.$job.log"; done\n'
    )
    with open(tmp_path / "bin/sbatch", "a") as stream:
        stream.write(program)
    begin = time.monotonic()
    done = call(["JOB=1:3", tmp_path / "a.JOB.log", "true"], SLURM)
    assert time.monotonic() - begin < 10
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "slurm.pl: 1 of 3 jobs failed: status 1 (Slurm job 77_2: TIMEOUT), log "
        f"{tmp_path}/a.2.log",
        "slurm.pl: error: late",
    ]


def test_a_requeued_job_counts_from_its_last_start(tmp_path, slurm):
    given_states(tmp_path, "N/A|REQUEUED|None", "N/A|PENDING|x", "N/A|COMPLETED|None")
    log = "# Started at 9\n# Ended (code 143)\n# a\n# Started at 10\n# Ended (code 0)\n"
    (tmp_path / "given.log").write_text(log)
    with open(tmp_path / "bin/sbatch", "a") as stream:
        stream.write(f'cp "{tmp_path}/given.log" "{tmp_path}/a.log"\n')
    done = call([tmp_path / "a.log", "true"], SLURM)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--open-mode=append" in slurm.read_text()


def test_a_rejected_job_is_an_error(tmp_path, slurm):
    program = "#!/bin/sh\necho sbatch: error: no partition >&2\nexit 1\n"
    (tmp_path / "bin/sbatch").write_text(program)
    done = call([tmp_path / "a.log", "true"], SLURM)
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert first == "sbatch: error: no partition"
    assert second.startswith("slurm.pl: error: sbatch --job-name=a --parsable ")
    assert second.endswith("failed, status 1; its message is above")


@pytest.mark.parametrize(
    ("options", "cpus", "threads"),
    [
        (["--num_threads", "6"], "6", "6"),
        (["--num_threads", "6", "--gpu", "2"], "6", "3"),
        (["--gpu", "2"], "", "1"),
    ],
)
def test_threads_of_a_slurm_job_are_its_cpus(
    tmp_path, slurm, monkeypatch, options, cpus, threads
):
    monkeypatch.setenv("OMP_NUM_THREADS", "128")  # of the login node
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "64")  # of a job that submits this one
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "64")
    monkeypatch.setenv("SLURM_KILL_BAD_EXIT", "1")  # an option of srun
    monkeypatch.setenv("CPUS", cpus)
    words = ["bash", "-c", "echo threads=$OMP_NUM_THREADS $SLURM_KILL_BAD_EXIT"]
    done = call([*options, tmp_path / "a.log", *words], SLURM)
    assert done.returncode == 0, done.stderr
    assert f"\nthreads={threads} 1\n" in (tmp_path / "a.log").read_text()


@pytest.mark.parametrize(
    ("options", "jobs", "each"),
    [([], 1, 1), ([], 2, 2), (["--max_jobs_run", "1"], 3, 1), (["--gpu", "4"], 1, 4)],
)
def test_local_jobs_share_the_cores(tmp_path, monkeypatch, options, jobs, each):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    words = [
        f"JOB=1:{jobs}",
        tmp_path / "a.JOB.log",
        "bash",
        "-c",
        "echo $OMP_NUM_THREADS",
    ]
    assert call([*options, *words]).returncode == 0
    expected = max(cores // min(each, cores), 1) if "--gpu" not in options else 0
    expected = expected or max(cores // each, 1)
    assert f"\n{expected}\n" in (tmp_path / "a.1.log").read_text()
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert call([*options, *words]).returncode == 0
    assert "\n7\n" in (tmp_path / "a.1.log").read_text()


ESPNET_CONFIG = """# Default configuration
command sbatch --export=PATH
option name=* --job-name $0
default time=48:00:00
option time=* --time $0
option mem=* --mem-per-cpu $0
option mem=0
option num_threads=* --cpus-per-task $0
option num_threads=1 --cpus-per-task 1
option num_nodes=* --nodes $0
default gpu=0
option gpu=0 -p cpu
option gpu=* -p gpu --gres=gpu:$0 -c $0  # Recommend allocating more CPU than GPUs
option qos=* --qos=$0
"""


def write_config(folder: Path, content: str) -> Path:
    (folder / "conf").mkdir()
    (folder / "conf/slurm.conf").write_text(content)
    return folder


def test_jobs_without_gpu_go_to_the_cpu_partition_of_the_readmes_config(
    tmp_path, slurm
):
    readme = (UTILS.parents[1] / "README.md").read_text("utf-8")
    start = readme.index("    command sbatch --account")
    example = readme[start : readme.index("\n\n", start)]
    folder = write_config(tmp_path, example)
    for options, words in (
        ([], "--time=48:00:00 --partition=cpu --job-name=a"),
        (["--gpu", "0"], "--time=48:00:00 --partition=cpu --job-name=a"),
        (["--gpu", "2"], "--time=48:00:00 --partition=gpu --gres=gpu:2 --job-name=a"),
    ):
        done = call([*options, "a.log", "true"], SLURM, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert slurm.read_text().startswith(f"--account=my_project {words}")


def test_a_config_of_espnet(tmp_path, slurm):
    """The file of ESPnet's recipes (TEMPLATE/asr1/conf/slurm.conf), and an option."""
    folder = write_config(tmp_path, ESPNET_CONFIG)
    done = call(["--mem", "0", "--qos", "high", "a.log", "true"], SLURM, cwd=folder)
    assert done.returncode == 0, done.stderr
    words = "--export=PATH --time 48:00:00 -p cpu --job-name a --qos=high --parsable"
    assert slurm.read_text().startswith(words)
    # PATH alone would leave the jobs without the recipe's environment
    assert slurm.read_text().index("--export=ALL") > slurm.read_text().index("=PATH")
    options = ["--mem", "4G", "--num_threads", "1", "--gpu", "2", "--time", "1:00"]
    done = call([*options, "a.log", "true"], SLURM, cwd=folder)
    assert done.returncode == 0, done.stderr
    words = "--time 1:00 -p gpu --gres=gpu:2 -c 2 --job-name a --mem-per-cpu 4G "
    words += "--cpus-per-task 1 --parsable"
    assert words in slurm.read_text()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "option mem",
            "'option mem' is not one of: command sbatch …, option NAME=VALUE",
        ),
        ("opts mem=* --mem=$0", "'opts mem=* --mem=$0' is not one of: "),
        ("command qsub -v PATH", "'command qsub -v PATH' is not one of: "),
        ("default gpu=0 -p cpu", "'default gpu=0 -p cpu' is not one of: "),
        ("option mem=* 'x", "a quote is not closed"),
    ],
)
def test_an_invalid_line_of_the_config_is_named(tmp_path, slurm, line, message):
    folder = write_config(tmp_path, f"command sbatch\n\n{line}\n")
    done = call(["a.log", "true"], SLURM, cwd=folder)
    assert done.returncode == 2 and not slurm.exists()
    assert len(done.stderr.splitlines()) == 1
    assert f"slurm.pl: error: conf/slurm.conf:3: {message}" in done.stderr


def test_the_partition_decides_on_gpus(tmp_path, slurm, monkeypatch):
    folder = write_config(tmp_path, "option gpu=* -p gpu --gres=gpu:$0\n")
    assert call(["--count", "gpus"], SLURM, cwd=folder).stdout == "4\n"
    assert call(["--count", "cpus"], SLURM, cwd=folder).stdout == "32\n"
    (folder / "conf/slurm.conf").unlink()
    assert call(["--count", "gpus"], SLURM, cwd=folder).stdout == "0\n"
    for options in (["-p", "gpu"], ["--partition", "gpu"]):
        (folder / "conf/slurm.conf").write_text(f"command sbatch {' '.join(options)}\n")
        assert call(["--count", "gpus"], SLURM, cwd=folder).stdout == "4\n"
    (folder / "conf/slurm.conf").unlink()
    monkeypatch.setenv("SBATCH_PARTITION", "gpu")
    assert call(["--count", "gpus"], SLURM, cwd=folder).stdout == "4\n"
    (tmp_path / "bin/sinfo").write_text("#!/bin/sh\nexit 1\n")
    done = call(["--count", "gpus"], SLURM, cwd=folder)
    assert done.returncode == 2
    assert done.stderr == (
        "slurm.pl: error: sinfo --noheader --format=%G --partition=gpu failed, status "
        "1\n"
    )
    (tmp_path / "bin/sinfo").unlink()
    if shutil.which("sinfo") is None:
        done = call(["--count", "gpus"], SLURM, cwd=folder)
        assert done.returncode != 0
        assert done.stderr == (
            "slurm.pl: error: sinfo is not installed here; set cmd_backend=local in "
            "cmd.sh\n"
        )


@pytest.fixture
def three_gpus(tmp_path, monkeypatch):
    """Install a fake nvidia-smi."""
    (tmp_path / "smi").mkdir()
    listing = "".join(f"GPU {i}: NVIDIA A100 (UUID: GPU-{i})\\n" for i in range(3))
    program = f"#!/bin/sh\ntest \"$*\" = -L && printf '{listing}'\n"
    (tmp_path / "smi/nvidia-smi").write_text(program)
    (tmp_path / "smi/nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/smi:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("visible", "gpus", "allowed"),
    [(None, 1, {"0", "1", "2"}), ("5,GPU-b", 1, {"5", "GPU-b"}), (None, 2, {"0,1"})],
)
def test_parallel_jobs_have_gpus_of_their_own(
    tmp_path, three_gpus, monkeypatch, visible, gpus, allowed
):
    """More jobs than GPUs wait for one; no two jobs have the same one at a time."""
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    program = """
        mkdir "gpu-$CUDA_VISIBLE_DEVICES" || exit 1  # fails if another job has it
        echo "gpu=$CUDA_VISIBLE_DEVICES"
        sleep 0.4
        rmdir "gpu-$CUDA_VISIBLE_DEVICES"
    """
    words = ["--gpu", gpus, "JOB=1:7", "log/a.JOB.log", "bash", "-c", program]
    done = call(words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    logs = [(tmp_path / f"log/a.{job}.log").read_text() for job in range(1, 8)]
    assert {log.split("\ngpu=")[1].split("\n")[0] for log in logs} == allowed
    count = len((visible or "0,1,2").split(","))
    assert call(["--count", "gpus"]).stdout == f"{count}\n"


def test_without_enough_gpus_no_job_is_started(tmp_path, three_gpus):
    done = call(["--gpu", 4, "JOB=1:2", "a.JOB.log", "touch", "b"], cwd=tmp_path)
    message = "run.pl: error: a job requires 4 GPUs, but only 3 are visible\n"
    assert (done.returncode, done.stderr) == (2, message)
    assert not (tmp_path / "b").exists()


def test_a_missing_sbatch_is_reported_in_one_line(tmp_path):
    done = call([tmp_path / "a.log", "true"], SLURM, env={"PATH": "/nowhere"})
    assert done.returncode == 2
    assert "sbatch is not installed here" in done.stderr
    assert "Traceback" not in done.stderr
