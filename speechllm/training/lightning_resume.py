"""Checkpoints from which a training with Lightning resumes, also within an epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from speechllm.training.mid_epoch import SaveInterval, random_state, set_random_state
from speechllm.training.signals import SAVE, StopRequest, agree, end_on_signal
from speechllm.utils.errors import UserError

#: Links to the state within an epoch and to that after a whole one.
MID_EPOCH, LAST = "mid_epoch.ckpt", "last.ckpt"


def find_checkpoint(folder: str | Path) -> Path | None:
    """Return the checkpoint from which a training in this folder resumes, if any."""
    paths = (Path(folder) / name for name in (MID_EPOCH, LAST))
    return next((path for path in paths if path.exists()), None)


class ResumeCheckpoint(Checkpoint):
    """Writes ``last.ckpt`` after each epoch and ``mid_epoch.ckpt`` within one.

    Within an epoch it saves after an optimizer step, every ``save_every`` and, on
    SIGTERM or SIGUSR1, before the training ends. Lightning's checkpoint holds weights,
    optimizer, scheduler, the position of its loops and of the data loader; this
    callback adds random numbers and the sums for the means of the epoch. Lightning's
    ``ModelCheckpoint`` saves either by time or after epochs, and also between the
    batches of one optimizer step.

    Args:
        output_dir: folder of the training.
        save_every: see :class:`SaveInterval`.
        stop: receives the signals.
        resumed: checkpoint from which this training resumes.
    """

    def __init__(
        self,
        output_dir: str | Path,
        save_every: str | None,
        stop: StopRequest,
        resumed: Path | None,
    ):
        self.folder = Path(output_dir)
        self.stop = stop
        self.interval = SaveInterval(save_every)
        self.newest = None if resumed is None else resumed.resolve()
        self.state: dict[str, Any] = {}  # of an epoch that has begun
        self.random: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the part of the checkpoint that Lightning does not write."""
        return self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of a checkpoint until the training begins."""
        self.state = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the state within an epoch.

        Raises:
            UserError: the batches or the number of processes have changed.
        """
        state, self.state = self.state, {}
        if not state:
            return
        ranks = state["ranks"]
        if len(ranks) != trainer.world_size:
            change = f"by {len(ranks)} processes, now there are {trainer.world_size}"
        elif ranks[trainer.global_rank]["batches"] != trainer.train_dataloader.digest:
            change = "with other batches; their size, the data or the seed has changed"
        else:
            own = ranks[trainer.global_rank]
            self.random, pl_module.sums = own["random"], own["sums"]
            return
        raise UserError(
            f"{self.folder / MID_EPOCH}: saved {change}; change that back, or move the "
            "file away to resume from the last epoch"
        )

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Restore the random numbers, of which reading the data has used some."""
        if self.random is not None:
            set_random_state(self.random)
            self.random = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any
    ) -> None:
        """Save after an optimizer step, if it is time or asked for.

        Raises:
            UserError: the process must end.
        """
        done = trainer.fit_loop.batch_idx + 1
        if trainer.is_last_batch or done % trainer.accumulate_grad_batches:
            return
        request = self.stop.number or SAVE * self.interval.passed()
        self.save_on(agree(request, pl_module.device), trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any
    ) -> None:
        """Save and end, if a signal asks for it; the next run validates again.

        Raises:
            UserError: the process must end.
        """
        if request := agree(self.stop.number, pl_module.device):
            # Lightning repeats a validation that was saved in its first batch
            progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
            progress.reset()
            progress.increment_ready()
            progress.increment_started()
            self.save_on(request, trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after the validation."""
        self.save(trainer, f"step{trainer.global_step}.ckpt", LAST)

    def save_on(
        self, request: int, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Save within an epoch if this is requested, and end on a signal."""
        if not request:
            return
        batches = trainer.train_dataloader
        batches.done = trainer.fit_loop.batch_idx + 1
        own = {
            "random": random_state(),
            "batches": batches.digest,
            "sums": pl_module.sums,
        }
        ranks = [own] * trainer.world_size
        torch.distributed.all_gather_object(ranks, own)
        self.state = {"ranks": ranks}
        self.save(trainer, f"step{trainer.global_step}_{MID_EPOCH}", MID_EPOCH)
        self.state = {}
        if request > SAVE:
            end_on_signal(request, batches.done, trainer.current_epoch + 1)

    def save(self, trainer: Trainer, name: str, link: str) -> None:
        """Write a checkpoint, link to it and remove those that it replaces.

        A state within an epoch leaves that of the last epoch.
        """
        self.interval.restart()
        path = self.folder.resolve() / name
        if path == self.newest:  # saved again where this run has resumed
            return
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            temporary = self.folder / f".{link}.new"
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(name)
            temporary.replace(self.folder / link)
            if link == LAST:
                (self.folder / MID_EPOCH).unlink(missing_ok=True)
            pattern = "step*.ckpt" if link == LAST else f"step*_{MID_EPOCH}"
            for other in path.parent.glob(pattern):
                if other != path:
                    trainer.strategy.remove_checkpoint(other)
        trainer.strategy.barrier()
        self.newest = path
