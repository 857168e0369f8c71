"""Processes of a training with Lightning, started by torch's launcher, torchrun."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Sequence

from speechllm.training.lightning_task import LightningTask, check_lightning
from speechllm.training.signals import handle_stop_signals, send_to_children
from speechllm.utils.errors import UserError, run_main


def main(cmd: Sequence[str] | None = None) -> None:
    """Check the options and train in the processes of this machine.

    Raises:
        UserError: an option is wrong, the strategy cannot train this model, a
            package is missing, or a process was killed.
    """
    cmd = sys.argv[1:] if cmd is None else [str(word) for word in cmd]
    args = LightningTask.parse(cmd)
    if args.print_config:
        LightningTask.print_config()
        return
    check_lightning(args)
    processes = args.ngpu or args.num_processes
    if processes * args.num_nodes == 1:
        run_worker(cmd)
    else:
        launch(cmd, processes, args.num_nodes)


def launch(cmd: Sequence[str], processes: int, num_nodes: int = 1) -> None:
    """Train in several processes with torch's launcher, torchrun.

    If a process ends with an error or is killed, the others are ended.

    Raises:
        UserError: a process was killed; names its rank.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=num_nodes,
        max_nodes=num_nodes,
        nproc_per_node=processes,
        run_id=os.environ.get("SLURM_JOB_ID", str(os.getpid())),
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0" if num_nodes == 1 else meeting_point(),
        local_addr="127.0.0.1" if num_nodes == 1 else None,
        max_restarts=0,
        monitor_interval=0.2,
        start_method="spawn",
        signals_to_handle="SIGINT,SIGHUP,SIGQUIT",  # without those that save first
    )
    try:
        with handle_stop_signals(send_to_children):
            elastic_launch(config, run_worker)(list(cmd))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:  # the process has printed its error
            sys.exit(1)
        raise UserError(
            f"the process of rank {rank} was ended by {failure.signal_name()}; is the "
            "memory full? The same command resumes"
        ) from None
    except SignalException as error:
        sys.exit(128 + error.sigval)


def meeting_point() -> str:
    """Return host and port where the machines of a Slurm job meet.

    It is the first machine, with a port that differs between jobs, as in Lightning's
    ``SLURMEnvironment``.

    Raises:
        UserError: this is not a job of Slurm.
    """
    nodes, job = (os.environ.get(f"SLURM_JOB_{n}") for n in ("NODELIST", "ID"))
    if not nodes or not job:
        raise UserError(
            "--num_nodes above 1 needs Slurm (cmd.sh) with --trainer lightning"
        )
    command = ["scontrol", "show", "hostnames", nodes]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return f"{done.stdout.split()[0]}:{15000 + int(job[-4:])}"


def run_worker(cmd: Sequence[str]) -> None:
    """Train in one process; its errors that a user can fix are one line."""
    from speechllm.training.lightning import train

    work = functools.partial(train, LightningTask.parse(cmd))
    if "LOCAL_RANK" in os.environ:  # a process of its own
        run_main(work)
    else:
        work()
