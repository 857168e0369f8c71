"""Weights on a full disk: the error of training and export names the file."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from safetensors.torch import save_file
from torch.multiprocessing import ProcessExitedException

from speechllm.bin.speechllm_train import main
from speechllm.training.initialization import safe_checkpoints
from speechllm.utils.errors import UserError
from speechllm.utils.folders import FolderKind, atomic_directory

WEIGHTS = {"a": torch.zeros(100_000)}


@contextmanager
def full_disk():
    """Limit the size of files, which acts as a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit_files(before[1])
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def limit_files(hard: int = resource.RLIM_INFINITY) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))


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


@pytest.mark.slow
def test_a_full_disk_ends_both_processes_of_a_parallel_training(
    train, training_arguments, tmp_path
):
    """Rank 0 cannot write the checkpoint of the second epoch."""
    folder = train(tmp_path / "exp", max_epoch=1)
    before = {path.name: path.read_bytes() for path in folder.glob("*.pth")}
    command = [sys.executable, "-m", "speechllm.bin.speechllm_train"]
    command += training_arguments(folder, max_epoch=3)
    command += ["--multiprocessing_distributed", "false", "--dist_backend", "gloo"]
    command += ["--dist_init_method", f"file://{tmp_path}/init", "--dist_world_size=2"]
    processes = [
        subprocess.Popen(
            [*command, "--dist_rank", str(rank)],
            preexec_fn=limit_files if rank == 0 else None,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    outputs = [processes[0].communicate(timeout=600)[1]]
    outputs.append(processes[1].communicate(timeout=60)[1])
    print(*outputs, sep="\n")
    assert [process.returncode for process in processes] == [1, 1]
    assert not any("Traceback" in output for output in outputs)
    last = [output.splitlines()[-1] for output in outputs]
    assert last[0] == f"error: File too large: {folder / 'checkpoint.pth'}"
    assert last[1].startswith("no connection to another process, whose log says why")
    assert {path.name: path.read_bytes() for path in folder.glob("*.pth")} == before


@pytest.mark.slow
def test_an_error_of_a_process_that_training_starts_is_one_line(
    train, training_arguments, tmp_path
):
    """Both processes refuse other CTC labels, before they need a GPU."""
    folder = train(tmp_path / "exp", max_epoch=1)
    (tmp_path / "tokens.txt").write_text("<blank>\n<unk>\na\n<sos/eos>\n")
    command = [sys.executable, "-m", "speechllm.bin.speechllm_train"]
    command += [*training_arguments(folder, max_epoch=2), "--ngpu", "2"]
    command += ["--multiprocessing_distributed", "true"]
    command += ["--ctc_token_list", str(tmp_path / "tokens.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stderr)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    errors = {line for line in done.stderr.splitlines() if line.startswith("error: ")}
    assert len(errors) == 1 and "other CTC labels" in errors.pop()


def test_a_killed_process_of_a_training_is_named(monkeypatch, training_arguments):
    """As by the kernel when the memory is full."""
    error = ProcessExitedException("process 1 terminated", 1, 7, -9, "SIGKILL")
    killed = MagicMock(side_effect=error)
    monkeypatch.setattr("espnet2.tasks.abs_task.AbsTask.main", killed)
    with pytest.raises(UserError, match="rank 1 was ended by SIGKILL; is the memory"):
        main(training_arguments(Path("exp")))
