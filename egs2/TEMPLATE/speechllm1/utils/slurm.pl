#!/usr/bin/env python3
"""Run jobs on a Slurm cluster; replaces Kaldi's slurm.pl (command line: jobs.py).

The name ends in .pl because espnet2.bin.launch supports several machines only with a
runner of that name. The jobs are submitted as one array with ``sbatch --wait``. Set
further options of the cluster (account, quality of service, …) in sbatch's environment
variables, such as ``SBATCH_ACCOUNT``. Log folders must be on shared storage.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from jobs import Request, parse, report_failures, run, stop, write

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


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    request = parse(sys.argv[1:])
    for job in request.jobs:
        request.log_of(job).parent.mkdir(parents=True, exist_ok=True)
        request.log_of(job).unlink(missing_ok=True)
    name = Path(request.with_job(request.log, "")).name.replace("..", ".")
    script = request.log_of(request.first).parent / "q" / f"{Path(name).stem}.sh"
    script.parent.mkdir(exist_ok=True)
    write(script, "w", batch_script(request))

    signal.signal(signal.SIGTERM, interrupted)
    words = sbatch_command(request, script)
    try:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    except FileNotFoundError:
        stop("sbatch is not installed here; set cmd_backend=local in cmd.sh")
    number = ""
    try:
        number = process.stdout.readline().strip().split(";")[0]
        code = process.wait()
    except KeyboardInterrupt:
        if number:
            subprocess.run(["scancel", number], check=False)
        return 130
    if not number:
        print(f"slurm.pl: {shlex.join(words)} failed, status {code}", file=sys.stderr)
        return code or 1
    failed = failures(request)
    if failed:
        report_failures(request, failed)
        return failed[min(failed)]
    if code:
        print(f"slurm.pl: Slurm job {number} ended with {code}", file=sys.stderr)
    return code


if __name__ == "__main__":
    run(main)
