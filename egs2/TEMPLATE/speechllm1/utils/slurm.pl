#!/usr/bin/env python3
"""Run jobs on a Slurm cluster; replaces Kaldi's slurm.pl (command line: jobs.py).

The name ends in .pl because espnet2.bin.launch supports several machines only with a
runner of that name. The jobs are submitted as one array with ``sbatch --wait``. They are
cancelled when this program is interrupted, or its caller or the recipe ends. Set further
options of the cluster (account, quality of service, …) in sbatch's environment variables,
such as ``SBATCH_ACCOUNT``. Log folders must be on shared storage.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from jobs import Request, parse, report_failures, run, stop, watch_caller, write

POLL_SECONDS = 0.5
NUMBER_SECONDS = 10  # for sbatch to print the job's number after an interrupt
SHARED_STORAGE_SECONDS = 60
TASK = "${SLURM_ARRAY_TASK_ID}"


def batch_script(request: Request) -> str:
    """Return the batch script of the array's jobs."""
    quoted = None if request.variable is None else f"'\"{TASK}\"'"
    line = request.shell_line(TASK, quoted)
    shown = shlex.quote("# " + " ".join(line.splitlines()))
    return f"""#!/usr/bin/env bash
printf '%s\\n' {shown}
echo "# Started at $(date) on $(hostname), Slurm job ${{SLURM_JOB_ID}}"
echo "#"
start=$(date +%s)
set -o pipefail
{line}
code=$?
echo "# Ended (code ${{code}}) at $(date), elapsed $(($(date +%s) - start)) s"
exit "${{code}}"
"""


def sbatch_command(request: Request, script: Path) -> list[str]:
    """Return the ``sbatch`` command line for a request."""
    log = request.with_job(request.log.replace("%", "%%"), "%a")
    folder = "" if Path(log).is_absolute() else f"{Path.cwd()}/".replace("%", "%%")
    words = ["sbatch", "--parsable", "--wait", "--open-mode=truncate"]
    words += ["--export=ALL", f"--job-name={request.options.get('name', script.stem)}"]
    words.append(f"--output={folder}{log}")
    if request.variable is not None:
        at_once = request.number("max_jobs_run", 0)
        limit = f"%{at_once}" if at_once else ""
        words.append(f"--array={request.first}-{request.last}{limit}")
    if request.number("gpu", 0):
        words.append(f"--gres=gpu:{request.number('gpu', 0)}")
    names = {"mem": "mem", "time": "time", "partition": "partition"}
    names |= {"num_threads": "cpus-per-task", "num_nodes": "nodes"}
    for name, sbatch_name in names.items():
        if name in request.options:
            words.append(f"--{sbatch_name}={request.options[name]}")
    return [*words, str(script)]


def failures(request: Request) -> dict[int, int]:
    """Return the status of each job whose log does not end with code 0.

    Waits for logs that shared storage does not show yet.
    """
    failed = {}
    limit = time.monotonic() + SHARED_STORAGE_SECONDS
    for job in request.jobs:
        while True:
            try:
                text = request.log_of(job).read_text(encoding="utf-8", errors="replace")
            except OSError:
                text = ""
            _, found, code = text.rpartition("# Ended (code ")
            if found or time.monotonic() > limit:
                break
            time.sleep(1)
        if not found:
            failed[job] = 1
        elif not code.startswith("0)"):
            failed[job] = int(code.split(")")[0])
    return failed


class Submission:
    """A running ``sbatch --wait``, which prints the number of the Slurm job first."""

    def __init__(self, words: list[str]) -> None:
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE)
        self.output = b""
        os.set_blocking(self.process.stdout.fileno(), False)

    @property
    def number(self) -> str:
        """Number of the Slurm job; empty if there is none yet."""
        first, line_end, _ = self.output.partition(b"\n")
        return first.decode().strip().split(";")[0] if line_end else ""

    def ended(self) -> bool:
        """Read what sbatch has printed; return True if it has ended."""
        ended = self.process.poll() is not None
        self.output += self.process.stdout.read() or b""
        return ended

    def cancel(self) -> None:
        """Cancel the job, also if its number is only now printed."""
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        limit = time.monotonic() + NUMBER_SECONDS
        while not self.ended() and not self.number and time.monotonic() < limit:
            time.sleep(POLL_SECONDS)
        if self.number:
            subprocess.run(["scancel", self.number], check=False)
        else:
            self.process.terminate()


def main() -> int:
    request = parse(sys.argv[1:])
    for job in request.jobs:
        request.log_of(job).parent.mkdir(parents=True, exist_ok=True)
        request.log_of(job).unlink(missing_ok=True)
    name = Path(request.with_job(request.log, "")).name.replace("..", ".")
    script = request.log_of(request.first).parent / "q" / f"{Path(name).stem}.sh"
    script.parent.mkdir(exist_ok=True)
    write(script, "w", batch_script(request))

    gone = watch_caller()
    words = sbatch_command(request, script)
    try:
        submission = Submission(words)
    except FileNotFoundError:
        stop("sbatch is not installed here; set cmd_backend=local in cmd.sh")
    try:
        while not submission.ended():
            if gone():
                raise KeyboardInterrupt
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        submission.cancel()
        return 130
    code = submission.process.returncode
    if not submission.number:
        print(f"slurm.pl: {shlex.join(words)} failed, status {code}", file=sys.stderr)
        return code or 1
    failed = failures(request)
    if failed:
        report_failures(request, failed)
        return failed[min(failed)]
    if code:
        message = f"slurm.pl: Slurm job {submission.number} ended with {code}"
        print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    run(main)
