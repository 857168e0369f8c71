"""Resource measurement: peak memory, and measurements in separate processes."""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from speechllm.utils.errors import UserError

MEBIBYTE = 1 << 20

Cost = TypeVar("Cost")


class PeakMemory:
    """Peak memory of a block of code, in bytes above its beginning.

    It is read from PyTorch's allocator on a GPU, and from Linux's resident set size of
    this process elsewhere.

        memory = PeakMemory("cpu")
        work()
        print(memory.peak())

    Raises:
        UserError: the operating system does not report peak memory.
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
            ctypes.CDLL(None).malloc_trim(0)  # return freed memory first
            Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        except (AttributeError, OSError) as error:
            raise UserError(
                f"peak memory cannot be measured: {error}; run on Linux with glibc"
            ) from error
        self.start = process_memory("VmRSS")

    def peak(self) -> int:
        """Return the peak up to now, in bytes above the beginning."""
        import torch

        if self.cuda:
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - self.start
        return process_memory("VmHWM") - self.start


def process_memory(name: str) -> int:
    """Return this process's resident memory in bytes: ``VmRSS`` now, ``VmHWM`` peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise UserError(f"/proc/self/status has no {name}; run on Linux")


def measure_in_process(
    benchmark: str, system: str, content: Any, cost_class: type[Cost]
) -> Cost:
    """Measure one system in a separate process.

    Args:
        benchmark: ``decode``, ``train`` or ``loss``.
        system: one of the systems that the benchmark compares.
        content: dataclass that describes the work.
        cost_class: dataclass of the result.

    Raises:
        UserError: the process failed; the message has its last line.
    """
    command = [sys.executable, "-m", "speechllm.bin.benchmark", "one", benchmark]
    done = subprocess.run(
        [*command, system, json.dumps(asdict(content))],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip() or f"status {done.returncode}").splitlines()
        raise UserError(f"{system}: {reason[-1].removeprefix('error: ')}")
    return cost_class(**json.loads(done.stdout.splitlines()[-1]))
