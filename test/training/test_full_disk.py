"""Weights on a full disk: the error of training and export names the file."""

from __future__ import annotations

import errno
import resource
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save_file

from speechllm.training.initialization import safe_checkpoints
from speechllm.utils.folders import FolderKind, atomic_directory

WEIGHTS = {"a": torch.zeros(100_000)}


@contextmanager
def full_disk():
    """Limit the size of files, which acts as a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def save_checkpoint(path):
    with safe_checkpoints():
        torch.save(WEIGHTS, path)


def export_weights(path):
    with atomic_directory(path, FolderKind("model folder")) as folder:
        save_file(WEIGHTS, folder / "model.safetensors")


@pytest.mark.parametrize("write", [save_checkpoint, export_weights])
def test_the_error_of_a_full_disk_names_the_output(write, tmp_path):
    path = tmp_path / "model"
    with pytest.raises(OSError) as caught, full_disk():
        write(path)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []
