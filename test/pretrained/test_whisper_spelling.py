"""Spellings of Whisper's English normaliser: model folders, caches, the wheel."""

from __future__ import annotations

import json
import zipfile

import pytest
from huggingface_hub import constants

from speechllm.pretrained import whisper_spelling
from speechllm.pretrained.wheels import Wheel
from speechllm.pretrained.whisper_spelling import english_spelling
from speechllm.utils.errors import UserError
from speechllm.utils.io import file_sha256


@pytest.fixture
def caches(tmp_path, monkeypatch):
    """Return the hub's and the project's cache, both empty; pip finds no package."""
    hub, own = tmp_path / "hub", tmp_path / "own"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setenv("SPEECHLLM_CACHE", str(own))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return hub, own


def write(folder, table):
    folder.mkdir(parents=True)
    (folder / "normalizer.json").write_text(json.dumps(table))
    return folder


def test_a_model_folder_is_used(tmp_path, caches):
    folder = write(tmp_path / "whisper", {"colour": "color"})
    assert english_spelling(folder) == {"colour": "color"}
    with pytest.raises(UserError, match="none: no normalizer.json"):
        english_spelling(tmp_path / "none")


def test_the_caches_are_searched_first(caches):
    hub, own = caches
    write(own / "models" / "openai--whisper-tiny", {"a": "own"})
    assert english_spelling() == {"a": "own"}
    write(hub / "models--openai--whisper-base" / "snapshots" / "1234", {"a": "hub"})
    assert english_spelling() == {"a": "hub"}


def test_the_wheel_is_checked_and_read(caches, monkeypatch):
    wheels = caches[1] / "wheels"
    wheels.mkdir(parents=True)
    path = wheels / whisper_spelling.WHEEL.filename
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "whisper_normalizer/normalizers/english.json", '{"colour": "color"}'
        )
    with pytest.raises(UserError, match="SHA-256|checksum"):
        english_spelling()
    name, version = whisper_spelling.WHEEL.package, whisper_spelling.WHEEL.version
    wheel = Wheel(name, version, file_sha256(path))
    monkeypatch.setattr(whisper_spelling, "WHEEL", wheel)
    assert english_spelling() == {"colour": "color"}


def test_without_any_table_one_line_says_what_to_do(caches):
    with pytest.raises(UserError) as error:
        english_spelling()
    message = str(error.value)
    assert "\n" not in message
    assert "no normalizer.json" in message and "--normalizer whisper:FOLDER" in message
    assert str(caches[1] / "wheels") in message


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}', "\udcff"])
def test_a_damaged_table_is_named(tmp_path, caches, content):
    path = write(tmp_path / "whisper", {}) / "normalizer.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match="normalizer.json"):
        english_spelling(path.parent)
