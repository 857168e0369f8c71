"""ESPnet's trainer with checkpoints in the middle of an epoch."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from espnet2.torch_utils.set_all_random_seed import set_all_random_seed
from espnet2.train.distributed_utils import DistributedOption
from espnet2.train.reporter import Reporter, SubReporter
from espnet2.train.trainer import Trainer, TrainerOptions
from espnet2.utils.build_dataclass import build_dataclass

from speechllm.training.initialization import name_foreign_state
from speechllm.training.mid_epoch import (
    SaveInterval,
    random_state,
    rank_seed,
    reporter_state,
    set_random_state,
    set_reporter_state,
)
from speechllm.training.progress import ProgressIterator
from speechllm.training.signals import (
    SAVE,
    StopRequest,
    agree,
    end_on_signal,
    handle_stop_signals,
)
from speechllm.utils.errors import UserError

#: Next to ESPnet's ``checkpoint.pth``, which holds the state after a whole epoch.
FILE_NAME = "mid_epoch.pth"


@dataclasses.dataclass
class SpeechLLMTrainerOptions(TrainerOptions):
    """ESPnet's options, and how often the state within an epoch is saved."""

    save_every: str | None


class SpeechLLMTrainer(Trainer):
    """Trainer that resumes in the middle of an epoch with the same result.

    After an optimizer step it writes ``mid_epoch.pth``, every ``save_every`` and, on
    SIGTERM or SIGUSR1, before it ends. The next run continues there, with equal
    batches, random numbers, accumulated gradients and averages of the epoch. The
    checkpoints after an epoch are ESPnet's.

    Each process draws its own dropout and SpecAugment masks. ESPnet seeds all processes
    alike in an epoch; here the first one only.
    """

    saver: MidEpochSaver
    options: SpeechLLMTrainerOptions

    @classmethod
    def build_options(cls, args: argparse.Namespace) -> SpeechLLMTrainerOptions:
        """Return the options of a training."""
        return build_dataclass(SpeechLLMTrainerOptions, args)

    @classmethod
    def run(cls, **parts: Any) -> None:
        """Train all epochs; resume with ``checkpoint.pth`` and ``mid_epoch.pth``.

        Raises:
            UserError: ended by a signal, or ``mid_epoch.pth`` is of another training.
        """
        stop = StopRequest()
        cls.options = parts["trainer_options"]
        cls.saver = MidEpochSaver(cls.options, parts["distributed_option"], stop)
        with handle_stop_signals(stop):
            super().run(**parts)
        cls.saver.remove()

    @classmethod
    def resume(cls, checkpoint: str | Path, reporter: Reporter, **parts: Any) -> None:
        """Load ``checkpoint.pth``; a training that ``patience`` ended stays ended.

        Raises:
            UserError: it is of another model or optimizer, or damaged.
        """
        with name_foreign_state(Path(checkpoint)):
            super().resume(checkpoint, reporter=reporter, **parts)
        patience, criterion = cls.options.patience, cls.options.early_stopping_criterion
        if patience is not None and reporter.check_early_stopping(patience, *criterion):
            cls.options.max_epoch = reporter.get_epoch()

    @classmethod
    def train_one_epoch(cls, **parts: Any) -> bool:
        """Train an epoch or the rest of one; return True if it had no valid step."""
        batches, reporter = parts["iterator"], parts["reporter"]
        if rank := parts["distributed_option"].dist_rank:
            set_all_random_seed(rank_seed(parts["options"].seed, reporter.epoch, rank))
        names = ("model", "optimizers", "schedulers", "scaler", "reporter")
        cls.saver.begin_epoch(batches, **{name: parts[name] for name in names})
        batches.on_step = cls.saver.step
        all_invalid = super().train_one_epoch(**parts)
        cls.saver.end_batches()
        return all_invalid and "grad_norm" not in reporter.stats

    @classmethod
    def validate_one_epoch(cls, **parts: Any) -> None:
        """Validate; a signal ends it, and the next run begins it again."""
        parts["iterator"].on_step = lambda done: cls.saver.stop_if_requested()
        super().validate_one_epoch(**parts)


class MidEpochSaver:
    """Writes and restores ``mid_epoch.pth``.

    Args:
        options: ``output_dir``, ``resume``, ``accum_grad``, ``save_every``, ``ngpu``.
        distributed: the processes of the training.
        stop: receives the signals.

    Raises:
        UserError: ``mid_epoch.pth`` is damaged.
    """

    def __init__(
        self,
        options: SpeechLLMTrainerOptions,
        distributed: DistributedOption,
        stop: StopRequest,
    ):
        self.path = Path(options.output_dir) / FILE_NAME
        self.accum_grad = options.accum_grad
        self.device = "cuda" if options.ngpu > 0 else "cpu"
        self.distributed = distributed.distributed
        self.rank = distributed.dist_rank or 0
        self.stop = stop
        self.interval = SaveInterval(options.save_every)
        self.state: dict[str, Any] | None = None
        if os.path.lexists(self.path) and not self.path.is_file():
            raise UserError(f"{self.path}: not a regular file; move it away")
        if options.resume and self.path.exists():
            self.state = torch.load(self.path, map_location="cpu")
            with name_foreign_state(self.path):
                if not {"epoch", "all_batches", "gradients"} <= self.state.keys():
                    raise ValueError("no epoch")

    def begin_epoch(
        self,
        batches: ProgressIterator,
        model: torch.nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        schedulers: Sequence,
        scaler,
        reporter: SubReporter,
    ) -> None:
        """Restore the state of this epoch, or the gradients that the last one left.

        The last batches of an epoch may be too few for ``accum_grad``. ESPnet adds
        their gradients to those of the next epoch.
        """
        self.batches, self.reporter, self.done = batches, reporter, 0
        self.model = getattr(model, "module", model)
        self.optimizers, self.schedulers, self.scaler = optimizers, schedulers, scaler
        self.random: dict[str, Any] | None = None
        state, self.state = self.state, None
        if state is None:
            return
        with name_foreign_state(self.path):
            if state["epoch"] == reporter.epoch:
                self.restore(state)
            elif state["epoch"] == reporter.epoch - 1 and state["all_batches"]:
                self.restore_gradients(state["gradients"])

    def restore(self, state: dict[str, Any]) -> None:
        """Continue the epoch of a state.

        Raises:
            UserError: the batches or the number of processes have changed.
            Exception: the state is damaged.
        """
        ranks = state["ranks"]
        world_size = torch.distributed.get_world_size() if self.distributed else 1
        if len(ranks) != world_size:
            change = f"by {len(ranks)} processes, now there are {world_size}"
        elif ranks[self.rank]["batches"] != self.batches.digest:
            change = "with other batches; their size, the data or the seed has changed"
        else:
            change = ""
        if change:
            raise UserError(
                f"{self.path}: saved {change}; change that back, or move the file away "
                "to resume from the last epoch"
            )
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        for scheduler, saved in zip(self.schedulers, state["schedulers"], strict=True):
            if scheduler is not None:
                scheduler.load_state_dict(saved)
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.restore_gradients(state["gradients"])
        set_reporter_state(self.reporter, state["reporter"])
        self.random = ranks[self.rank]["random"]
        before = random_state()
        set_random_state(self.random)  # raises if it is damaged; used by ``step``
        set_random_state(before)
        size = self.batches.size
        if not 0 <= state["done"] <= (state["done"] if size is None else size):
            raise ValueError(f"{state['done']} batches of {size} done")
        self.batches.start = self.done = state["done"]
        logging.info(f"resumed after batch {self.done} with {self.path}")

    def restore_gradients(self, gradients: dict[str, torch.Tensor]) -> None:
        """Set gradients by parameter name."""
        parameters = dict(self.model.named_parameters())
        for name, gradient in gradients.items():
            parameter = parameters[name]
            parameter.grad = gradient.to(parameter.device, copy=True)

    def gradients(self) -> dict[str, torch.Tensor]:
        """Return the accumulated gradients by parameter name; none after a step."""
        return {
            name: parameter.grad
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None
        }

    def step(self, done: int) -> None:
        """Save after the optimizer step of a batch, if it is time or asked for.

        Args:
            done: number of processed batches of the epoch.

        Raises:
            UserError: the process must end.
        """
        self.done = done
        if self.random is not None:  # drawing the first batch has used random numbers
            set_random_state(self.random)
            self.random = None
        if done % self.accum_grad == 0:
            passed = done > self.batches.start and self.interval.passed()
            self.save_on(agree(self.stop.number or SAVE * passed, self.device))

    def end_batches(self) -> None:
        """Save at the end of the batches what the next epoch needs of this one."""
        request = agree(self.stop.number, self.device)
        self.save_on(request or SAVE * bool(self.gradients()), all_batches=True)

    def stop_if_requested(self) -> None:
        """Save the state before the validation and end, if a signal asks for it."""
        self.save_on(agree(self.stop.number, self.device), all_batches=True)

    def save_on(self, request: int, all_batches: bool = False) -> None:
        """Save if this is requested, and end on a signal."""
        if request:
            self.save(all_batches)
        if request > SAVE:
            end_on_signal(request, self.done, self.reporter.epoch)

    def save(self, all_batches: bool = False) -> None:
        """Write the state of all processes.

        Args:
            all_batches: true after the last batch of the epoch, before its validation.
        """
        self.interval.restart()
        own = {"random": random_state(), "batches": self.batches.digest}
        ranks = [own]
        if self.distributed:
            ranks = [own] * torch.distributed.get_world_size()
            torch.distributed.gather_object(own, ranks if self.rank == 0 else None)
        if self.rank > 0:
            return
        state = {
            "epoch": self.reporter.epoch,
            "done": self.done,
            "all_batches": all_batches,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [
                None if s is None else s.state_dict() for s in self.schedulers
            ],
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "gradients": self.gradients(),
            "reporter": reporter_state(self.reporter),
            "ranks": ranks,
        }
        torch.save(state, self.path)
        logging.info(f"saved batch {self.done} of epoch {self.reporter.epoch}")

    def remove(self) -> None:
        """Remove the state after the last epoch."""
        if self.rank == 0:
            self.path.unlink(missing_ok=True)
