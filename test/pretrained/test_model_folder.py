"""Fingerprints of model folders."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import numpy as np
import pytest

from speechllm.bin import fetch_models
from speechllm.pretrained import model_folder
from speechllm.pretrained.checkpoint import load_tensors
from speechllm.pretrained.model_folder import (
    check_files,
    has_fingerprint,
    model_fingerprint,
    write_safetensors,
)
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


def test_large_files_enter_the_fingerprint_by_content(model, monkeypatch):
    """Release 0.2 recorded their size only; such a record still fits."""
    monkeypatch.setattr(model_folder, "_OLD_CONTENTS_BELOW", 50)
    first = model_fingerprint(model)
    old = hashlib.sha256()
    config, weights = model / "config.json", model / "model.safetensors"
    content = hashlib.sha256(config.read_bytes()).hexdigest()
    old.update(f"config.json\0{config.stat().st_size}\0{content}\n".encode())
    old.update(f"model.safetensors\0{weights.stat().st_size}\0-\n".encode())
    assert has_fingerprint(model, old.hexdigest())
    assert has_fingerprint(model, first)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert model_fingerprint(model) != first
    assert not has_fingerprint(model, first)
    assert has_fingerprint(model, old.hexdigest())


def test_fingerprint_of_an_llm_covers_the_vocabulary(model):
    without = model_fingerprint(model, tokenizer=True)
    (model / "tokenizer.json").write_text('{"a": 0, "b": 1}')
    first = model_fingerprint(model, tokenizer=True)
    assert first != without == model_fingerprint(model)
    assert has_fingerprint(model, first, tokenizer=True)
    (model / "tokenizer.json").write_text('{"a": 1, "b": 0}')
    assert not has_fingerprint(model, first, tokenizer=True)
    assert has_fingerprint(model, without, tokenizer=True)  # of release 0.2


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("model.safetensors", cut, "safetensors: .*cut off"),
        ("model.safetensors", lambda p: p.write_bytes(b"x"), "not a safetensors file"),
        (
            "model.safetensors",
            lambda p: p.write_bytes(b"\2" + bytes(7) + b"[]"),
            "its header is damaged",
        ),
        ("config.json", lambda p: p.write_text("{"), "config.json: not JSON"),
        (
            "tokenizer.json",
            lambda p: p.write_bytes(b"\xff"),
            "tokenizer.json: not JSON",
        ),
        ("tokenizer.json", os.mkfifo, "tokenizer.json: not a regular file"),
    ],
)
def test_damaged_files_are_named(model, name, damage, message):
    check_files(model)
    damage(model / name)
    with pytest.raises(UserError, match=message):
        check_files(model)
    with pytest.raises(UserError, match=message):
        fetch_models.main([str(model)])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_are_finite(tmp_path, value):
    weights = np.array([1, value, 3], dtype=np.float32)
    write_safetensors(tmp_path / "model.safetensors", {"a": weights})
    with pytest.raises(UserError, match="model.safetensors: a has values that are not"):
        load_tensors(tmp_path)


def test_fingerprint_of_an_incomplete_model_is_an_error(tmp_path):
    with pytest.raises(UserError, match="lacks config.json and model.safetensors"):
        model_fingerprint(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(UserError, match="index.json: not JSON"):
        model_fingerprint(tmp_path)
