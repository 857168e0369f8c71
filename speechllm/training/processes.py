"""Training in several processes of one machine, with or without GPUs."""

from __future__ import annotations

import argparse
import signal
import tempfile
from collections.abc import Callable

import torch
from espnet2.train.distributed_utils import get_node_rank
from torch.multiprocessing import ProcessExitedException, start_processes

from speechllm.training.signals import handle_stop_signals, send_to_children


def train_on_cpu(main: Callable[[argparse.Namespace], None], args) -> None:
    """Train in ``num_processes`` processes without a GPU, connected by gloo.

    ESPnet starts processes only for GPUs. These are forks, which share the imported
    libraries and the CPU threads of this process.

    Args:
        main: trains in one of the processes.
        args: options of the training.

    Raises:
        ProcessExitedException: a process failed; the others have been ended.
    """
    with tempfile.TemporaryDirectory(prefix="speechllm-") as folder:
        context = start_processes(
            _train_rank,
            (main, args, f"file://{folder}/init"),
            nprocs=args.num_processes,
            join=False,
            start_method="fork",
        )
        with handle_stop_signals(send_to_children):
            while not context.join():
                pass


def _train_rank(
    rank: int,
    main: Callable[[argparse.Namespace], None],
    args: argparse.Namespace,
    init_method: str,
) -> None:
    torch.set_num_threads(max(1, torch.get_num_threads() // args.num_processes))
    own = argparse.Namespace(**vars(args))
    own.multiprocessing_distributed = False
    own.dist_backend, own.dist_init_method = "gloo", init_method
    own.dist_rank, own.dist_world_size = rank, args.num_processes
    main(own)


def describe_end(error: ProcessExitedException, args: argparse.Namespace) -> str:
    """Return in one line which process of a training was ended by which signal."""
    rank = error.error_index
    if args.ngpu > 1:
        rank += args.ngpu * (get_node_rank(args.dist_rank, args.dist_launcher) or 0)
    reason = f"the training process of rank {rank} was ended by {error.signal_name}"
    if error.exit_code == -signal.SIGKILL:
        reason += "; is the memory full?"
    return reason
