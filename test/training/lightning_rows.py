"""Train the rows of a table one after another in the processes of one launch.

    python lightning_rows.py rows.json PROCESSES [MACHINES]

``rows.json`` has a list of the arguments of each training. Errors that a user can fix
go to ``error.txt`` in the folder of the training. The last argument can be

    stop=SIGNAL,STEP,RANK    this rank gets a signal in this optimizer step, from 1 on
    stop=SIGNAL,valid,RANK   or in its first validation
    stop=crash,STEP          all ranks end in this step, as if they were killed
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from unittest import mock

from speechllm.training import load_task

load_task()
from speechllm.training import lightning_launch, lightning_task  # noqa: E402


class Crash(Exception):
    """Ends a training without a save."""


def stopping(how: str, step: str, rank: str = "-1"):
    """Return the patch that stops a training."""
    import torch

    from speechllm.models.speech_llm import SpeechLLM

    count = 0

    def stop(self, *args, **options):
        nonlocal count
        count += 1
        if str(count) == step or (count == 1 and step == "valid"):
            if how == "crash":
                raise Crash
            if torch.distributed.get_rank() == int(rank):
                os.kill(os.getpid(), signal.Signals[how])
        return original(self, *args, **options)

    if step == "valid":
        original = SpeechLLM.ctc_character_errors
        return mock.patch.object(SpeechLLM, "ctc_character_errors", stop)
    original = torch.optim.AdamW.step
    return mock.patch.object(torch.optim.AdamW, "step", stop)


def train_rows(cmd: list[str]) -> None:
    """Train every row; the function that replaces ``run_worker``."""
    from speechllm.training.lightning import train
    from speechllm.utils.errors import UserError

    if "deepspeed" in Path(cmd[0]).read_text():
        # shared memory for CPUs, compiled for minutes at first use; gloo does it.
        # As an attribute of deepspeed.comm the module may be torch itself.
        import_module("deepspeed.comm.torch").build_shm_op = lambda: None
    for words in json.loads(Path(cmd[0]).read_text()):
        stop = contextlib.nullcontext()
        if words[-1].startswith("stop="):
            stop = stopping(*words.pop().removeprefix("stop=").split(","))
        args = lightning_task.LightningTask.parse(words)
        try:
            with stop, contextlib.suppress(Crash, SystemExit):
                lightning_task.check_lightning(args)
                train(args)
        except UserError as error:
            Path(args.output_dir).mkdir(parents=True, exist_ok=True)
            with open(Path(args.output_dir) / "error.txt", "a") as file:
                print(error, file=file)


if __name__ == "__main__":
    lightning_launch.run_worker = train_rows
    lightning_launch.launch([sys.argv[1]], *map(int, sys.argv[2:]))
