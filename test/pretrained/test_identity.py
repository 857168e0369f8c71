"""Identity of pretrained models: values of tensors and vocabulary, not files."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from speechllm.pretrained.identity import model_identity, vocabulary_sha256
from speechllm.pretrained.model_folder import FINGERPRINT_FILE, model_fingerprint
from speechllm.utils.errors import UserError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 2}')
    save_file({"w": torch.tensor([1.0, 2.5])}, tmp_path / "model.safetensors")
    return tmp_path


def test_weights_are_identified_by_their_values(folder):
    content = hashlib.sha256(np.array([1.0, 2.5], np.float32).tobytes()).hexdigest()
    expected = hashlib.sha256(f"w\0[2]\0{content}\n".encode()).hexdigest()
    assert model_identity(folder) == {"weights": expected}
    (folder / "config.json").write_text("{}")
    half = {"w": torch.tensor([1.0, 2.5], dtype=torch.bfloat16)}  # without a loss
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    assert model_identity(folder) == {"weights": expected}
    (folder / "model.safetensors").unlink()
    torch.save({"w": torch.tensor([1.0, 2.5])}, folder / "pytorch_model.bin")
    assert model_identity(folder) == {"weights": expected}
    torch.save({"w": torch.tensor([[1.0, 2.5]])}, folder / "pytorch_model.bin")
    assert model_identity(folder) != {"weights": expected}


def test_identity_is_cached_beside_the_old_fingerprint(folder, monkeypatch):
    found, old = model_identity(folder), model_fingerprint(folder)
    cache = json.loads((folder / FINGERPRINT_FILE).read_text())
    assert set(cache) == {"tensors", "sha256"}
    monkeypatch.setattr(
        "speechllm.pretrained.identity._tensors", lambda _: pytest.fail("read")
    )
    assert (model_identity(folder), model_fingerprint(folder)) == (found, old)
    monkeypatch.undo()
    (folder / FINGERPRINT_FILE).write_text("[1]")
    assert (model_identity(folder), model_fingerprint(folder)) == (found, old)


def test_vocabulary_is_that_of_the_ids(folder):
    content = {
        "model": {"vocab": {"a": 0, "b": 1}, "merges": ["a b"]},
        "added_tokens": [{"id": 2, "content": "<s>", "special": True}],
    }
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content))
    found = vocabulary_sha256(folder)
    content["model"]["merges"] = [["a", "b"]]  # as of tokenizers 0.20
    content["truncation"] = None
    path.write_text(json.dumps(content, indent=2))
    assert vocabulary_sha256(folder) == found
    content["model"]["vocab"] = {"a": 1, "b": 0}
    path.write_text(json.dumps(content))
    assert vocabulary_sha256(folder) != found


def test_incomplete_and_damaged_models(folder):
    (folder / "model.safetensors").write_bytes(b"\2" + bytes(7) + b"[]")
    with pytest.raises(UserError, match="model.safetensors: damaged"):
        model_identity(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="it lacks model.safetensors"):
        model_identity(folder)
