#!/usr/bin/env python3
"""Run jobs on this machine; replaces Kaldi's run.pl (command line: jobs.py).

The name ends in .pl because recipes and espnet2.bin.launch expect this name. All
output goes to the log; lines of a single job that begin with ``progress: `` are also
printed. The jobs end with this program, its caller, and the recipe whose process
SPEECHLLM_PID (host:pid) gives, so that they cannot interfere with a re-run. They also
end if a log cannot be written. Without OMP_NUM_THREADS in the environment they share
the CPU cores.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from jobs import (
    Request,
    keep_other_file,
    parse,
    report_failures,
    run,
    stop,
    watch_caller,
    write,
)

POLL_SECONDS = 0.2
PROGRESS_SECONDS = 30.0
SAVE_SECONDS = 60.0  # for a training to save on SIGTERM
PR_SET_PDEATHSIG = 1


def visible_gpus() -> list[str]:
    """Return the GPUs that jobs may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device.strip()]
    try:
        listing = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        listing = ""
    count = len(re.findall(r"^GPU \d", listing, re.MULTILINE))
    return [str(index) for index in range(count)]


def gpu_slots(gpus: int) -> list[str]:
    """Return the values of CUDA_VISIBLE_DEVICES for parallel jobs of ``gpus`` GPUs."""
    devices = visible_gpus()
    if len(devices) < gpus:
        stop(f"a job requires {gpus} GPUs, but only {len(devices)} are visible")
    starts = range(0, len(devices) - gpus + 1, gpus)
    return [",".join(devices[start : start + gpus]) for start in starts]


class Progress:
    """Progress output: one changing line on a terminal, else a line every 30 s."""

    def __init__(self) -> None:
        self.tty = sys.stdout.isatty()
        self.shown, self.latest, self.time = "", "", -PROGRESS_SECONDS

    def show(self, text: str) -> None:
        self.latest = text
        now = time.monotonic()
        if self.latest == self.shown:
            return
        if self.tty:
            print(f"\r\x1b[K  {text}", end="", flush=True)
        elif now - self.time < PROGRESS_SECONDS:
            return
        else:
            print(f"  {text}", flush=True)
        self.shown, self.time = text, now

    def close(self) -> None:
        if self.tty and self.shown:
            print(flush=True)
        elif self.latest != self.shown:
            print(f"  {self.latest}", flush=True)


class Tail:
    """Reader of the ``progress: `` lines that are appended to a log."""

    def __init__(self, path: Path) -> None:
        self.path, self.position, self.rest = path, 0, b""

    def newest(self) -> str | None:
        """Return the last ``progress: `` line appended since the previous call."""
        with open(self.path, "rb") as stream:
            stream.seek(self.position)
            data = stream.read()
        self.position += len(data)
        *lines, self.rest = re.split(rb"[\r\n]", self.rest + data)
        found = [line for line in lines if line.startswith(b"progress: ")]
        return found[-1].decode("utf-8", "replace").strip() if found else None


@dataclass
class Running:
    job: int
    process: subprocess.Popen
    slot: str | None
    start: float


def start_job(request: Request, job: int, slot: str | None, threads: int) -> Running:
    log = request.log_of(job)
    log.parent.mkdir(parents=True, exist_ok=True)
    line = request.shell_line(str(job))
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    if slot is not None:
        environment["CUDA_VISIBLE_DEVICES"] = slot
    head = f"# {line}\n# Started at {time.ctime()} on {socket.gethostname()}\n#\n"
    keep_other_file(log)
    write(log, "w", head)
    with open(log, "ab") as stream:
        process = subprocess.Popen(
            ["bash", "-c", f"set -o pipefail; {line}"],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    return Running(job, process, slot, time.time())


_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """Have Linux end this process when its parent ends, even by SIGKILL."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def end_job(request: Request, running: Running, code: int) -> int:
    """Complete the log; return the shell's status (128 + signal for a killed job)."""
    code = 128 - code if code < 0 else code
    seconds = time.time() - running.start
    end = f"\n# Ended (code {code}) at {time.ctime()}, elapsed {seconds:.1f} s\n"
    write(request.log_of(running.job), "a", end)
    return code


def kill(running: list[Running]) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):  # a caller and its own may send it
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for item in running:
            try:
                os.killpg(item.process.pid, number)
            except ProcessLookupError:
                pass
        limit = time.monotonic() + SAVE_SECONDS
        while time.monotonic() < limit:
            if all(item.process.poll() is not None for item in running):
                break
            time.sleep(POLL_SECONDS)


def main() -> int:
    request = parse(sys.argv[1:])
    cores = len(os.sched_getaffinity(0))
    if request.count:
        print(cores if request.count == "cpus" else len(visible_gpus()))
        return 0
    gpus = request.number("gpu", 0)
    count = len(request.jobs)
    free: list[str | None] = [None] * cores
    if gpus and count > 1:
        free = list(gpu_slots(gpus))
    at_once = request.number("max_jobs_run", len(free))
    if at_once < 1:
        stop("--max_jobs_run must be at least 1")
    if not (gpus and count > 1):
        free = [None] * at_once
    free = free[:at_once]
    # each job has its share of the cores, as have its processes, one per GPU
    threads = max(cores // (min(len(free), count) * max(gpus, 1)), 1)

    gone = watch_caller()
    waiting, running, failed = list(request.jobs), [], {}
    progress, done = Progress(), 0
    tail = Tail(request.log_of(request.first)) if count == 1 else None
    try:
        while waiting or running:
            while waiting and free:
                job = waiting.pop(0)
                running.append(start_job(request, job, free.pop(0), threads))
            time.sleep(POLL_SECONDS)
            for item in list(running):
                code = item.process.poll()
                if code is None:
                    continue
                running.remove(item)
                free.append(item.slot)
                done += 1
                code = end_job(request, item, code)
                if code:
                    failed[item.job] = code
            text = tail.newest() if tail else f"progress: {done}/{count} jobs done"
            if text and (tail or done):
                progress.show(text)
            if gone():
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        kill(running)
        for item in running:
            end_job(request, item, item.process.poll() or 0)
        progress.close()
        return 130
    except OSError:  # a log cannot be written
        kill(running)
        raise
    progress.close()
    if failed:
        report_failures(request, failed)
        return failed[min(failed)]
    return 0


if __name__ == "__main__":
    run(main)
