"""Test the benchmark of data preparation on small corpora."""

from __future__ import annotations

import sys

import pytest

from speechllm.benchmarks.data import measure
from speechllm.bin.benchmark_data import main
from speechllm.utils.errors import UserError

# Replaces ffmpeg, which may not be installed, and writes nothing.
IDLE = "true"


@pytest.mark.parametrize("corpus", ["must_c", "covost2"])
def test_table_has_every_stage_and_size(corpus, tmp_path, capsys):
    sizes = ["--utterances", "40", "80"]
    main(["--corpus", corpus, *sizes, "--folder", str(tmp_path)])
    printed = capsys.readouterr().out
    for stage in ("prepare", "validate", "filter", "statistics", "split"):
        assert f"| {stage} | 40 |" in printed and f"| {stage} | 80 |" in printed
        assert f"- {stage}: " in printed
    assert list(tmp_path.iterdir()) == []


def test_table_has_formatting_of_clips(tmp_path, capsys):
    main(["--clips", "2", "--ffmpeg", IDLE, "--folder", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "| format_audio | flac |" in printed and "| ffmpeg | wav |" in printed


def test_missing_ffmpeg_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no such command to compare with"):
        main(["--clips", "2", "--ffmpeg", "no-ffmpeg", "--folder", str(tmp_path)])


def test_failing_command_is_an_error(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('no luck')"]
    with pytest.raises(UserError, match="failed: no luck"):
        measure(command, tmp_path / "log")


def test_memory_and_time_are_measured(tmp_path):
    cost = measure([sys.executable, "-c", "b'x' * 2**27"], tmp_path / "log")
    assert cost.mebibytes >= 128
    assert 0 < cost.cpu_seconds
