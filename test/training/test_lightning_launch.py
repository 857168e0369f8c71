"""A launch of two processes of which one ends."""

from __future__ import annotations

import os
import signal
import threading
import time

import ending_processes
import pytest

from speechllm.training import lightning_launch
from speechllm.training.lightning_task import confine_checkpoints
from speechllm.utils.errors import UserError


@pytest.mark.parametrize("way", ["kill", "error"])
def test_a_process_that_ends_takes_the_others_with_it(way, monkeypatch, capfd):
    """A kill names the rank; an error is printed by its process."""
    monkeypatch.setattr(lightning_launch, "run_worker", ending_processes.end)
    begin = time.monotonic()
    if way == "kill":
        with pytest.raises(UserError, match="process of rank 1 was ended by SIGKILL"):
            lightning_launch.launch([way], 2)
    else:
        with pytest.raises(SystemExit) as ended:
            lightning_launch.launch([way], 2)
        assert ended.value.code == 1
        assert "error: no such file\n" in capfd.readouterr().err
    assert time.monotonic() - begin < 500  # by itself it would end after 600


def test_a_checkpoint_names_files_of_its_training_only(tmp_path):
    """Lightning would remove others, such as ``local:///home/user``."""
    state = {
        "dirpath": "/other/exp",
        "best_model_path": "/other/exp/epoch1.ckpt",
        "best_k_models": {"/x/../../epoch0.ckpt": 1.5, "local:///a/epoch1.ckpt": 1.0},
        "kth_best_model_path": "..\\epoch0.ckpt",
        "last_model_path": "",
    }
    callbacks = {"ModelCheckpoint": dict(state), "EarlyStopping": {"wait_count": 1}}
    confine_checkpoints(callbacks, tmp_path)
    assert callbacks["ModelCheckpoint"] == {
        "dirpath": str(tmp_path),
        "best_model_path": f"{tmp_path}/epoch1.ckpt",
        "best_k_models": {f"{tmp_path}/epoch{n}.ckpt": 1.5 - n / 2 for n in (0, 1)},
        "kth_best_model_path": f"{tmp_path}/epoch0.ckpt",
        "last_model_path": "",
    }
    assert callbacks["EarlyStopping"] == {"wait_count": 1}
    for name in ("local:///home/user", "/home/user/notes.txt", "x.ckpt/.."):
        with pytest.raises(UserError, match="could be removed"):
            confine_checkpoints({"a": {**state, "best_model_path": name}}, tmp_path)
    confine_checkpoints(None, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_all_processes_which_save(
    number, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(lightning_launch, "run_worker", ending_processes.save_and_end)

    def send() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.1)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
    with pytest.raises(SystemExit) as ended:
        lightning_launch.launch([str(tmp_path)], 2)
    assert ended.value.code == 1
    assert capfd.readouterr().err.count(f"saved on {number.name}\n") == 2


def test_machines_meet_at_the_first_of_a_job(tmp_path, monkeypatch):
    """Jobs on one machine have different ports; without Slurm there is one line."""
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    with pytest.raises(UserError, match="--num_nodes above 1 needs Slurm"):
        lightning_launch.meeting_point()
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$3" = "a[1-2]" ] && printf "a1\\na2\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "a[1-2]")
    for job, port in (("7", 15007), ("1234567", 19567)):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        assert lightning_launch.meeting_point() == f"a1:{port}"
