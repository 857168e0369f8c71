"""Checkpoints of Lightning as tensors; none can run code."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from torch.distributed.checkpoint import save

from speechllm.pretrained.checkpoint import load_tensors
from speechllm.utils.errors import UserError

TENSORS = {
    "model.ctc.weight": torch.arange(6.0).reshape(2, 3),
    "model.llm.lora_A": torch.ones(4, dtype=torch.bfloat16),
}
EXPECTED = {name.removeprefix("model."): value for name, value in TENSORS.items()}


class Attack:
    """Creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def shards(tmp_path):
    """Checkpoint that torch.distributed.checkpoint wrote."""
    path = tmp_path / "last.ckpt"
    state = {"state_dict": TENSORS, "optimizer_0": {"lr": 0.1, "step": torch.ones(2)}}
    save(state, checkpoint_id=path, no_dist=True)
    return path


def test_single_file(tmp_path):
    path = tmp_path / "epoch0.ckpt"
    torch.save({"state_dict": TENSORS, "epoch": 0, "loops": {"a": [1]}}, path)
    torch.testing.assert_close(load_tensors(path), EXPECTED, rtol=0, atol=0)


def test_shards(shards):
    torch.testing.assert_close(load_tensors(shards), EXPECTED, rtol=0, atol=0)


def test_single_file_runs_no_code(tmp_path):
    path, made = tmp_path / "epoch0.ckpt", tmp_path / "made"
    torch.save({"state_dict": TENSORS, "attack": Attack(made)}, path)
    with pytest.raises(UserError, match="epoch0.ckpt: not a checkpoint of tensors"):
        load_tensors(path)
    assert not made.exists()


def test_metadata_of_shards_runs_no_code(shards, tmp_path):
    made = tmp_path / "made"
    (shards / ".metadata").write_bytes(pickle.dumps(Attack(made)))
    with pytest.raises(UserError, match="damaged, or pickled with more than tensors"):
        load_tensors(shards)
    assert not made.exists()


def test_shard_runs_no_code(shards, tmp_path):
    made = tmp_path / "made"
    (file,) = shards.glob("*.distcp")
    size = file.stat().st_size
    with open(tmp_path / "attack", "w+b") as stream:
        torch.save(Attack(made), stream)
    content = (tmp_path / "attack").read_bytes()
    file.write_bytes(content.ljust(size, b"\0"))
    with pytest.raises(UserError, match="last.ckpt: not a checkpoint"):
        load_tensors(shards)
    assert not made.exists()


def test_folder_without_a_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    path.mkdir()
    with pytest.raises(UserError, match="last.ckpt: this folder has no complete"):
        load_tensors(path)
