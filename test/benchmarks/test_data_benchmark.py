"""Test the benchmark of data preparation on small corpora."""

from __future__ import annotations

import sys

import pytest

from speechllm.benchmarks.data import Cost, measure
from speechllm.benchmarks.pipeline import (
    Growth,
    StepCost,
    disk_usage,
    list_steps,
    make_clip,
    print_extrapolation,
    write_reazonspeech,
)
from speechllm.benchmarks.resources import measure_in_process
from speechllm.benchmarks.resuming import write_resumed_decoding
from speechllm.benchmarks.sampling import (
    SamplingCost,
    SamplingSet,
    measure_sampling,
    write_tables,
)
from speechllm.bin import decode
from speechllm.bin.benchmark_data import main
from speechllm.data.kaldi_table import read_table
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


@pytest.mark.slow
def test_stages_1_to_5_of_reazonspeech(tmp_path, speech_file):
    """The commands are those of the recipe; archives have the corpus's clips."""
    clip = make_clip(speech_file, 0.4)
    write_reazonspeech(tmp_path / "corpus", 30, clip)
    steps = {}
    for step in list_steps(tmp_path, "none", "flac.ark"):
        if step.stage > 5 or step.name == "vocabulary: bpe":
            continue
        assert measure(step.command, tmp_path / "log").cpu_seconds > 0
        steps[step.name] = step
    assert len(read_table(tmp_path / "examples/text")) == 30
    positions = read_table(tmp_path / "examples/wav.scp").values()
    for position in positions:
        path, _, offset = position.rpartition(":")
        with open(path, "rb") as stream:
            stream.seek(int(offset))
            assert clip in stream.read(len(clip) + 10)
    size, inodes = disk_usage(steps["format: audio"].output / "audio")
    assert size >= 30 * len(clip)
    assert inodes == 4  # folder, archive, list, marker


def test_costs_are_extrapolated_with_their_growth(capsys):
    assert Growth(10, 100, 2.0, 11.0).at(1000) == pytest.approx(101)  # 1 + size / 10
    assert Growth(10, 100, 3.0, 3.0).at(1e9) == 3
    assert Growth(10, 100, 1.0, 100.0).exponent == pytest.approx(2)
    assert Growth(10, 100, 1.0, 100.0).at(1000) == pytest.approx(9910 + 90)
    costs = {
        size: StepCost(Cost(0, size * 3.6, 50), 10**6 * size, size)
        for size in (10, 100)
    }
    print_extrapolation({"step": costs}, {"step": 3}, [19000.0])
    row = capsys.readouterr().out.splitlines()[-1]
    assert row == "| 3 | step | 1.00 | 15000.00 | 15,000.0 | 15,000,000 |"


@pytest.mark.slow
def test_samplers_are_measured(tmp_path):
    tables = SamplingSet(str(tmp_path / "tables"), examples=600, splits=3, ranks=2)
    write_tables(tables)
    for cost in (
        measure_in_process("sampling", "splits", tables, SamplingCost),
        measure_sampling("lhotse", tables),
    ):
        assert 0 < cost.padding < 0.5
        assert cost.epoch_seconds >= cost.start_seconds > 0
        assert cost.total_bytes > cost.peak_bytes


def test_resumed_decoding_reads_all_hypotheses(
    tmp_path, tiny_model, speech_file, capsys
):
    examples, output = tmp_path / "examples", tmp_path / "decode"
    write_resumed_decoding(
        str(tiny_model), speech_file, "asr en en", 9, examples, output
    )
    words = ["--model", tiny_model, "--examples", examples, "--output_dir", output]
    decode.main([str(word) for word in words])
    assert "1 utterances decoded now" in capsys.readouterr().out
    assert len((output / "text").read_text().splitlines()) == 9
