"""Damaged pretrained models, whose files an error names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_models import write_tiny_whisper

from speechllm import SpeechToText
from speechllm.inference.recordings import Recording
from speechllm.inference.transcribe_recordings import transcribe_recordings
from speechllm.utils.errors import UserError


@pytest.fixture
def copied(tiny_model, tmp_path) -> Path:
    """Return a copy of the model that a test may change."""
    shutil.copytree(tiny_model, tmp_path / "model")
    return tmp_path / "model"


def test_missing_ctc_labels_are_named(copied):
    (copied / "tokens.txt").unlink()
    with pytest.raises(UserError, match=f"{copied}/tokens.txt: missing"):
        SpeechToText.from_pretrained(copied)


@pytest.mark.parametrize(
    "name", ["generation_config.yaml", "guard.yaml", "llm/generation_config.json"]
)
def test_folder_in_place_of_a_file_is_named(copied, name):
    config = yaml.safe_load((copied / "config.yaml").read_text())
    config["llm_conf"]["model"] = str(copied / "llm")
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    (copied / name).unlink(missing_ok=True)
    (copied / name).mkdir()
    with pytest.raises(UserError, match=f"{copied / name}: (not a|cannot be)"):
        SpeechToText.from_pretrained(copied)


def test_empty_language_is_not_the_default(tiny_model, speech_file):
    model = SpeechToText.from_pretrained(tiny_model)
    with pytest.raises(UserError, match="''"):
        model.transcribe([speech_file], language="")


def test_foreign_and_nan_pretrained_weights_are_errors(copied, tmp_path):
    encoder = write_tiny_whisper(tmp_path / "encoder")
    config = yaml.safe_load((copied / "config.yaml").read_text())
    config["encoder_conf"]["model"] = str(encoder)
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    weights = load_file(encoder / "model.safetensors")
    path = encoder / "model.safetensors"
    bad = {k: v + float("nan") for k, v in weights.items()}
    save_file(bad, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{path}: .* not finite"):
        SpeechToText.from_pretrained(copied)
    save_file({"a.weight": torch.ones(3)}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{path}: the weights are incomplete or of"):
        SpeechToText.from_pretrained(copied)


@pytest.mark.parametrize("part", ["encoder", "llm"])
def test_missing_weights_are_not_replaced_by_random_ones(copied, tmp_path, part):
    config = yaml.safe_load((copied / "config.yaml").read_text())
    folder = tmp_path / part
    shutil.copytree(config[f"{part}_conf"]["model"], folder)
    config[f"{part}_conf"]["model"] = str(folder)
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    path = folder / "model.safetensors"
    weights = load_file(path)
    used = [name for name in weights if not name.startswith("decoder.")]
    assert len(used) > 10
    for name in (used[0], used[-1]):
        rest = {key: value for key, value in weights.items() if key != name}
        save_file(rest, path, metadata={"format": "pt"})
        with pytest.raises(UserError, match=f"{path}: .* not in them: {name}$"):
            SpeechToText.from_pretrained(copied)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "null", "no tokenizer can be loaded"),
        ("tokenizer_config.json", "[1]", "no tokenizer can be loaded"),
        ("tokenizer_config.json", "{}", "tokenizer_config.json: .* without eos_token"),
        ("tokenizer_config.json", None, "tokenizer_config.json: missing or without"),
    ],
)
def test_damaged_tokenizer_is_an_error(copied, tmp_path, name, content, message):
    config = yaml.safe_load((copied / "config.yaml").read_text())
    folder = tmp_path / "llm"
    shutil.copytree(config["llm_conf"]["model"], folder)
    config["llm_conf"]["model"] = str(folder)
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(UserError, match=f"^{folder}.*{message}") as caught:
        SpeechToText.from_pretrained(copied)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("old_format", [True, False])
def test_damaged_and_foreign_torch_files_are_named(copied, tmp_path, old_format):
    encoder = write_tiny_whisper(tmp_path / "encoder")
    config = yaml.safe_load((copied / "config.yaml").read_text())
    config["encoder_conf"]["model"] = str(encoder)
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    weights = load_file(encoder / "model.safetensors")
    (encoder / "model.safetensors").unlink()
    path = encoder / "pytorch_model.bin"
    options = {"_use_new_zipfile_serialization": not old_format}
    torch.save(weights, path, **options)
    SpeechToText.from_pretrained(copied)
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 9, 100, 0):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=f"^{path}: ") as caught:
            SpeechToText.from_pretrained(copied)
        assert "\n" not in str(caught.value)
    torch.save({"a.weight": torch.ones(3)}, path, **options)
    with pytest.raises(UserError, match=f"{path}: the weights are incomplete or of"):
        SpeechToText.from_pretrained(copied)


def test_a_damaged_first_pass_is_refused_with_the_model(copied):
    folder = copied / "first_pass"
    folder.write_text("")
    with pytest.raises(UserError, match=f"{folder}: not a folder"):
        SpeechToText.from_pretrained(copied)
    folder.unlink()
    folder.mkdir()
    with pytest.raises(UserError, match=f"{folder}: lacks config.json, model.safet"):
        SpeechToText.from_pretrained(copied)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("generation_config.json", "[]", "Whisper cannot be loaded: 'list' object"),
        ("generation_config.json", "{}", "its generation_config.json is not of a"),
        ("preprocessor_config.json", "[]", "Whisper cannot be loaded: 'list' object"),
        ("tokenizer.json", None, "with its tokenizer; set first_pass_beam_size to 0"),
    ],
)
def test_a_first_pass_is_loaded_before_the_first_recording(
    copied, whisper_base, tmp_path, name, content, message
):
    folder = copied / "first_pass"
    folder.mkdir()
    for path in whisper_base.iterdir():
        if path.name != name:
            (folder / path.name).symlink_to(path)
        elif content is not None:
            (folder / name).write_text(content)
    options = {"first_pass_beam_size": 2}
    with pytest.raises(UserError, match=f"{folder}: .*{message}"):
        transcribe_recordings(str(copied), [Recording("a", "a.wav")], **options)
