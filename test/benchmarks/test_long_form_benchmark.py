"""Test the benchmark of long-form recognition: joined recordings and word times."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechllm.audio.io import load_audio
from speechllm.benchmarks.long_form import (
    JOINS,
    Placed,
    Prompt,
    error_rate,
    read_prompts,
    scored_words,
    speech_limits,
    time_shares,
    write_recording,
)
from speechllm.bin.benchmark_long_form import main
from speechllm.data.kaldi_table import write_table
from speechllm.decoding.result import Word
from speechllm.utils.errors import UserError

RATE = 16000


@pytest.fixture(scope="module")
def examples(tmp_path_factory, speech_file) -> Path:
    """Write an example dir of three English prompts and one French translation."""
    folder = tmp_path_factory.mktemp("examples")
    samples, wavs = load_audio(speech_file), {}
    for number, name in enumerate(["u1", "u2", "u3", "u4"]):
        path = folder / f"{name}.wav"
        soundfile.write(path, samples[4000 * number :], RATE)
        wavs[name] = str(path)
    write_table(folder / "wav.scp", wavs)
    texts = {"u1": "Press 1.", "u2": "Good bye", "u3": "No, thank you!", "u4": "Oui"}
    write_table(folder / "text", texts)
    tasks = dict.fromkeys(texts, "asr en en") | {"u4": "st en fr"}
    write_table(folder / "utt2task", tasks)
    return folder


def test_prompts_are_recognition_examples_with_normalised_words(examples):
    prompts = read_prompts(examples, "en")
    assert [p.words for p in prompts] == [
        ["press", "one"],
        ["good", "bye"],
        ["no", "thank", "you"],
    ]
    with pytest.raises(UserError, match="nothing to transcribe in de"):
        read_prompts(examples, "de")


def test_speech_limits_exclude_silence():
    samples = np.zeros(RATE, np.float32)
    samples[4000:9600] = 0.5
    samples[12000:13000] = 0.5 * 10 ** (-36 / 20)  # below the threshold
    assert speech_limits(samples) == (4000, 9600)


@pytest.mark.parametrize("join", JOINS)
def test_positions_of_prompts_are_correct(examples, tmp_path, join):
    prompts = read_prompts(examples, "en")
    path = tmp_path / "joined.wav"
    placed = write_recording(path, prompts, join, 0.5, str(examples), seed=1)
    recording = load_audio(path)
    assert 30 <= len(recording) / RATE < 45
    assert {p.prompt for p in placed[:3]} == {0, 1, 2}  # a round has each prompt once
    for before, place in zip([None, *placed], placed):
        first, last = prompts[place.prompt].limits
        begin, end = round(place.start * RATE), round(place.end * RATE)
        expected = prompts[place.prompt].samples[first:last]
        np.testing.assert_allclose(recording[begin:end], expected, atol=1e-4)
        if join == "trimmed":
            assert place.start == (before.end if before else 0.0)
        elif before and join != "none":
            assert place.start - before.end >= 0.3


def test_time_shares_of_words():
    prompts = [
        Prompt(["press", "one"], np.zeros(0), (0, 0)),
        Prompt(["good", "bye"], np.zeros(0), (0, 0)),
    ]
    placed = [Placed(0, 1.0, 2.0), Placed(1, 3.0, 4.0)]

    def shares(*words: tuple[str, float, float]):
        recognised = [Word(*word, 1.0) for word in words]
        return time_shares(prompts, placed, recognised, "en")

    exact = [("Press", 1.0, 1.4), ("1.", 1.5, 2.0), ("Good", 3, 3.5), ("bye", 3.5, 4)]
    assert shares(*exact) == (1, 1, 1)
    early = [("Press", 0.8, 1.4), *exact[1:]]
    assert shares(*early) == (3 / 4, 1 / 2, 1)
    late = [*exact[:3], ("bye", 3.5, 4.2)]
    assert shares(*late) == (3 / 4, 1, 1 / 2)
    short = [
        ("Press", 1.3, 1.4),
        *exact[1:3],
        ("die", 9, 10),
    ]  # "Press" is inside; "die" is not counted
    assert shares(*short) == (1, 1 / 2, 1)


def test_table_has_all_joins(examples, tmp_path, tiny_model, capsys):
    config = tmp_path / "short.yaml"
    config.write_text("tokens_per_second: 0.5\nextra_tokens: 2\n")
    main(
        ["--model", str(tiny_model), "--examples", str(examples), "--minutes", "0.1"]
        + ["--music", str(examples), "--output_dir", str(tmp_path / "out")]
        + ["--config", str(config)]
    )
    rows = [line for line in capsys.readouterr().out.splitlines() if line[:1] == "|"]
    assert [row.split(" | ")[0] for row in rows[2:]] == [f"| {join}" for join in JOINS]
    assert all(row.count("|") == 12 for row in rows)
    names = sorted(path.name for path in (tmp_path / "out").glob("[!.]*"))
    assert names == sorted(
        f"{join}_0.1.{suffix}" for join in JOINS for suffix in ("wav", "srt")
    )


def test_languages_without_spaces_are_scored_by_characters(
    examples, tmp_path, tiny_model, capsys
):
    folder = tmp_path / "japanese"
    write_table(folder / "wav.scp", {"u1": str(examples / "u1.wav")})
    write_table(folder / "text", {"u1": "右、ひだり。"})
    write_table(folder / "utt2task", {"u1": "asr ja ja"})
    [prompt] = read_prompts(folder, "ja")
    assert prompt.words == ["右", "ひ", "だ", "り"]
    words = [Word("右、", 0.8, 1.1, 1.0), Word("ひ", 1.1, 1.3, 1.0)]
    words += [Word("た", 1.3, 1.5, 1.0), Word("り。", 1.5, 2.0, 1.0)]
    shares = time_shares([prompt], [Placed(0, 1.0, 2.0)], words, "ja")
    assert shares == (2 / 3, 0, 1)  # three of four are recognised, one begins early
    recognised = scored_words("".join(word.text for word in words), "ja")
    assert error_rate([prompt.words], [recognised]) == 25.0
    model, config = tmp_path / "model", tmp_path / "short.yaml"
    shutil.copytree(tiny_model, model)
    prompts = (model / "prompts.yaml").read_text()
    (model / "prompts.yaml").write_text(prompts.replace("fr:", "ja:"))
    config.write_text("tokens_per_second: 0.5\nextra_tokens: 2\n")
    main(
        ["--model", str(model), "--examples", str(folder), "--minutes", "0.1"]
        + ["--language", "ja", "--joins", "none", "--config", str(config)]
        + ["--output_dir", str(tmp_path / "out")]
    )
    output = capsys.readouterr().out
    assert "CER one by one" in output and "| CER |" in output and "WER" not in output


def test_missing_music_is_an_error(tiny_model, examples, tmp_path):
    with pytest.raises(UserError, match="needs a folder of hold music"):
        main(
            ["--model", str(tiny_model), "--examples", str(examples)]
            + ["--joins", "music", "--output_dir", str(tmp_path)]
        )
