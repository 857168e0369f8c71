"""Checkpoints of Lightning as tensors; none can run code."""

from __future__ import annotations

import os
import pickle
from importlib.util import find_spec

import pytest
import torch
from torch.distributed.checkpoint import save

from speechllm.pretrained.checkpoint import load_tensors
from speechllm.pretrained.trainer_checkpoint import load_shards, weights_only
from speechllm.utils.errors import UserError

needs_deepspeed = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="needs DeepSpeed"
)
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


@pytest.mark.parametrize("state", [{"lr": 0.0}, {"step": torch.zeros(2)}])
def test_resume_of_shards_reads_values_and_tensors(shards, state):
    """As FSDP reads the optimizer state: tensors in place, other values unpickled."""
    load_shards({"optimizer_0": state}, shards, no_dist=True)
    expected = {"lr": 0.1, "step": torch.ones(2)}
    for name, value in state.items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("entry", ["lr", "step", ".metadata"])
def test_resume_of_shards_runs_no_code(tmp_path, entry):
    """``torch.distributed.checkpoint`` itself unpickles values with any class."""
    path, made = tmp_path / "last.ckpt", tmp_path / "made"
    values = {"lr": 0.1, "step": torch.ones(2)}
    planted = {name: Attack(made) if name == entry else v for name, v in values.items()}
    save({"optimizer_0": planted}, checkpoint_id=path, no_dist=True)
    if entry == ".metadata":
        (path / entry).write_bytes(pickle.dumps(Attack(made)))
    with pytest.raises(pickle.UnpicklingError):
        load_shards({"optimizer_0": dict(values)}, path, no_dist=True)
    assert not made.exists()


def test_other_packages_unpickle_no_other_classes(tmp_path):
    """As DeepSpeed reads its files: ``torch.load`` with ``weights_only=False``."""
    path, made = tmp_path / "states.pt", tmp_path / "made"
    torch.save({"attack": Attack(made)}, path)
    with pytest.raises(pickle.UnpicklingError), weights_only(()):
        torch.load(path, mmap=True, weights_only=False)
    assert not made.exists()
    with pytest.raises(FileExistsError):  # the attack works, and the way back
        made.mkdir()
        torch.load(path, weights_only=False)


@pytest.fixture
def zero(tmp_path):
    """Checkpoint as of DeepSpeed's ZeRO 2 with one process."""
    folder = tmp_path / "last.ckpt" / "checkpoint"
    folder.mkdir(parents=True)
    names = list(TENSORS)
    flat = torch.cat([TENSORS[name].float().flatten() for name in names])
    optimizer = {"zero_stage": 2, "partition_count": 1}
    optimizer["single_partition_of_fp32_groups"] = [flat]
    torch.save(
        {"optimizer_state_dict": optimizer},
        folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt",
    )
    model = {
        "buffer_names": [],
        "module": {},
        "param_shapes": [{name: TENSORS[name].shape for name in names}],
        "shared_params": {},
        "ds_version": "0.19",
        "untrained": {"model.mean": torch.zeros(3)},
    }
    torch.save(model, folder / "mp_rank_00_model_states.pt")
    return folder.parent


@needs_deepspeed
def test_deepspeed(zero):
    found = load_tensors(zero)
    expected = {name: value.float() for name, value in EXPECTED.items()}
    expected["mean"] = torch.zeros(3)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@needs_deepspeed
@pytest.mark.parametrize("kind", ["optim", "model"])
@pytest.mark.parametrize("whole", [True, False])
def test_deepspeed_runs_no_code(zero, tmp_path, kind, whole):
    """The whole file, or one more entry among those that are read."""
    (file,) = zero.glob(f"*/*_{kind}_states.pt")
    made = tmp_path / "made"
    content = torch.load(file, weights_only=True)
    torch.save(Attack(made) if whole else {**content, "x": Attack(made)}, file)
    with pytest.raises(UserError, match="damaged, or pickled with more than tensors"):
        load_tensors(zero)
    assert not made.exists()


def test_folder_without_a_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    path.mkdir()
    with pytest.raises(UserError, match="last.ckpt: this folder has no complete"):
        load_tensors(path)
