"""Test that the benchmarks of decoding, training and loss run and count correctly."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from espnet2.bin.split_scps import main as split_scps
from tiny_models import LABELS, PROMPTS

from speechllm.benchmarks.decoding import (
    DecodingCost,
    cut_speech,
    decoding_table,
    measure_decoding,
)
from speechllm.benchmarks.decoding_systems import DecodingSet, random_model
from speechllm.benchmarks.loss import (
    METHODS,
    LossBatch,
    LossCost,
    loss_table,
    measure_loss,
)
from speechllm.benchmarks.resources import PeakMemory
from speechllm.benchmarks.training import (
    TrainingSteps,
    matmul_flops,
    measure_training,
    padding_share,
    training_options,
    training_table,
)
from speechllm.bin.benchmark import main
from speechllm.utils.errors import UserError


@pytest.fixture
def examples(tmp_path):
    """Write an example dir of three utterances of noise."""
    folder = tmp_path / "examples"
    folder.mkdir()
    generator = np.random.default_rng(0)
    rows = {"wav.scp": [], "utt2task": []}
    for index in range(3):
        path = folder / f"{index}.wav"
        soundfile.write(path, generator.normal(size=6000 + 2000 * index) / 20, 16000)
        rows["wav.scp"].append(f"u{index} {path}\n")
        rows["utt2task"].append(f"u{index} asr en en\n")
    for name, lines in rows.items():
        (folder / name).write_text("".join(lines))
    return folder


def rows_of(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


def test_all_systems_decode_the_same_texts(tiny_model, examples, tmp_path, capsys):
    config = tmp_path / "decode.yaml"
    config.write_text("batch_size: 9\nextra_tokens: 3\n")
    arguments = ["--model", str(tiny_model), "--examples", str(examples)]
    arguments += ["--batch_sizes", "1", "2", "--rounds", "2", "--config", str(config)]
    main(["decode", *arguments, "--against", "plain", "espnet", "--task", "asr"])
    out = capsys.readouterr().out
    assert "3 utterances, 2 s of speech" in out
    rows = rows_of(out)
    assert [row[0] for row in rows] == [
        "plain loop, transformers' generate",
        "ESPnet's decoder of causal LMs",
        "speechllm, batch size 1",
        "speechllm, batch size 2",
    ]
    assert rows[0][6:8] == ["1.00 ×"] * 2
    assert [row[-1] for row in rows] == ["the same"] * 4


def test_decoding_with_random_weights(examples, capsys):
    main(["decode", "--random", "tiny", "--examples", str(examples), "--utterances",
        "3", "--batch_sizes", "2", "--against", "plain"])  # fmt: skip
    out = capsys.readouterr().out
    assert out.startswith("tiny, float32, cpu: 3 utterances")
    assert [row[-1] for row in rows_of(out)] == ["the same"] * 2


def test_speech_is_cut_into_pieces():
    waves = [np.arange(30000.0), -np.arange(1000.0)]
    pieces = cut_speech(waves, 40)
    assert len(pieces) == 40
    assert all(16000 <= len(piece) < 160000 for piece in pieces)
    joined = np.concatenate(waves)
    for piece in pieces:
        begin = np.flatnonzero(joined == piece[0])[0]
        assert np.array_equal(piece[:500], np.roll(joined, -begin)[:500])
    assert all(
        np.array_equal(one, other) for one, other in zip(pieces, cut_speech(waves, 40))
    )


def test_random_model_reaches_its_token_limit():
    """The limit is that of Nue-ASR's authors; the tokens are reproducible."""
    content = DecodingSet("tiny", "", {})
    wave = np.random.default_rng(0).normal(size=40000).astype(np.float32) / 20
    (result,) = random_model(content).transcribe([wave])
    assert len(result.tokens) == int(4 * 2.5 + 20.5)
    (again,) = random_model(content).transcribe([wave])
    assert again.tokens == result.tokens


def test_missing_faster_whisper_is_reported(tiny_model, examples, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    content = DecodingSet(str(tiny_model), str(examples), {})
    cost = measure_decoding("faster-whisper", content)
    assert cost.problem == "not installed: pip install faster-whisper"


def test_tables_show_ratios_and_differing_texts():
    costs = [
        DecodingCost("plain", 8.0, 9.0, 4, 16.0, 7 << 20, 100 << 20, list("abcd")),
        DecodingCost(
            "faster-whisper", 4.0, 6.0, 4, 16.0, 5 << 20, 100 << 20, list("wxyz")
        ),
        DecodingCost("espnet", problem="it is not there"),
        DecodingCost("16", 2.0, 3.0, 4, 16.0, 7 << 20, 300 << 20, list("aXcX")),
    ]
    rows = rows_of(decoding_table(costs))
    first = ["0.50", "0.500", "9.0", "7", "100", *["1.00 ×"] * 2, "the same"]
    assert rows[0][1:] == first
    ratios = ["2.00 ×", "1.50 ×"]
    assert rows[1][1:] == [
        "1.00",
        "0.250",
        "6.0",
        "5",
        "100",
        *ratios,
        "of another model",
    ]
    assert rows[2][1] == "cannot: it is not there"
    ratios = ["4.00 ×", "3.00 ×"]
    assert rows[3][1:] == ["2.00", "0.125", "3.0", "7", "300", *ratios, "2 differ"]
    last = loss_table(
        {
            "targets": LossCost(1.0, 100 << 20, 7.0),
            "sequence": LossCost(2.0, 400 << 20, 7.0),
        }
    ).splitlines()[-1]
    assert last == "| ratio | 2.00 × the speed | 0.25 × the memory | |"


def test_both_methods_give_the_same_loss(tiny_llm, capsys):
    shape = ["--batch_size", "2", "--prompt_positions", "5", "--answer_tokens", "3"]
    main(["loss", "--model", str(tiny_llm), "--steps", "1", *shape])
    lines = capsys.readouterr().out.strip().splitlines()
    assert "2 utterances of 5 positions and 3 answer tokens" in lines[0]
    values = [float(line.split("|")[-2]) for line in lines[-3:-1]]
    assert values[0] == pytest.approx(values[1], abs=2e-3)
    assert "× the speed" in lines[-1]


def test_means_over_spans_are_compared(capsys):
    main(["spans"])
    heading, _, _, _, ours, dense, ratio = capsys.readouterr().out.splitlines()
    assert float(heading.rsplit(" ", 1)[1]) < 1e-6
    times = [float(row.split("|")[2]) for row in (ours, dense)]
    assert float(ratio.split()[3]) == pytest.approx(times[1] / times[0], rel=0.1)


@pytest.mark.parametrize("tuning", ["frozen", "full"])
def test_loss_with_other_tunings(tiny_llm, tuning):
    batch = LossBatch(str(tiny_llm), tuning, 2, 5, 3, steps=1)
    costs = [measure_loss(method, batch) for method in METHODS]
    assert costs[0].loss == pytest.approx(costs[1].loss, abs=2e-3)


def test_peak_memory_includes_freed_memory():
    memory = PeakMemory("cpu")
    array = np.ones(8 << 20)  # 64 MiB
    del array
    first = memory.peak()
    assert first >= 60 << 20
    assert PeakMemory("cpu").peak() < first // 2


def test_wrong_arguments_are_errors(tiny_model, examples, tmp_path, capsys):
    model = ["--model", str(tiny_model), "--examples", str(examples)]
    with pytest.raises(UserError, match="--batch_sizes 0: at least 1"):
        main(["decode", *model, "--batch_sizes", "4", "0"])
    with pytest.raises(UserError, match="--steps 0: at least 1"):
        main(["loss", "--steps", "0"])
    with pytest.raises(UserError, match="no/such/model"):
        main(["loss", "--model", "no/such/model"])
    with pytest.raises(UserError, match="give either --model or --random"):
        main(["decode", "--examples", str(examples)])
    (examples / "wav.scp").write_text("")
    with pytest.raises(UserError, match="examples"):
        main(["decode", *model])


@pytest.fixture
def training(tmp_path, examples, tiny_whisper, tiny_llm) -> Path:
    """Write the config of a training on the examples in ESPnet's format."""
    tables = {
        "text": "u0 one\nu1 two three\nu2 four\n",
        "text_ctc": "u0 one\nu1 two three\nu2 four\n",
        "speech_shape": "u0 6000\nu1 8000\nu2 10000\n",
        "text_shape": "u0 2\nu1 3\nu2 2\n",
    }
    for name, lines in tables.items():
        (examples / name).write_text(lines)
    (tmp_path / "prompts.yaml").write_text(PROMPTS)
    (tmp_path / "tokens.txt").write_text("\n".join(LABELS) + "\n")
    content = {
        "encoder": "whisper",
        "encoder_conf": {"model": str(tiny_whisper)},
        "bridge": "convolution",
        "llm": "causal_lm",
        "llm_conf": {"model": str(tiny_llm), "dtype": "float32"},
        "model_conf": {"ctc_weight": 0.3, "autocast": "float32"},
        "prompts": str(tmp_path / "prompts.yaml"),
        "ctc_token_list": str(tmp_path / "tokens.txt"),
        "ngpu": 0,
        "required": ["output_dir"],
        "optim": "adamw",
        "optim_conf": {"lr": 1.0e-3},
        "batch_type": "numel",
        "batch_bins": 20000,
        "train_shape_file": [str(examples / n) for n in ("speech_shape", "text_shape")],
        "train_data_path_and_name_and_type": [
            [str(examples / file), name, kind]
            for file, name, kind in (
                ("wav.scp", "speech", "sound"),
                ("text", "text", "text"),
                ("text_ctc", "text_ctc", "text"),
                ("utt2task", "task", "text"),
            )
        ],
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_both_methods_train_alike(training):
    steps = TrainingSteps(str(training), steps=2)
    costs = {method: measure_training(method, steps) for method in METHODS}
    ours, theirs = costs["targets"], costs["sequence"]
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-3)
    assert ours.target_tokens == theirs.target_tokens > 0
    assert ours.speech_seconds == pytest.approx(24000 / 16000)
    assert 0 < ours.flops < theirs.flops  # no head at prompt positions
    assert ours.machine_flops > 0
    table = training_table(costs, 0.054)
    assert table.startswith("padding: 5.4% of the samples")
    assert "× the speed" in table.splitlines()[-1]


def test_a_training_without_an_llm_is_an_error(training):
    content = yaml.safe_load(training.read_text())
    training.write_text(yaml.safe_dump({**content, "bridge": None, "llm": None}))
    with pytest.raises(UserError, match="config.yaml: no LLM, so there is no loss"):
        main(["train", "--config", str(training)])


def test_training_in_separate_processes(training, capsys, monkeypatch):
    """ESPnet's own parser does not read the benchmark's arguments."""
    arguments = ["train", "--config", str(training), "--steps", "1"]
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    main(arguments)
    head, _, table = capsys.readouterr().out.strip().partition("\n\n")
    assert head == f"{training}, cpu: 1 steps"
    assert table.startswith("padding: ")
    rows = rows_of(table)
    assert [row[0] for row in rows] == [*METHODS.values(), "ratio"]
    assert float(rows[0][-1]) == pytest.approx(float(rows[1][-1]), abs=2e-3)


def test_training_on_splits_is_measured_on_the_first(training, tmp_path, capsys):
    """A config that stage 9 wrote with --num_splits_speechllm."""
    config = yaml.safe_load(training.read_text())
    tables = config["train_data_path_and_name_and_type"]
    scps = [path for path, *_ in tables] + config["train_shape_file"]
    splits = tmp_path / "splits"
    words = ["--scps", *scps, "--num_splits", "2", "--output_dir", str(splits)]
    split_scps(words)
    for table in tables:
        table[0] = str(splits / Path(table[0]).name)
    shapes = config["train_shape_file"]
    config["train_shape_file"] = [str(splits / Path(path).name) for path in shapes]
    training.write_text(yaml.safe_dump({**config, "multiple_iterator": True}))

    args = training_options(str(training))
    args.batch_bins = 10**9
    assert padding_share(args) == pytest.approx(1 - 16000 / 20000)  # u0 and u2
    cost = measure_training("targets", TrainingSteps(str(training), steps=2))
    assert cost.speech_seconds == pytest.approx(16000 / 16000)
    main(["train", "--config", str(training), "--steps", "1"])
    head = capsys.readouterr().out.partition("\n\n")[0]
    assert head == f"{training}, cpu: 1 steps, of the first split of the tables"


@pytest.mark.parametrize(("bins", "share"), [(10**9, 1 - 24000 / 30000), (1, 0.0)])
def test_padding_share_of_an_epoch(training, bins, share):
    """Put all utterances in one batch, or each in its own."""
    args = training_options(str(training))
    args.batch_bins = bins
    assert padding_share(args) == pytest.approx(share)


def test_matmul_flops_are_positive():
    assert matmul_flops("cpu", torch.float32, size=64, rounds=2) > 1e6


def test_memory_of_two_lengths_is_printed(tiny_model, examples, tmp_path, capsys):
    (examples / "text").write_text("u0 one\nu1 two\nu2 three\n")
    config = tmp_path / "short.yaml"
    config.write_text("tokens_per_second: 0.5\nextra_tokens: 2\nbatch_size: 4\n")
    main(
        ["memory", "--model", str(tiny_model), "--examples", str(examples)]
        + ["--minutes", "2", "1", "--config", str(config)]
    )
    rows = rows_of(capsys.readouterr().out)
    assert [row[0] for row in rows] == ["1", "2"]
    first, last = (float(row[1]) for row in rows)
    assert 100 < first <= last
    assert rows[0][2] == "0.0 %"
    assert float(rows[1][2].split()[0]) == pytest.approx(
        100 * (last / first - 1), abs=0.3
    )
