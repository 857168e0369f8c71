"""Signals of a training: SIGTERM and Slurm's SIGUSR1 save before the process ends."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import torch
from torch.utils.data import DataLoader

from speechllm.utils.errors import UserError

#: SIGUSR1 as in ``sbatch --signal=B:USR1@120``: the time limit or a preemption is near.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SAVE = 1  # a request, less than the number of any of these signals


class StopRequest:
    """Signal that asks a training to end; ``number`` is 0 until there is one."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.number = number


@contextmanager
def handle_stop_signals(handler: Callable) -> Iterator[None]:
    """Call ``handler`` for the signals that ask a training to end.

    Only the main thread can handle signals; in others this has no effect.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def agree(request: int, device: torch.device | str) -> int:
    """Return the greatest request of all processes: a signal, SAVE or 0.

    Args:
        request: of this process.
        device: of the tensors that the processes exchange.
    """
    if not torch.distributed.is_initialized():
        return request
    found = torch.tensor(request, device=device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return int(found)


def end_on_signal(number: int, done: int, epoch: int) -> NoReturn:
    """End all processes after they have saved; the first one has the error.

    Args:
        number: the signal.
        done: number of processed batches of the epoch.
        epoch: counted from 1.

    Raises:
        UserError: always, in the first process.
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # an end of one process ends the others
        if torch.distributed.get_rank() > 0:
            sys.exit(0)
    raise stopped(number, f"batch {done} of epoch {epoch}")


def stopped(number: int, place: str) -> UserError:
    """Return the error of a training that a signal ended.

    Args:
        number: the signal.
        place: what was done last, such as ``step 12``.
    """
    return UserError(
        f"stopped by {signal.Signals(number).name}; saved after {place}, where the "
        "same command resumes"
    )


def send_to_children(number: int, frame: FrameType | None) -> None:
    """Pass a signal on to the training processes that this process started."""
    for child in multiprocessing.active_children():
        if child.pid is not None and child.is_alive():
            os.kill(child.pid, number)


def protect_workers(loader: DataLoader) -> None:
    """Let only the training process end the workers of a data loader."""
    initialize = loader.worker_init_fn
    loader.worker_init_fn = functools.partial(start_data_worker, initialize)


def start_data_worker(initialize: Callable[[int], None] | None, worker: int) -> None:
    """Initialise a data loader's worker, which only its training process may end.

    A signal to all processes of a job must not end the workers, or the training would
    fail before it can save. PyTorch ends workers by SIGTERM, too.

    Args:
        initialize: the loader's own ``worker_init_fn``.
        worker: number of the worker.
    """
    if initialize is not None:
        initialize(worker)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    threading.Thread(target=_end_for_parent, args=(os.getppid(),), daemon=True).start()


def _end_for_parent(parent: int) -> None:
    """End this process if a blocked signal comes from its parent; drop all others."""
    while signal.sigwaitinfo(STOP_SIGNALS).si_pid != parent:
        pass
    os._exit(0)
