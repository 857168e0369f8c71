"""Measure what batches and losses cost: time, memory, and whether texts agree."""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from speechllm.utils.errors import UserError

MEBIBYTE = 1 << 20


class PeakMemory:
    """The most memory that a stretch of work needs, in bytes above its beginning.

    On a GPU the allocator tells; elsewhere Linux does, whose record of this
    process's greatest size is reset at the beginning.

        memory = PeakMemory("cpu")
        work()
        print(memory.peak())
    """

    def __init__(self, device: str):
        import torch

        self.cuda = torch.device(device).type == "cuda"
        gc.collect()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
            return
        try:
            ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back first
            Path("/proc/self/clear_refs").write_text("5")
        except (AttributeError, OSError) as error:
            raise UserError(
                f"peak memory can be measured on Linux with glibc only: {error}"
            ) from error
        self.start = process_memory("VmRSS")

    def peak(self) -> int:
        """Bytes above the beginning, at most, up to now."""
        import torch

        if self.cuda:
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - self.start
        return process_memory("VmHWM") - self.start


def process_memory(name: str) -> int:
    """A size of this process in bytes: ``VmRSS`` now, ``VmHWM`` at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise UserError(f"/proc/self/status has no {name}")


def measured_apart(command: str, system: str, content, kind: type):
    """Measure one system in a process of its own.

    Args:
        command: of :mod:`speechllm.bin.benchmark`.
        system: one of those it compares.
        content: a dataclass that tells what is measured.
        kind: the dataclass of the result.
    """
    call = [sys.executable, "-m", "speechllm.bin.benchmark", "one", command, system]
    done = subprocess.run(
        [*call, json.dumps(asdict(content))],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip() or f"status {done.returncode}").splitlines()
        raise UserError(f"{system}: {reason[-1].removeprefix('error: ')}")
    return kind(**json.loads(done.stdout.splitlines()[-1]))
