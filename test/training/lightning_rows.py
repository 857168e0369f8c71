"""Train the rows of a table one after another in the processes of one launch.

    python lightning_rows.py rows.json PROCESSES [MACHINES]

``rows.json`` has the list of arguments of each training. Errors that a user can fix go
to ``error.txt`` in the folder of the training.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from speechllm.training import load_task

load_task()
from speechllm.training import lightning_launch, lightning_task  # noqa: E402


def train_rows(cmd: list[str]) -> None:
    """Train every row; the function that replaces ``run_worker``."""
    from speechllm.training.lightning import train
    from speechllm.utils.errors import UserError

    if "deepspeed" in Path(cmd[0]).read_text():
        import deepspeed.comm.torch

        # shared memory for CPUs, compiled for minutes at first use; gloo does it
        deepspeed.comm.torch.build_shm_op = lambda: None
    for words in json.loads(Path(cmd[0]).read_text()):
        args = lightning_task.LightningTask.parse(words)
        try:
            lightning_task.check_lightning(args)
            train(args)
        except UserError as error:
            Path(args.output_dir).mkdir(parents=True, exist_ok=True)
            (Path(args.output_dir) / "error.txt").write_text(str(error))


if __name__ == "__main__":
    lightning_launch.run_worker = train_rows
    lightning_launch.launch([sys.argv[1]], *map(int, sys.argv[2:]))
