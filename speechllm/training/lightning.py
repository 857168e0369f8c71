"""Training loop of Lightning around ESPnet's module, with FSDP and DeepSpeed.

ESPnet 202611's ``LitESPnetModel`` runs a task in Lightning. Here its loss is weighted
as in ESPnet's own trainer, its optimizer is the task's, and checkpoints have only what
training changes.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from espnet2.schedulers.abs_scheduler import (
    AbsBatchStepScheduler,
    AbsValEpochStepScheduler,
)
from espnet2.tasks.abs_task import scheduler_classes
from espnet2.torch_utils.set_all_random_seed import set_all_random_seed
from espnet2.train import lightning_espnet_model
from espnet2.train.distributed_utils import DistributedOption
from espnet2.utils.yaml_no_alias_safe_dump import yaml_no_alias_safe_dump
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor

from speechllm.models.speech_llm import SpeechLLM
from speechllm.pretrained.checkpoint import load_tensors
from speechllm.pretrained.trainer_checkpoint import UNTRAINED
from speechllm.text.ctc_labels import read_token_list
from speechllm.training.initialization import (
    TRAINING,
    load_init_param,
    require_same_labels,
    require_same_start,
    safe_checkpoints,
)
from speechllm.training.lightning_resume import ResumeCheckpoint, find_checkpoint
from speechllm.training.lightning_strategies import (
    ShardedStrategy,
    ZeroStrategy,
    build_strategy,
    changed_tensors,
    shard,
)
from speechllm.training.lightning_task import LightningTask, confine_checkpoints
from speechllm.training.signals import StopRequest, handle_stop_signals
from speechllm.utils.errors import UserError
from speechllm.utils.folders import claim_directory
from speechllm.utils.io import atomic_open

TASK = "speechllm"
lightning_espnet_model.task_choices[TASK] = LightningTask


class LitSpeechLLM(lightning_espnet_model.LitESPnetModel):
    """SpeechLLM in Lightning.

    Args:
        args: options of the training.
        model: the model, built on every process with the same seed.
    """

    strict_loading = False  # checkpoints have only what training changes

    def __init__(self, args: argparse.Namespace, model: SpeechLLM):
        LightningModule.__init__(self)  # ESPnet's builds the model and pickles ``args``
        self.args = args
        self.task_class = lightning_espnet_model.task_choices[TASK]
        self.model = model
        self.nan_countdown = 1
        self.factories: dict = {}
        self.sums: dict[str, tuple[float, float]] = {}

    def training_step(self, batch: tuple, batch_idx: int) -> Tensor | None:
        """Return the loss, weighted by its share of the target tokens of all processes.

        ESPnet's trainer does so, too; its module for Lightning averages over processes.
        """
        loss, weight, values = self.run_batch(batch, "train")
        self.add(values, weight.item())
        if self._check_nan_inf_loss(loss, batch_idx):
            return None
        total = weight.to(loss.dtype)
        torch.distributed.all_reduce(total)
        return (loss * weight * self.trainer.world_size / total).sum()

    def validation_step(self, batch: tuple, batch_idx: int) -> None:
        """Log the statistics of the validation set."""
        _, weight, values = self.run_batch(batch, "valid")
        self.log_dict(
            values,
            on_step=False,
            on_epoch=True,
            sync_dist=True,
            batch_size=weight.item(),
        )

    def run_batch(
        self, batch: tuple, phase: str
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Return loss and weight, each (1,), and the statistics of the batch."""
        names, tensors = batch
        loss, stats, weight = self.model(utt_id=names, **tensors)
        values = {f"{phase}/{k}": v.item() for k, v in stats.items() if v is not None}
        return loss, weight, values

    def add(self, values: dict[str, float], weight: float) -> None:
        """Add to the sums of the epoch: statistics times weights, and weights.

        Lightning has such sums, too, but does not write them into checkpoints.
        """
        for name, value in values.items():
            total, weights = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = (total + value * weight, weights + weight)

    def log_means(self) -> None:
        """Log the means of the epoch over all processes, and begin new sums."""
        for name, (total, weight) in self.sums.items():
            self.log(name, total / weight, sync_dist=True, batch_size=weight)
        self.sums = {}

    def configure_model(self) -> None:
        """Shard the model if the strategy is FSDP."""
        strategy = self.trainer.strategy
        if isinstance(strategy, ShardedStrategy) and not strategy.is_sharded:
            shard(self.model, strategy.device_mesh["data_parallel"])
            strategy.is_sharded = True

    def configure_optimizers(self) -> dict | torch.optim.Optimizer:
        """Return the task's optimizer and ESPnet's scheduler."""
        (optimizer,) = self.task_class.build_optimizers(self.args, self.model)
        if self.args.scheduler is None:
            return optimizer
        scheduler = scheduler_classes[self.args.scheduler](
            optimizer, **self.args.scheduler_conf
        )
        step = "step" if isinstance(scheduler, AbsBatchStepScheduler) else "epoch"
        config = {"scheduler": scheduler, "interval": step}
        if isinstance(scheduler, AbsValEpochStepScheduler):
            config["monitor"] = "/".join(self.args.val_scheduler_criterion)
            config["frequency"] = sys.maxsize  # see on_train_epoch_end
        return {"optimizer": optimizer, "lr_scheduler": config}

    def on_train_epoch_end(self) -> None:
        """Adapt the learning rate to the validation, which Lightning does after saving.

        The step of the last epoch would be missing in a resumed training.
        """
        for config in self.trainer.lr_scheduler_configs:
            if config.reduce_on_plateau:
                config.scheduler.step(self.trainer.callback_metrics[config.monitor])

    def on_train_batch_start(self, batch: tuple, batch_idx: int) -> None:
        """Seed dropout by epoch and process, so that a resumed training is the same.

        Lightning does not call ``on_train_epoch_start`` in the first epoch after that
        of a checkpoint.
        """
        if batch_idx == 0:
            epoch = self.current_epoch * self.trainer.world_size
            set_all_random_seed(self.args.seed + epoch + self.global_rank)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Check what the callbacks read next, see :func:`confine_checkpoints`."""
        confine_checkpoints(checkpoint.get("callbacks"), self.args.output_dir)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Drop the pretrained weights."""
        changed = changed_tensors(self)
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if k in changed}
        if isinstance(self.trainer.strategy, ZeroStrategy):
            trained = {k for k, p in self.named_parameters() if p.requires_grad}
            untrained = changed - trained
            checkpoint[UNTRAINED] = {k: v for k, v in state.items() if k in untrained}

    def train_dataloader(self):
        """Return the batches of an epoch."""
        return self.batches("train")

    def val_dataloader(self):
        """Return the batches of the validation set."""
        return self.batches("valid")

    def batches(self, mode: str):
        """Return ESPnet's batches of this process; its epochs begin with 1."""
        if mode not in self.factories:
            option = DistributedOption(
                distributed=True,
                dist_rank=self.global_rank,
                dist_world_size=self.trainer.world_size,
            )
            self.factories[mode] = self.task_class.build_iter_factory(
                self.args, option, mode
            )
        return self.factories[mode].build_iter(self.current_epoch + 1)


class PatientStopping(EarlyStopping):
    """Ends the training as ESPnet does, which waits one epoch longer than Lightning.

    Args:
        criterion: phase, statistic and mode, ``early_stopping_criterion``.
        patience: number of epochs without an improvement that do not end it.
    """

    def __init__(self, criterion: Sequence[str], patience: int):
        phase, name, mode = criterion
        super().__init__(f"{phase}/{name}", patience=patience + 1, mode=mode)

    def load_state_dict(self, state_dict: dict) -> None:
        """Resume with the patience of now."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train no further epoch if the training was ended before."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class EpochResults(Callback):
    """Log the means of each epoch, as ESPnet does, and write them for TensorBoard."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the statistics of an epoch; only rank 0 does."""
        pl_module.log_means()
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if "/" in k}
        if not trainer.is_global_zero:
            return
        epoch = trainer.current_epoch + 1
        text = ", ".join(f"{name}={value:.5g}" for name, value in values.items())
        logging.info(f"{epoch}epoch results: {text}")
        if not pl_module.args.use_tensorboard:
            return
        from torch.utils.tensorboard import SummaryWriter

        values["train/iter_epoch"] = epoch
        for phase in ("train", "valid"):
            folder = Path(pl_module.args.output_dir) / "tensorboard" / phase
            with SummaryWriter(str(folder)) as writer:
                for name, value in values.items():
                    if name.startswith(phase + "/"):
                        name = name.partition("/")[2]
                        writer.add_scalar(name, value, trainer.global_step)


class AverageCheckpoints(Callback):
    """Average the best checkpoints of each criterion, from whatever a strategy wrote.

    ESPnet's callback for Lightning reads single files only. The names are those of
    ESPnet's trainer: ``valid.acc.ave_5best.pth``, ``valid.acc.ave.pth`` and
    ``valid.acc.best.pth``.

    Args:
        output_dir: folder of the training.
        numbers: ``keep_nbest_models``.
        best: Lightning's callback of each criterion.
    """

    def __init__(self, output_dir: str, numbers: list[int], best: list):
        self.output_dir = Path(output_dir)
        self.numbers = sorted(numbers)
        self.best = best

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the averages; only rank 0 does."""
        if trainer.is_global_zero:
            for callback in self.best:
                self.average(callback)
        trainer.strategy.barrier()

    def average(self, callback: ModelCheckpoint) -> None:
        """Write the averages of a criterion."""
        ranked = sorted(
            callback.best_k_models,
            key=lambda path: float(callback.best_k_models[path]),
            reverse=callback.mode == "max",
        )
        name = callback.monitor.replace("/", ".")
        sums: dict[str, Tensor] = {}
        for count, path in enumerate(ranked, 1):
            for key, value in load_tensors(path).items():
                # ESPnet, too: whole numbers (of batches) are added, not averaged
                sums[key] = sums[key] + value if key in sums else value
            if count == 1:
                self.write(sums, f"{name}.best.pth")
            if count in self.numbers or count == len(ranked):
                mean = {
                    k: v / count if v.is_floating_point() else v
                    for k, v in sums.items()
                }
                self.write(mean, f"{name}.ave_{count}best.pth")
        link = self.output_dir / f".{name}.ave.new"
        link.unlink(missing_ok=True)
        link.symlink_to(f"{name}.ave_{len(ranked)}best.pth")
        link.replace(self.output_dir / f"{name}.ave.pth")

    def write(self, state: dict[str, Tensor], name: str) -> None:
        """Write tensors atomically."""
        with atomic_open(self.output_dir / name, "wb") as stream:
            torch.save(state, stream)


def build_callbacks(
    args: argparse.Namespace, stop: StopRequest, resumed: Path | None
) -> list[Callback]:
    """Return the callbacks: results, early stopping, checkpoints and their average.

    Args:
        args: options of the training.
        stop: receives the signals that end the training.
        resumed: checkpoint from which it resumes.
    """
    options = {"dirpath": args.output_dir, "auto_insert_metric_name": False}
    numbers = args.keep_nbest_models
    numbers = [numbers] if isinstance(numbers, int) else list(numbers)
    best = [
        ModelCheckpoint(
            monitor=f"{phase}/{name}",
            mode=mode,
            save_top_k=max(1, *numbers),
            save_weights_only=True,
            filename=f"epoch{{epoch}}_{phase}.{name}",
            save_on_train_epoch_end=True,
            enable_version_counter=False,
            **options,
        )
        for phase, name, mode in args.best_model_criterion
    ]
    last = ResumeCheckpoint(args.output_dir, args.save_every, stop, resumed)
    callbacks: list[Callback] = [EpochResults()]
    if args.patience is not None:
        criterion = args.early_stopping_criterion
        callbacks.append(PatientStopping(criterion, args.patience))
    # ``last`` comes after ``best``, whose state it contains
    return [*callbacks, *best, last, AverageCheckpoints(args.output_dir, numbers, best)]


def build_model(args: argparse.Namespace) -> SpeechLLM:
    """Build and initialise the model; rank 0 writes ``config.yaml`` as ESPnet does."""
    output = Path(args.output_dir)
    first = int(os.environ.get("RANK", 0)) == 0
    if first:
        claim_directory(output, TRAINING)
    set_all_random_seed(args.seed)
    begun = args.resume and find_checkpoint(output)
    if begun and args.ctc_token_list:
        require_same_labels(output, read_token_list(args.ctc_token_list))
    if begun and first:
        require_same_start(output, args.init_param)
    model = LightningTask.build_model(args)
    for name in args.freeze_param:
        for key, parameter in model.named_parameters():
            if key == name or key.startswith(name + "."):
                parameter.requires_grad = False
    for path in args.init_param:
        load_init_param(path, model, args.ignore_init_mismatch, "cpu")
    if first:
        with atomic_open(output / "config.yaml", "w") as stream:
            yaml_no_alias_safe_dump(vars(args), stream, indent=4, sort_keys=False)
    return model


def train(args: argparse.Namespace) -> None:
    """Train in this process, which is one of those that the launcher started.

    Raises:
        UserError: the model cannot be built or initialised, or the checkpoint to
            resume from is damaged.
    """
    rank = int(os.environ.get("RANK", 0))
    logging.basicConfig(
        level=args.log_level if rank == 0 else "WARNING",
        format=f"[rank {rank}] %(asctime)s (%(module)s:%(lineno)d) %(levelname)s: "
        "%(message)s",
    )
    args.task = TASK
    stop = StopRequest()
    with handle_stop_signals(stop):
        fit(args, stop)


def fit(args: argparse.Namespace, stop: StopRequest) -> None:
    """Build the model and train it; ``stop`` receives the signals that end this."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if args.ngpu:  # 4-bit weights are made on the current GPU
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    model = build_model(args).train()  # pretrained parts are in evaluation mode
    resumed = find_checkpoint(args.output_dir) if args.resume else None
    trainer = Trainer(
        accelerator="gpu" if args.ngpu else "cpu",
        devices=local,
        num_nodes=int(os.environ.get("WORLD_SIZE", 1)) // local,
        strategy=build_strategy(args),
        callbacks=build_callbacks(args, stop, resumed),
        max_epochs=args.max_epoch,
        accumulate_grad_batches=args.accum_grad,
        gradient_clip_val=args.grad_clip if args.grad_clip > 0 else None,
        default_root_dir=args.output_dir,
        logger=False,
        enable_progress_bar=False,  # the task's iterator prints progress lines
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,  # ESPnet splits the batches
    )
    # Lightning's handler of SIGTERM calls a collective operation, which can wait for
    # ever for a process that is elsewhere; its handler for Slurm saves at any point
    trainer._signal_connector.register_signal_handlers = lambda: None
    with safe_checkpoints():
        trainer.fit(LitSpeechLLM(args, model), ckpt_path=resumed, weights_only=True)
    if trainer.interrupted:
        raise UserError("the training was interrupted; the same command resumes")
