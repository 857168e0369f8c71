"""Decoding settings in the model folder: who uses them, and what overrides them."""

from __future__ import annotations

import os
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import soundfile
import torch
import yaml

from speechllm import SpeechToText, cli
from speechllm.audio.io import load_audio
from speechllm.bin import calibrate, decode, guard_thresholds, tune
from speechllm.data.kaldi_table import read_table
from speechllm.decoding import nbest_search
from speechllm.decoding.option_flags import HELP
from speechllm.decoding.options import SearchOptions
from speechllm.export.hub import model_card
from speechllm.inference.generation_config import (
    GENERATION_FILE,
    read_settings,
    write_generation_config,
)
from speechllm.utils.errors import UserError

RECIPE = {
    "batch_size": 2,
    "beam_size": 3,
    "ctc_weight": 0.6,
    "pre_beam_size": 10,
    "tokens_per_second": 0.0,
    "extra_tokens": 6.0,
}


@pytest.fixture
def model_dir(tiny_model, tmp_path) -> Path:
    """Copy the tiny model, with the settings of a recipe."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    recipe = tmp_path / "decode.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE))
    write_generation_config(folder, recipe)
    return folder


@pytest.fixture
def examples(tmp_path, speech_file) -> Path:
    """Write an example dir of five excerpts of speech."""
    folder = tmp_path / "examples"
    folder.mkdir()
    speech = load_audio(speech_file)
    tables: dict[str, list[str]] = {"wav.scp": [], "utt2task": [], "text": []}
    for number in range(5):
        path = folder / f"u{number}.wav"
        piece = speech[4000 * number : 4000 * number + 12000 + 3000 * number]
        soundfile.write(path, piece, 16000)
        tables["wav.scp"].append(f"u{number} {path}")
        tables["utt2task"].append(f"u{number} asr en en")
        tables["text"].append(f"u{number} please enter your password")
    samples = [f"u{n} {12000 + 3000 * n}" for n in range(5)]
    for name, lines in {**tables, "utt2num_samples": samples}.items():
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def decoded(model_dir: Path, examples: Path, output: Path, *more: str) -> dict:
    command = ["--model", model_dir, "--examples", examples, "--output_dir", output]
    decode.main([*map(str, command), *more])
    return read_table(output / "text")


def transcribed(capsys, model_dir: Path, examples: Path, *more: str) -> dict:
    capsys.readouterr()
    command = ["transcribe", "--model", model_dir, *more, examples / "wav.scp"]
    assert cli.main(list(map(str, command))) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    return dict(rows)


def test_transcribe_equals_decode(capsys, tmp_path, model_dir, tiny_model, examples):
    """The same texts by stage 12 with the recipe's config, and with no flag at all."""
    recipe = str(tmp_path / "decode.yaml")
    expected = decoded(tiny_model, examples, tmp_path / "12", "--config", recipe)
    assert len(set(expected.values())) > 1
    assert decoded(model_dir, examples, tmp_path / "folder") == expected
    assert transcribed(capsys, model_dir, examples) == expected
    assert transcribed(capsys, tiny_model, examples, "--config", recipe) == expected
    model = SpeechToText.from_pretrained(model_dir)
    assert model.batch_size == 2
    results = model.transcribe(list(read_table(examples / "wav.scp").values()))
    assert [" ".join(r.text.split()) for r in results] == list(expected.values())
    greedy = transcribed(capsys, tiny_model, examples)
    assert greedy != expected


def test_flags_override_a_config_which_replaces_the_folder(
    capsys, tmp_path, model_dir, examples, monkeypatch
):
    config = tmp_path / "other.yaml"
    config.write_text("beam_size: 2\nextra_tokens: 4.0\n")
    seen: list[SearchOptions] = []
    search = nbest_search.search_up_to

    def spy(llm, codec, batch, options, *rest, **more):
        seen.append(options)
        return search(llm, codec, batch, options, *rest, **more)

    monkeypatch.setattr(nbest_search, "search_up_to", spy)
    for more, expected in (
        ((), (3, 0.6, 6.0, False)),
        (("--config", str(config)), (2, 0.0, 4.0, False)),
        (("--config", str(config), "--beam_size", "1"), (1, 0.0, 4.0, False)),
        (("--ctc_weight", "0.2", "--retry_truncated"), (3, 0.2, 6.0, True)),
    ):
        output = tmp_path / "out" / "-".join(more).replace("/", "")
        for run in (
            lambda more=more: transcribed(capsys, model_dir, examples, *more),
            lambda more=more, out=output: decoded(model_dir, examples, out, *more),
        ):
            seen.clear()
            run()
            first = seen[0]
            assert expected == (
                first.beam_size,
                first.ctc_weight,
                first.extra_tokens,
                first.retry_truncated,
            )


def test_precision_of_the_settings_is_used(tmp_path, model_dir, tiny_model):
    path = model_dir / GENERATION_FILE
    path.write_text(path.read_text() + "dtype: bfloat16\n")
    model = SpeechToText.from_pretrained(model_dir)
    assert next(model.model.parameters()).dtype == torch.bfloat16
    model = SpeechToText.from_pretrained(model_dir, dtype="float32")
    assert next(model.model.parameters()).dtype == torch.float32
    model = SpeechToText.from_pretrained(model_dir, config={"beam_size": 4})
    assert next(model.model.parameters()).dtype == torch.float32
    assert model.generation == {"beam_size": 4}


def test_settings_do_not_change_a_decoding_with_a_config(
    tmp_path, model_dir, examples, monkeypatch
):
    recipe = ("--config", str(tmp_path / "decode.yaml"))
    decoded(model_dir, examples, tmp_path / "out", *recipe)
    (model_dir / GENERATION_FILE).write_text("beam_size: 1\n")
    monkeypatch.setattr(SpeechToText, "from_pretrained", None)  # nothing to decode
    decoded(model_dir, examples, tmp_path / "out", *recipe)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("beams: 3", "generation_config.yaml: unknown option 'beams'"),
        ("ctc_weight: 7", "generation_config.yaml: ctc_weight 7: from 0 to 1"),
        ("[", "generation_config.yaml: cannot be read as YAML"),
    ],
)
def test_wrong_settings_are_one_line(capsys, model_dir, examples, content, message):
    (model_dir / GENERATION_FILE).write_text(content)
    with pytest.raises(UserError, match=message):
        transcribed(capsys, model_dir, examples)


def test_edits_survive_an_export(tmp_path, model_dir):
    recipe, path = tmp_path / "decode.yaml", model_dir / GENERATION_FILE
    first = path.read_text()
    assert yaml.safe_load(first) == RECIPE
    write_generation_config(model_dir, recipe)
    edited = first.replace("beam_size: 3", "beam_size: 5  # slower")
    path.write_text(edited)
    assert "left as it is" in write_generation_config(model_dir, recipe)
    assert path.read_text() == edited
    recipe.write_text("beam_size: 7\n")
    assert "kept as" in write_generation_config(model_dir, recipe)
    assert yaml.safe_load(path.read_text()) == {"beam_size": 7}
    previous = path.with_name(path.name + ".previous")
    assert previous.read_text() == edited
    recipe.write_text("beam_size: 8\n")  # the one before was not edited
    write_generation_config(model_dir, recipe)
    assert not path.with_name(path.name + ".previous.2").exists()
    path.write_text("beam_size: 9\n")  # of the user alone
    write_generation_config(model_dir, recipe)
    assert path.with_name(path.name + ".previous.2").read_text() == "beam_size: 9\n"


def test_limits_of_old_folders_are_used(tmp_path, tiny_model):
    """They are in config.yaml, and of the model rather than chosen."""
    folder = tmp_path / "old"
    shutil.copytree(tiny_model, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["generation"] = {"tokens_per_second": 9.0, "extra_tokens": 3.0}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    options = SpeechToText.from_pretrained(folder).options({})
    assert (options.tokens_per_second, options.extra_tokens) == (9.0, 3.0)
    assert options.retry_truncated
    (folder / GENERATION_FILE).write_text("tokens_per_second: 2.0\n")
    options = SpeechToText.from_pretrained(folder).options({})
    assert (options.tokens_per_second, options.extra_tokens) == (2.0, 3.0)
    assert options.retry_truncated is False


def test_every_search_option_has_a_flag(capsys):
    assert set(HELP) == {field.name for field in fields(SearchOptions)}
    for main, command in ((cli.main, ["transcribe", "--help"]), (decode.main, ["-h"])):
        with pytest.raises(SystemExit):
            main(command)
        printed = capsys.readouterr().out
        for name in HELP:
            assert f"--{name}" in printed


def test_model_card_names_the_settings(model_dir):
    card = model_card(model_dir, [], "me/model")
    assert "`beam_size: 3`, `ctc_weight: 0.6`" in card
    assert "speechllm transcribe --model me/model" in card


def test_tune_equals_two_commands_and_searches_once(
    tmp_path, model_dir, examples, monkeypatch
):
    table = dict(read_table(examples / "text"))
    model = SpeechToText.from_pretrained(model_dir)
    (result,) = model.transcribe([load_audio(examples / "u0.wav")])
    table["u0"] = " ".join(result.text.split())  # one right hypothesis
    lines = [f"{name} {text}\n" for name, text in table.items()]
    (examples / "text").write_text("".join(lines))
    two = tmp_path / "two"
    shutil.copytree(model_dir, two)
    counts = {"utterances": 0}
    search = SpeechToText.search

    def count(self, batch, *rest):
        counts["utterances"] += len(batch.tasks)
        return search(self, batch, *rest)

    monkeypatch.setattr(SpeechToText, "search", count)
    command = ["--examples", str(examples), "--batch_size", "2", "--model"]
    guard_thresholds.main([*command, str(two)])
    calibrate.main([*command, str(two)])
    assert counts.pop("utterances") == 10
    counts["utterances"] = 0
    tune.main([*command, str(model_dir)])
    assert counts["utterances"] == 5
    for name in ("guard.yaml", "confidence.json"):
        one, other = (
            yaml.safe_load((folder / name).read_text()) for folder in (model_dir, two)
        )
        assert one == other
    before = (model_dir / "guard.yaml").read_text() + "# my own line\n"
    (model_dir / "guard.yaml").write_text(before)
    tune.main([*command, str(model_dir)])
    assert (model_dir / "guard.yaml.previous").read_text() == before


def test_tune_without_ctc_succeeds_if_possible(tmp_path, model_dir, examples, capsys):
    config = yaml.safe_load((model_dir / "config.yaml").read_text())
    (model_dir / "config.yaml").write_text(
        yaml.safe_dump({**config, "ctc_trained": False})
    )
    (model_dir / GENERATION_FILE).write_text("beam_size: 1\n")
    command = ["--model", str(model_dir), "--examples", str(examples)]
    with pytest.raises(UserError, match="trained CTC"):
        tune.main(command)
    tune.main([*command, "--if_possible"])
    printed = capsys.readouterr().out
    assert "no guard.yaml: " in printed and "no confidence.json: " in printed


def test_settings_that_are_no_file_are_refused(tmp_path):
    assert read_settings(None, tmp_path) == {}
    os.mkfifo(tmp_path / GENERATION_FILE)
    with pytest.raises(UserError, match=r"generation_config\.yaml: not a regular file"):
        read_settings(None, tmp_path)
