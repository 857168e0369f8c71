"""The check of a GPU, in its CPU form with tiny models."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from speechllm.benchmarks import gpu, gpu_parts
from speechllm.benchmarks.gpu import FAILED, NOT_RUN, PARTS, PASSED, Result
from speechllm.bin import check_gpu
from speechllm.utils.errors import UserError


def test_each_part_has_a_function_and_all_take_at_most_28_minutes():
    assert all(callable(getattr(gpu_parts, f"check_{part}")) for part in PARTS)
    assert sum(seconds for _, seconds in PARTS.values()) <= 28 * 60


def test_without_a_gpu_it_stops_with_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    output = tmp_path / "gpu_report.md"
    with pytest.raises(UserError, match="no NVIDIA GPU that torch can use") as caught:
        check_gpu.main(["--output", str(output)])
    assert "\n" not in str(caught.value) and not output.exists()


@pytest.mark.parametrize(
    "part", ["qlora", "precision", "4bit", "decoding", "step", "attention"]
)
def test_cpu_form_of_a_part(part):
    result = getattr(gpu_parts, f"check_{part}")("cpu", "tiny")
    if part in ("qlora", "4bit") and result.status == NOT_RUN:
        pytest.skip(result.summary)
    assert result.status == PASSED, result.summary
    assert result.summary


def test_report_names_device_packages_and_what_was_not_run(tmp_path, monkeypatch):
    results = {
        "qlora": Result(NOT_RUN, "qlora needs bitsandbytes", seconds=1.0),
        "step": Result(PASSED, "7 GB | eager", ["| step | ms |"], 2.0),
    }
    monkeypatch.setattr(gpu, "run_parts", lambda *arguments: results)
    output = tmp_path / "gpu_report.md"
    assert check_gpu.main(["--device", "cpu", "--output", str(output)]) == 0
    text = output.read_text()
    assert text.startswith(f"# GPU report: {gpu.device_name('cpu')}\n")
    assert f"torch {torch.__version__}" in text
    assert "| 4-bit QLoRA steps | not run | qlora needs bitsandbytes | 1 |" in text
    assert "| passed | 7 GB \\| eager | 2 |" in text
    assert text.endswith("CUDA graphs\n\n| step | ms |\n")


def test_a_part_that_fails_or_hangs_is_reported_and_the_next_one_runs(monkeypatch):
    run = subprocess.run

    def replaced(command, **options):
        if "qlora" in command:
            command = [sys.executable, "-c", "import sys; sys.exit('error: memory')"]
        elif "step" in command:
            options["timeout"] = 0.01
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", replaced)
    results = gpu.run_parts(["qlora", "step", "attention"], "cpu", "tiny")
    assert (results["qlora"].status, results["qlora"].summary) == (FAILED, "memory")
    assert results["step"].summary == f"not done after {PARTS['step'][1]} s"
    assert results["attention"].status == PASSED


@pytest.mark.gpu
@pytest.mark.parametrize("part", PARTS)
def test_part_on_a_gpu(part):
    result = gpu.run_part(part, "cuda", "full")
    assert result.status != FAILED, result.summary
