"""Check of a GPU: each part in a process of its own, with a share of the time.

The parts (:mod:`speechllm.benchmarks.gpu_parts`) need only the repository and its
environment: models have random weights, the speech is noise. A part passes, fails, or
was not run for a reason that the report states.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_open
from speechllm.utils.machine import cpu_name

PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"
#: The parts, with the seconds that each may take on a GPU, 28 minutes together.
PARTS = {
    "qlora": ("4-bit QLoRA steps", 240),
    "precision": ("bfloat16 and float16 decoding against float32", 180),
    "4bit": ("decoding with the LLM in 4 bits against bfloat16", 180),
    "decoding": ("GPT-NeoX 3.6B of random weights: decoding against a plain loop", 420),
    "step": ("a decoding step: bandwidth, torch.compile, CUDA graphs", 240),
    "strategies": ("Lightning: DDP, FSDP and DeepSpeed on one device", 300),
    "attention": ("kernels of scaled dot-product attention", 60),
}


@dataclass
class Result:
    """Result of a part.

    Attributes:
        status: ``PASSED``, ``FAILED`` or ``NOT_RUN``.
        summary: figures, or the reason.
        table: further figures as lines of a Markdown table.
        seconds: time that the part took.
    """

    status: str
    summary: str
    table: Sequence[str] = ()
    seconds: float = 0.0


def require_device(device: str) -> None:
    """Check that a GPU check can run on this device.

    Raises:
        UserError: ``cuda`` without a GPU that torch can use.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "no NVIDIA GPU that torch can use; --device cpu --size tiny runs the parts "
            "in their CPU form"
        )


def run_parts(names: Sequence[str], device: str, size: str) -> dict[str, Result]:
    """Run parts one after the other; one that fails or hangs does not stop the others.

    Args:
        names: keys of ``PARTS``.
        device: ``cuda`` or ``cpu``.
        size: ``full`` or ``tiny``.
    """
    results = {}
    for name in names:
        begin = time.monotonic()
        print(f"{name}: {PARTS[name][0]}", file=sys.stderr, flush=True)
        result = run_part(name, device, size)
        result.seconds = time.monotonic() - begin
        print(f"{name}: {result.status}: {result.summary}", file=sys.stderr, flush=True)
        results[name] = result
    return results


def run_part(name: str, device: str, size: str) -> Result:
    """Run one part in a process of its own."""
    command = [sys.executable, "-m", "speechllm.bin.check_gpu", "--part", name]
    limit = PARTS[name][1]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        try:
            done = subprocess.run(
                [*command, "--device", device, "--size", size, "--output", output],
                capture_output=True,
                text=True,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Result(FAILED, f"not done after {limit} s")
        if done.returncode or not output.exists():
            lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
            print(*lines[-40:], sep="\n", file=sys.stderr, flush=True)
            return Result(FAILED, lines[-1].removeprefix("error: "))
        return Result(**json.loads(output.read_text("utf-8")))


def device_name(device: str) -> str:
    """Return the name of the GPU with its memory, or of the processor."""
    if device != "cuda":
        return cpu_name()
    import torch

    card = torch.cuda.get_device_properties(0)
    return f"{card.name}, {card.total_memory / 2**30:.0f} GiB"


def package_version(name: str) -> str:
    """Return the version of an installed package, or ``not installed``."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def report(results: dict[str, Result], device: str, size: str) -> str:
    """Return the report in Markdown."""
    names = ("torch", "transformers", "bitsandbytes", "lightning", "deepspeed")
    names += ("flash-attn", "espnet")
    packages = ", ".join(f"{name} {package_version(name)}" for name in names)
    seconds = sum(result.seconds for result in results.values())
    lines = [
        f"# GPU report: {device_name(device)}",
        "",
        f"`tools/check_gpu.sh --device {device} --size {size}`, {date.today()}, Python "
        f"{platform.python_version()}, {packages}; {seconds / 60:.1f} minutes.",
        "",
        "| part | result | figures | seconds |",
        "| --- | --- | --- | ---: |",
    ]
    for name, result in results.items():
        summary = result.summary.replace("|", "\\|")
        lines.append(
            f"| {PARTS[name][0]} | {result.status} | {summary} | {result.seconds:.0f} |"
        )
    for name, result in results.items():
        if result.table:
            lines += ["", f"## {PARTS[name][0]}", "", *result.table]
    return "\n".join(lines) + "\n"


def check_gpu(names: Sequence[str], device: str, size: str, output: str | Path) -> bool:
    """Run the parts and write the report.

    Returns:
        True if no part failed.

    Raises:
        UserError: there is no such device.
    """
    require_device(device)
    results = run_parts(names, device, size)
    with atomic_open(output, "w") as stream:
        stream.write(report(results, device, size))
    return all(result.status != FAILED for result in results.values())
