"""Fingerprints of model folders."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from speechllm.pretrained import model_folder
from speechllm.pretrained.model_folder import model_fingerprint, write_safetensors
from speechllm.utils.errors import UserError


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"hidden_size": 2}')
    write_safetensors(
        folder / "model.safetensors", {"w": np.arange(4, dtype=np.float32)}
    )
    return folder


def test_fingerprint_depends_on_config_and_weights(model, tmp_path):
    first = model_fingerprint(model)
    assert len(first) == 64 and int(first, 16) >= 0
    (model / "README.md").write_text("no part of it")
    assert model_fingerprint(model) == first
    copy = shutil.copytree(model, tmp_path / "copy")
    os.utime(copy / "model.safetensors", (1, 1))
    assert model_fingerprint(copy) == first

    (copy / "config.json").write_text('{"hidden_size": 3}')
    assert model_fingerprint(copy) != first
    (copy / "config.json").write_text('{"hidden_size": 2}')
    assert model_fingerprint(copy) == first
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert model_fingerprint(copy) != first


def test_fingerprint_is_cached_in_the_folder(model, monkeypatch):
    first = model_fingerprint(model)
    monkeypatch.setattr(model_folder, "file_sha256", lambda path: pytest.fail("read"))
    assert model_fingerprint(model) == first
    monkeypatch.undo()
    for damaged in ("{", "[]", json.dumps({"files": []})):
        (model / ".speechllm_fingerprint.json").write_text(damaged)
        assert model_fingerprint(model) == first


def test_fingerprint_of_a_read_only_folder(model, monkeypatch):
    def refuse(path, value):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(model_folder, "write_json", refuse)
    assert len(model_fingerprint(model)) == 64
    assert not (model / ".speechllm_fingerprint.json").exists()


def test_large_files_enter_the_fingerprint_by_size(model, monkeypatch):
    monkeypatch.setattr(model_folder, "_CONTENTS_BELOW", 50)
    first = model_fingerprint(model)
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (model / "model.safetensors").write_bytes(data)
    assert model_fingerprint(model) == first
    (model / "model.safetensors").write_bytes(data + b"x")
    assert model_fingerprint(model) != first


def test_fingerprint_of_an_incomplete_model_is_an_error(tmp_path):
    with pytest.raises(UserError, match="lacks config.json and model.safetensors"):
        model_fingerprint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(UserError, match="index.json: not JSON"):
        model_fingerprint(tmp_path)
