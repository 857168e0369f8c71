"""Names of the hardware, for reports."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path


def cpu_name() -> str:
    """Return the model of the CPU, or its architecture where it is unknown."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_vendor() -> str:
    """Return ``AuthenticAMD``, ``GenuineIntel``, …; empty where it is unknown."""
    return _cpuinfo("vendor_id") or platform.processor().partition(", ")[2]


def _cpuinfo(field: str) -> str:
    """Return a field of Linux' description of the first CPU; empty without one."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(field):
                return line.split(":", 1)[1].strip()
    except (OSError, ValueError):
        pass
    return ""


def machine() -> str:
    """Describe the CPU, the cores available to this process, memory and GPUs."""
    memory = ""
    try:
        kilobytes = int(Path("/proc/meminfo").read_text().split()[1])
        memory = f", {kilobytes / 2**20:.0f} GiB memory"
    except (OSError, ValueError, IndexError):
        pass
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    gpus = ""
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
        )
        if listed.returncode == 0:
            gpus = "".join(f", {name}" for name in listed.stdout.splitlines() if name)
    except (OSError, subprocess.TimeoutExpired):
        pass
    return f"{cpu_name()}, {cores} cores{memory}{gpus}"
