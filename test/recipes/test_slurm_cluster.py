"""slurm.pl and a whole recipe on the real cluster of tools/test_slurm.sh."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import alive, wait_until
from recipe_clone import ROOT
from test_whole_recipe import SETS, Recipe
from warm_python import warm_python

UTILS = ROOT / "egs2/TEMPLATE/speechllm1/utils"
SLURM = [sys.executable, str(UTILS / "slurm.pl")]
SCRIPT = ROOT / "tools/test_slurm.sh"


def start_cluster() -> tuple[subprocess.Popen, str]:
    """Start a cluster that ends when its standard input ends; return its SLURM_CONF."""
    if not shutil.which("sbatch") or not shutil.which("mungekey"):
        pytest.skip("no Slurm on this machine; apt-get install slurm-wlm munge")
    process = subprocess.Popen(
        [SCRIPT, "bash", "-c", 'echo "${SLURM_CONF}"; exec cat'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    config = process.stdout.readline().strip()
    assert config, "the cluster has not started; its message is above"
    return process, config


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    process, config = start_cluster()
    yield config
    process.stdin.close()
    process.wait(30)
    assert processes_of(config) == [] and not Path(config).exists()


@pytest.fixture
def folder(cluster, tmp_path, monkeypatch) -> Path:
    """Return an empty recipe folder, which is the working folder."""
    monkeypatch.setenv("SLURM_CONF", cluster)
    monkeypatch.setenv("OMP_NUM_THREADS", "128")  # as on a login node
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf").mkdir()
    return tmp_path


def processes_of(config: str) -> list[int]:
    """Return the processes of a cluster, its jobs included."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"SLURM_CONF={config}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            pass
    return found


def start(*words: object, before: tuple = (), **options) -> subprocess.Popen:
    return subprocess.Popen(
        [*before, *SLURM, *map(str, words)],
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def end(process: subprocess.Popen, seconds: float = 120) -> tuple[int, list[str]]:
    """Return a runner's status and the lines of its standard error."""
    _, errors = process.communicate(timeout=seconds)
    return process.returncode, errors.splitlines()


def pid_in(path: Path) -> int:
    """Wait for the process id that a job writes."""
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"), 60)
    return int(path.read_text())


@pytest.mark.slow
def test_tasks_that_fail_and_are_cancelled_are_named(folder):
    program = """
        case JOB in
            2) echo "error: no file x"; exit 7 ;;
            3) scancel "${SLURM_ARRAY_JOB_ID}_3"; exec sleep 60 ;;
        esac
    """
    runner = start("JOB=1:3", "log/a.JOB.log", "bash", "-c", program)
    code, (first, second, *reasons) = end(runner)
    assert code == 7
    assert first.startswith("slurm.pl: 2 of 3 jobs failed: status 7 (Slurm job ")
    assert first.endswith("_2: FAILED), log log/a.2.log")
    assert second.startswith("slurm.pl: and: status ")
    assert second.endswith("_3: CANCELLED), log log/a.3.log")
    assert reasons == ["slurm.pl: error: no file x"]
    assert "# Ended (code 0)" in Path("log/a.1.log").read_text()


@pytest.mark.slow
def test_jobs_have_the_cpus_and_gpus_that_were_requested(folder):
    config = "command sbatch --export=PATH -p main\noption gpu=* --gres=gpu:$0 -c 2\n"
    Path("conf/slurm.conf").write_text(config)
    program = "echo $SECRET $OMP_NUM_THREADS $CUDA_VISIBLE_DEVICES > JOB; exec sleep 3"
    words = ["--gpu", 1, "JOB=1:2", "log/a.JOB.log", "bash", "-c", program]
    code, errors = end(start(*words, env={**os.environ, "SECRET": "word"}))
    assert (code, errors) == (0, [])
    found = {Path(name).read_text() for name in ("1", "2")}
    assert found == {"word 2 0\n", "word 2 1\n"}  # at the same time
    count = [*SLURM, "--count", "gpus"]
    for words, gpus in (([], "2\n"), (["--partition", "down"], "0\n")):
        Path("conf/slurm.conf").unlink(missing_ok=True)
        done = subprocess.run(count + words, capture_output=True, text=True, check=True)
        assert done.stdout == gpus


@pytest.mark.slow
def test_a_job_on_two_machines_has_a_process_on_each(folder):
    """As ESPnet's launcher starts a training with --num_nodes 2 (srun)."""
    program = "echo $SLURM_PROCID $SLURM_NTASKS $SLURMD_NODENAME $OMP_NUM_THREADS"
    words = ["srun", "--export=ALL", "bash", "-c", program]
    code, errors = end(start("--num_threads", 2, "--num_nodes", 2, "a.log", *words))
    assert (code, errors) == (0, [])
    lines = set(Path("a.log").read_text().splitlines())
    assert {"0 2 n1 2", "1 2 n2 2"} <= lines


@pytest.mark.slow
def test_requeued_jobs_continue(folder):
    """By an administrator, and by the signal before the end of the time limit."""
    again = "test ! -e JOB.done || exit 0; touch JOB.done; "
    program = again + 'scontrol requeue "${SLURM_JOB_ID}"; exec sleep 60'
    runners = [start("JOB=1:1", "log/a.JOB.log", "bash", "-c", program)]
    wait_until(Path("1.done").exists, 60)
    # SIGUSR1 ten seconds after the start
    Path("conf/slurm.conf").write_text("command sbatch --signal=B:USR1@50\n")
    program = again + "trap 'echo saved; exit 3' USR1; while :; do sleep 0.2; done"
    words = ["--time", "1", "JOB=2:2", "log/a.JOB.log", "bash", "-c", program]
    runners.append(start(*words))
    for runner in runners:
        assert end(runner, 300) == (0, [])
    first, second = (Path(f"log/a.{job}.log").read_text() for job in (1, 2))
    for log in (first, second):
        assert log.count("# Started at") == 2
        assert log.rstrip().splitlines()[-1].startswith("# Ended (code 0)")
    assert "saved\n\n# Ended (code 3)" in second and "# Requeued after" in second


@pytest.mark.slow
def test_jobs_end_with_the_submitting_shell(folder):
    """They may finish their work after SIGTERM, and the runner waits for them."""
    shell = f'. "{UTILS}/end_children.sh"; export SPEECHLLM_PID=$(hostname):$$; "$@"; :'
    job = "trap 'sleep 2; echo saved; exit 1' TERM; echo $$ > JOB.pid; "
    job += "while :; do sleep 0.2; done"
    signals = (signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
    shells = [
        start(
            f"JOB={number}:{number}",
            *("log/a.JOB.log", "bash", "-c", job),
            before=("bash", "-c", shell, "-"),
            # a test run may have been started with nohup
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )
        for number in signals
    ]
    jobs = [pid_in(Path(f"{int(number)}.pid")) for number in signals]
    for number, process in zip(signals, shells, strict=True):
        process.send_signal(number)
        process.wait(20)
    wait_until(lambda: not any(map(alive, jobs)), 30)
    for number in signals:
        assert "saved" in Path(f"log/a.{int(number)}.log").read_text()
    left = ["squeue", "--noheader", "--states=RUNNING,PENDING,COMPLETING"]
    wait_until(lambda: not subprocess.run(left, capture_output=True).stdout, 30)


@pytest.mark.slow
def test_a_job_whose_node_fails_is_noticed(folder):
    """Its log has no exit status."""
    Path("conf/slurm.conf").write_text("command sbatch --no-requeue\n")
    runner = start("a.log", "bash", "-c", "echo $$ > pid; exec sleep 600")
    pid = pid_in(Path("pid"))
    parents = [pid]
    for _ in range(2):  # its batch script, slurmstepd
        status = Path(f"/proc/{parents[-1]}/status").read_text()
        parents.append(int(status.split("PPid:")[1].split()[0]))
    assert b"slurmstepd" in Path(f"/proc/{parents[-1]}/cmdline").read_bytes()
    for process in reversed(parents):
        os.kill(process, signal.SIGKILL)
    query = ["squeue", "--noheader", "--format=%N"]
    node = subprocess.check_output(query, text=True).strip()
    update = ["scontrol", "update", f"NodeName={node}"]
    subprocess.run([*update, "State=DOWN", "Reason=test"], check=True)
    try:
        code, errors = end(runner)
    finally:
        subprocess.run([*update, "State=RESUME"], check=False)  # it may be up again
    assert code == 1
    assert errors[0].endswith(": NODE_FAIL), log a.log")
    assert "# Ended" not in Path("a.log").read_text()


@pytest.mark.slow
def test_a_whole_recipe(folder, tiny_whisper, tiny_llm):
    models = {"whisper": tiny_whisper, "llm": tiny_llm}
    with warm_python(HF_HUB_OFFLINE="1", cmd_backend="slurm") as environment:
        recipe = Recipe(folder, environment, models)
        rules = "option num_threads=* --cpus-per-task=1\n"
        (recipe.folder / "conf/slurm.conf").write_text(rules)
        options = ["--second_config", "", "--train_args", "--max_epoch 1"]
        output = recipe.run(*options, "--inference_nj", "2")
    assert output.count(": done in ") == 11
    experiment = recipe.folder / "my exp/speechllm_my train"
    text = (experiment / "decode_my decode/test/text").read_text()
    assert len(text.splitlines()) == 2 * SETS["test"]
    for name in ("train.log", "decode_my decode/test/log/decode.2.log"):
        log = (experiment / name).read_text()
        assert ", Slurm job " in log and "# Ended (code 0)" in log


@pytest.mark.slow
def test_a_killed_cluster_ends_its_jobs_and_itself(tmp_path, monkeypatch):
    process, config = start_cluster()
    monkeypatch.setenv("SLURM_CONF", config)
    runner = start(
        tmp_path / "a.log", "bash", "-c", f"echo $$ > {tmp_path}/pid; sleep 600"
    )
    job = pid_in(tmp_path / "pid")
    runner.kill()
    runner.communicate()
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not alive(job) and not processes_of(config), 30)
    wait_until(lambda: not Path(config).parent.exists())


def test_missing_programs_are_named_in_one_line():
    done = subprocess.run(
        [shutil.which("bash"), SCRIPT, "true"],
        capture_output=True,
        text=True,
        env={"PATH": "/nowhere"},
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("test_slurm.sh: error: not installed: ")
    assert "sbatch" in line and line.endswith("; apt-get install slurm-wlm munge")
