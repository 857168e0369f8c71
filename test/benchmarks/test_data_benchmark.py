"""The benchmark of data preparation, on sizes that take a moment."""

from __future__ import annotations

import sys

import pytest

from speechllm.benchmarks.data import measure
from speechllm.bin.benchmark_data import main
from speechllm.utils.errors import UserError

# An "ffmpeg" that writes nothing, in place of one that the machine may not have.
IDLE = "true"


@pytest.mark.parametrize("corpus", ["must_c", "covost2"])
def test_every_stage_is_timed_at_every_size(corpus, tmp_path, capsys):
    sizes = ["--utterances", "40", "80"]
    main(["--corpus", corpus, *sizes, "--folder", str(tmp_path)])
    printed = capsys.readouterr().out
    for stage in ("prepare", "validate", "filter", "statistics", "split"):
        assert f"| {stage} | 40 |" in printed and f"| {stage} | 80 |" in printed
        assert f"- {stage}: " in printed
    assert list(tmp_path.iterdir()) == []


def test_clips_are_formatted(tmp_path, capsys):
    main(["--clips", "2", "--ffmpeg", IDLE, "--folder", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "| format_audio | flac |" in printed and "| ffmpeg | wav |" in printed


def test_no_ffmpeg_is_said(tmp_path):
    with pytest.raises(UserError, match="no such command to compare with"):
        main(["--clips", "2", "--ffmpeg", "no-ffmpeg", "--folder", str(tmp_path)])


def test_a_command_that_fails_is_an_error(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('no luck')"]
    with pytest.raises(UserError, match="failed: no luck"):
        measure(command, tmp_path / "log")


def test_measured_memory_and_time(tmp_path):
    cost = measure([sys.executable, "-c", "b'x' * 2**27"], tmp_path / "log")
    assert cost.mebibytes >= 128
    assert 0 < cost.cpu_seconds
