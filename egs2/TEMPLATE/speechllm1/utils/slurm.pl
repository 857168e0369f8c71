#!/usr/bin/env python3
"""Run jobs on a Slurm cluster; replaces Kaldi's slurm.pl (command line: jobs.py).

The name ends in .pl because espnet2.bin.launch supports several machines only with a
runner of that name. The jobs are submitted as one array, and ``squeue`` reports their
states. They are cancelled when this program is interrupted, or its caller or the
recipe ends. ``conf/slurm.conf`` of the recipe has the cluster's options
(slurm_options.py), and sbatch's environment variables, such as ``SBATCH_ACCOUNT``, have
effect. Log folders must be on shared storage.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from jobs import (
    OPERATORS,
    Request,
    keep_other_file,
    parse,
    report_failures,
    run,
    stop,
    watch_caller,
    write,
)
from slurm_options import ConfigError, SlurmOptions, count_in_partition

POLL_SECONDS = (1.0, 15.0)  # between calls of squeue: a tenth of the time so far
PENDING_SECONDS = 60  # then the reason of the waiting is printed
NUMBER_SECONDS = 10  # for sbatch to print the job's number after an interrupt
CANCEL_SECONDS = 60  # for cancelled jobs to end
SHARED_STORAGE_SECONDS = 60
TASK = "${SLURM_ARRAY_TASK_ID}"
KEPT_VARIABLES = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_KILL_BAD_EXIT")
FINAL = set(
    "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED "
    "REVOKED TIMEOUT".split()
)


def batch_script(request: Request) -> str:
    """Return the batch script of the array's jobs.

    A process of the job (one per GPU) has its share of the job's CPUs. Slurm sends
    SIGTERM to all processes of a job before it kills them; the script waits for the
    command. It passes on the SIGUSR1 of ``sbatch --signal=B:USR1@SECONDS`` to a command
    without shell operators, and then requeues the job if the command ends with an error.
    """
    quoted = None if request.variable is None else f"'\"{TASK}\"'"
    line = request.shell_line(TASK, quoted)
    shown = shlex.quote("# " + " ".join(line.splitlines()))
    if OPERATORS & set(request.command):
        line = f"trap '' USR1; {line}"
    else:
        line = f"exec {line}"
    processes = max(request.number("gpu", 0), 1)
    return f"""#!/usr/bin/env bash
printf '%s\\n' {shown}
echo "# Started at $(date) on $(hostname), Slurm job ${{SLURM_JOB_ID}}"
echo "#"
start=$(date +%s)
cpus=${{SLURM_CPUS_PER_TASK:-${{SLURM_CPUS_ON_NODE:-1}}}}
export SRUN_CPUS_PER_TASK=${{cpus}}
export OMP_NUM_THREADS=$((cpus > {processes} ? cpus / {processes} : 1))
set -o pipefail
signalled=
requeue=
trap '' TERM
( trap - TERM; {line} ) &
child=$!
trap 'signalled=1 requeue=1; kill -USR1 "${{child}}"' USR1
while wait "${{child}}"; code=$?; [ -n "${{signalled}}" ]; do signalled=; done
printf '\\n'
echo "# Ended (code ${{code}}) at $(date), elapsed $(($(date +%s) - start)) s"
if [ -n "${{requeue}}" ] && [ "${{code}}" -ne 0 ]; then
    echo "# Requeued after SIGUSR1"
    scontrol requeue "${{SLURM_JOB_ID}}"
fi
exit "${{code}}"
"""


def sbatch_command(request: Request, words: list[str], script: Path) -> list[str]:
    """Return the ``sbatch`` command line, which begins with these words."""
    log = request.with_job(request.log.replace("%", "%%"), "%a")
    folder = "" if Path(log).is_absolute() else f"{Path.cwd()}/".replace("%", "%%")
    # A requeued job continues its log. Its environment is that of this program.
    words = [*words, "--parsable", "--open-mode=append", "--export=ALL"]
    words.append(f"--output={folder}{log}")
    if request.variable is not None:
        at_once = request.number("max_jobs_run", 0)
        limit = f"%{at_once}" if at_once else ""
        words.append(f"--array={request.first}-{request.last}{limit}")
    return [*words, str(script)]


def submit(words: list[str], gone: Callable[[], bool]) -> str:
    """Return the number of the submitted job; cancel it if interrupted meanwhile."""
    # Variables of a job in which the recipe itself runs are not those of the new job.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SLURM_") or name in KEPT_VARIABLES
    }
    try:
        # A session of its own, so that Ctrl-C does not end it halfway.
        process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
    except FileNotFoundError:
        stop(f"{words[0]} is not installed here; set cmd_backend=local in cmd.sh")
    output = None
    try:
        while output is None:
            if gone():
                raise KeyboardInterrupt
            try:
                output, _ = process.communicate(timeout=1)
            except subprocess.TimeoutExpired:
                pass
    except KeyboardInterrupt:
        ignore_signals()
        try:
            output, _ = process.communicate(timeout=NUMBER_SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()
            output, _ = process.communicate()
        if output:
            cancel(job_number(output))
        raise
    if process.returncode:
        command = shlex.join(words)
        stop(f"{command} failed, status {process.returncode}; its message is above")
    return job_number(output)


def job_number(output: str) -> str:
    """Return the number in the output of ``sbatch --parsable``."""
    return output.split("\n")[0].split(";")[0].strip()


def task_states(number: str) -> dict[int, tuple[str, str]] | None:
    """Return the state and reason of the tasks; a job without an array has task 0.

    Slurm forgets tasks some time after their end (``MinJobAge``).

    Returns:
        Task to (state, reason); None if the controller does not answer.
    """
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={number}"]
    command.append("--format=%K|%T|%r")
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, start_new_session=True
    )
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    found = {}
    for line in done.stdout.splitlines():
        task, state, reason = line.split("|", 2)
        found[int(task) if task.isdigit() else 0] = (state, reason)
    return found


def wait_for_end(number: str, gone: Callable[[], bool]) -> dict[int, str]:
    """Wait until all tasks have ended; return the final states that Slurm still knows.

    Raises:
        KeyboardInterrupt: the caller has ended.
    """
    final: dict[int, str] = {}
    begin = pending_since = time.monotonic()
    shown = ""
    answered = True
    while True:
        wait = min(
            max((time.monotonic() - begin) / 10, POLL_SECONDS[0]), POLL_SECONDS[1]
        )
        end = time.monotonic() + wait
        while time.monotonic() < end:
            if gone():
                raise KeyboardInterrupt
            time.sleep(0.5)
        found = task_states(number)
        if found is None:
            if answered:
                note(f"squeue does not answer about Slurm job {number}; waiting")
            answered = False
            continue
        answered = True
        final |= {task: state for task, (state, _) in found.items() if state in FINAL}
        left = [both for both in found.values() if both[0] not in FINAL]
        if not left:
            return final
        if any(state != "PENDING" for state, _ in left):
            pending_since, shown = time.monotonic(), ""
        elif time.monotonic() - pending_since > PENDING_SECONDS and left[0][1] != shown:
            shown = left[0][1]
            note(f"Slurm job {number} is pending: {shown} (scancel {number} ends it)")


def cancel(number: str) -> None:
    """Cancel the job and wait for the end of its processes."""
    ignore_signals()
    subprocess.run(["scancel", number], check=False)
    limit = time.monotonic() + CANCEL_SECONDS
    while time.monotonic() < limit:
        states = task_states(number)
        if states is not None and {state for state, _ in states.values()} <= FINAL:
            return
        time.sleep(1)


def ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def note(message: str) -> None:
    print(f"slurm.pl: {message}", file=sys.stderr, flush=True)


def failures(
    request: Request, number: str, states: dict[int, str]
) -> tuple[dict[int, int], dict[int, str]]:
    """Return the status of each failed job, and what Slurm says about it.

    The states decide, and the logs where Slurm has forgotten the job. Waits for logs
    that shared storage does not show yet.
    """
    failed, notes = {}, {}
    limit = time.monotonic() + SHARED_STORAGE_SECONDS
    for job in request.jobs:
        task = 0 if request.variable is None else job
        state = states.get(task, "unknown to Slurm")
        code = exit_code(request.log_of(job))
        killed = state in FINAL - {"COMPLETED", "FAILED"}
        while code is None and not killed and time.monotonic() < limit:
            time.sleep(1)
            code = exit_code(request.log_of(job))
        if code == 0 and not killed and state != "FAILED":
            continue
        failed[job] = code or 1
        name = number if request.variable is None else f"{number}_{job}"
        notes[job] = f"Slurm job {name}: {state}"
        if code is None and state == "COMPLETED":
            notes[job] += ", but its log is not complete (is the folder shared?)"
    return failed, notes


def exit_code(log: Path) -> int | None:
    """Return the exit code at the end of a log; None if it is not there (yet)."""
    try:
        with open(log, "rb") as stream:
            stream.seek(max(stream.seek(0, os.SEEK_END) - 500, 0))
            end = stream.read().rpartition(b"\n# Started at ")[2]
    except OSError:
        return None
    codes = re.findall(rb"^# Ended \(code (\d+)\)", end, re.MULTILINE)
    return int(codes[-1]) if codes else None


def main() -> int:
    try:
        rules = SlurmOptions()
        request = parse(sys.argv[1:], rules.names)
        if request.count:
            words = rules.words({"gpu": "1"} | request.options)
            print(count_in_partition(request.count, words))
            return 0
        log = Path(request.with_job(request.log, "")).name.replace("..", ".")
        words = rules.words({"name": Path(log).stem} | request.options)
    except ConfigError as error:
        stop(str(error))
    except subprocess.CalledProcessError as error:
        stop(f"{shlex.join(error.cmd)} failed, status {error.returncode}")
    except FileNotFoundError as error:
        stop(f"{error.filename} is not installed here; set cmd_backend=local in cmd.sh")
    for job in request.jobs:
        request.log_of(job).parent.mkdir(parents=True, exist_ok=True)
        keep_other_file(request.log_of(job))
        request.log_of(job).unlink(missing_ok=True)
    script = request.log_of(request.first).parent / "q" / f"{Path(log).stem}.sh"
    script.parent.mkdir(exist_ok=True)
    write(script, "w", batch_script(request))

    gone = watch_caller()
    try:
        number = submit(sbatch_command(request, words, script), gone)
        try:
            states = wait_for_end(number, gone)
        except KeyboardInterrupt:
            cancel(number)
            raise
    except KeyboardInterrupt:
        return 130
    failed, notes = failures(request, number, states)
    if failed:
        report_failures(request, failed, notes)
        return failed[min(failed)]
    return 0


if __name__ == "__main__":
    run(main)
