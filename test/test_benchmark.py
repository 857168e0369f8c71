"""The benchmarks run and count right; nothing is timed here."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from speechllm.benchmark import (
    DecodingCost,
    LossCost,
    PeakMemory,
    decoding_table,
    loss_table,
)
from speechllm.bin.benchmark import main
from speechllm.errors import UserError


@pytest.fixture
def examples(tmp_path):
    """Three utterances of noise."""
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


def test_decoding(tiny_model, examples, tmp_path, capsys):
    config = tmp_path / "decode.yaml"
    config.write_text("batch_size: 9\nbeam_size: 2\nextra_tokens: 3\n")
    arguments = ["--model", str(tiny_model), "--examples", str(examples)]
    arguments += ["--batch_sizes", "1", "2", "--rounds", "2"]
    main(["decode", *arguments, "--config", str(config)])
    out = capsys.readouterr().out
    assert out.startswith("3 utterances, 2 s of speech")
    rows = [line.split(" | ") for line in out.strip().splitlines()[-2:]]
    assert [row[0] for row in rows] == ["| 1", "| 2"]
    assert rows[0][4] == "1.00 ×"
    assert [row[-1] for row in rows] == ["yes |", "yes |"]
    main(["decode", *arguments, "--utterances", "2"])
    assert capsys.readouterr().out.startswith("2 utterances, 1 s of speech")


def test_the_tables_tell_ratios_and_other_texts():
    costs = [
        DecodingCost(1, 8.0, 4, 16.0, 100 << 20, []),
        DecodingCost(16, 2.0, 4, 16.0, 300 << 20, ["b", "d"]),
    ]
    rows = decoding_table(costs).splitlines()
    assert rows[2] == "| 1 | 0.50 | 0.500 | 100 | 1.00 × | yes |"
    assert rows[3] == "| 16 | 2.00 | 0.125 | 300 | 4.00 × | no: 2, the first is b |"
    last = loss_table(
        {
            "targets": LossCost(1.0, 100 << 20, 7.0),
            "sequence": LossCost(2.0, 400 << 20, 7.0),
        }
    ).splitlines()[-1]
    assert last == "| ratio | 2.00 × the speed | 0.25 × the memory | |"


def test_loss(tiny_llm, capsys):
    """Both ways, each in its process, come to the same value."""
    shape = ["--batch_size", "2", "--prompt_positions", "5", "--answer_tokens", "3"]
    main(["loss", "--model", str(tiny_llm), "--steps", "1", *shape])
    lines = capsys.readouterr().out.strip().splitlines()
    assert "2 utterances of 5 positions and 3 answer tokens" in lines[0]
    values = [float(line.split("|")[-2]) for line in lines[-3:-1]]
    assert values[0] == pytest.approx(values[1], abs=2e-3)
    assert "× the speed" in lines[-1]


def test_one_way_alone_prints_json(tiny_llm, capsys):
    main(
        ["loss", "--model", str(tiny_llm), "--only", "targets", "--steps", "1"]
        + ["--batch_size", "1", "--prompt_positions", "2"]
    )
    cost = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(cost) == {"seconds", "peak_bytes", "loss"}


def test_peak_memory_sees_what_was_freed():
    memory = PeakMemory("cpu")
    array = np.ones(8 << 20)  # 64 MiB
    del array
    first = memory.peak()
    assert first >= 60 << 20
    assert PeakMemory("cpu").peak() < first // 2


def test_wrong_arguments(tiny_model, examples, tmp_path, capsys):
    model = ["--model", str(tiny_model), "--examples", str(examples)]
    with pytest.raises(UserError, match="--batch_sizes 0: at least 1"):
        main(["decode", *model, "--batch_sizes", "4", "0"])
    with pytest.raises(UserError, match="--steps 0: at least 1"):
        main(["loss", "--steps", "0"])
    with pytest.raises(UserError, match="no/such/model"):
        main(["loss", "--model", "no/such/model"])
    with pytest.raises(SystemExit):
        main(["train"])
    (examples / "wav.scp").write_text("")
    with pytest.raises(UserError, match="examples"):
        main(["decode", *model])
