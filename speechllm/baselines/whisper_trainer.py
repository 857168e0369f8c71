"""Trainer of transformers for Whisper: input as long as the batch, limited time."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, PrinterCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from speechllm.baselines.checkpoints import Checkpoints
from speechllm.baselines.progress import PROGRESS_SECONDS, print_training_progress
from speechllm.models.precision import resolve_dtype
from speechllm.training.signals import protect_workers
from speechllm.utils.errors import UserError, without_worker_traceback

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import EvalPrediction

EVALUATIONS = 6  # on the validation examples, evenly spread over the training
WARMUP_STEPS = 10  # minimum within limited time: the first steps may be slow


def set_positions(whisper: Any, positions: int) -> None:
    """Let the encoder use its first position embeddings only; the weights stay."""
    whisper.model.encoder.embed_positions.num_embeddings = positions
    whisper.config.max_source_positions = positions


def best_tokens(logits: tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """Return the most probable tokens (batch, tokens), all that the accuracy needs."""
    return logits[0].argmax(-1)


def token_accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Return the share of correct tokens, given the tokens before them."""
    labels = prediction.label_ids
    correct = prediction.predictions == labels
    return {"accuracy": float(correct[labels != -100].mean())}


def training_arguments(
    folder: Path, lr: float, epochs: int, batch_size: int, seed: int
) -> TrainingArguments:
    """Return the arguments of transformers' ``Trainer``.

    Args:
        folder: of the checkpoints.
    """
    never = 1_000_000_000  # Pace requests the evaluations
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        learning_rate=lr,
        weight_decay=0.01,
        use_cpu=not torch.cuda.is_available(),
        bf16=resolve_dtype("auto") is torch.bfloat16,
        eval_strategy="steps",
        eval_steps=never,
        eval_on_start=True,
        save_strategy="best",  # Checkpoints requests more, and removes those not needed
        load_best_model_at_end=True,
        metric_for_best_model="eval_accuracy",
        greater_is_better=True,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=4 if torch.cuda.is_available() else 0,
        dataloader_pin_memory=False,
        seed=seed,
    )


class Pace(TrainerCallback, ExportableState):
    """Schedule by the share of the training that is done, in time or in steps.

    It determines the learning rate, requests evaluations, ends the training and prints
    progress lines.

    Args:
        begin: ``time.monotonic()`` at the start of the call; it is earlier by the time
            of the calls before when an interrupted training resumes.
        minutes: time of all calls; None is no limit.
    """

    def __init__(self, begin: float, minutes: float | None):
        self.begin = begin
        self.deadline = math.inf if minutes is None else begin + 60 * minutes
        self.train_begin = self.reported = self.requested = time.monotonic()
        self.evaluation_seconds = 0.0
        self.evaluated = 0  # number of evaluations since the first
        self.losses: list[float] = []  # of the steps since the last progress line
        self.validation: list[dict] = []
        self.trained_parameters = 0

    def done(self, step: int, steps: int) -> float:
        """Return the share of the training that is done, between 0 and 1."""
        # the last evaluation has to fit into the time, too
        end = self.deadline - 1.5 * self.evaluation_seconds
        elapsed = time.monotonic() - self.train_begin
        by_time = elapsed / max(end - self.train_begin, 1e-9)
        return min(1.0, max(step / steps, by_time))

    def lr_factor(self, steps: int) -> Callable[[int], float]:
        """Return the learning rate as a share of its peak, by step.

        It rises over the first tenth of the training and then falls to 0.
        """
        warmup = 0.1 * steps
        if self.deadline < math.inf:  # which may end the training after few of them
            warmup = min(warmup, WARMUP_STEPS)

        def factor(step: int) -> float:
            done = self.done(step, steps)
            return min((step + 1) / warmup, 10 * done + 0.01, (1 - done) / 0.9)

        return factor

    def state(self) -> dict:
        """Return what ``Trainer`` writes into a checkpoint."""
        now = time.monotonic()
        attributes = {
            "seconds": now - self.begin,
            "train_seconds": now - self.train_begin,
            "evaluation_seconds": self.evaluation_seconds,
            "evaluated": self.evaluated,
            "validation": self.validation,
        }
        return {"args": {}, "attributes": attributes}

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        """Start the time of the steps, or go on with the state of a checkpoint."""
        self.trained_parameters = sum(
            p.numel() for p in model.parameters() if p.requires_grad
        )
        self.train_begin = self.reported = self.requested = time.monotonic()
        if not state.global_step:
            return
        earlier = state.stateful_callbacks[type(self).__name__]["attributes"]
        self.begin -= earlier["seconds"]
        self.deadline -= earlier["seconds"]
        self.train_begin -= earlier["train_seconds"]
        self.evaluation_seconds = earlier["evaluation_seconds"]
        self.evaluated, self.validation = earlier["evaluated"], earlier["validation"]
        print(f"resumed after step {state.global_step}", file=sys.stderr, flush=True)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs) -> None:
        """Record the validation and the time that it took."""
        now = time.monotonic()
        self.evaluation_seconds = now - self.requested
        seconds = round(now - self.begin, 1)
        entry = {
            "step": state.global_step,
            "seconds": seconds,
            "loss": round(metrics["eval_loss"], 4),
            "accuracy": round(metrics["eval_accuracy"], 4),
        }
        self.validation.append(entry)
        print(
            f"step {state.global_step}, {seconds / 60:.1f} min: valid loss "
            f"{entry['loss']}, accuracy {entry['accuracy']}",
            file=sys.stderr,
            flush=True,
        )

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Request an evaluation or the end, and print a progress line."""
        done = self.done(state.global_step, state.max_steps)
        if done >= 1:
            control.should_training_stop = control.should_evaluate = True
        elif done * EVALUATIONS >= self.evaluated + 1:
            self.evaluated = int(done * EVALUATIONS)
            control.should_evaluate = True
        now = self.requested = time.monotonic()
        if now - self.reported < PROGRESS_SECONDS:
            return
        self.reported = now
        position = f"step {state.global_step}, epoch {state.epoch:.1f}"
        left = (now - self.train_begin) * (1 - done) / done
        print_training_progress(position, self.losses, left)


class WhisperTrainer(Trainer):
    """Trainer whose encoder input is as long as the batch.

    Args:
        pace: callback, which also gives the learning rate.
        checkpoints: callback that saves and removes them.
        kwargs: of transformers' ``Trainer``.
    """

    def __init__(self, *, pace: Pace, checkpoints: Checkpoints, **kwargs: Any):
        super().__init__(
            callbacks=[pace, checkpoints],
            compute_metrics=token_accuracy,
            preprocess_logits_for_metrics=best_tokens,
            **kwargs,
        )
        self.pace = pace
        self.epochs_before = 0  # drawn by the calls before
        self.remove_callback(PrinterCallback)

    def train_from(self, checkpoint: Path | None) -> None:
        """Train, or go on after a checkpoint in the same order of the examples.

        Raises:
            UserError: audio cannot be read, or a signal has stopped the training.
        """
        if checkpoint is not None:
            state = TrainerState.load_from_json(checkpoint / TRAINER_STATE_NAME)
            steps = math.ceil(len(self.train_dataset) / self.args.train_batch_size)
            self.epochs_before = state.global_step // steps
            self.args.eval_on_start = False
        try:
            self.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        except UserError as error:
            raise without_worker_traceback(error) from error

    def compute_loss(self, model, inputs, *args, **kwargs):
        """Return the loss; the encoder uses as many positions as the batch has."""
        whisper = getattr(self.model, "get_base_model", lambda: self.model)()
        set_positions(whisper, inputs["input_features"].shape[-1] // 2)
        result = super().compute_loss(model, inputs, *args, **kwargs)
        if model.training:
            self.pace.losses.append(float(result.detach()))
        return result

    def _get_dataloader(self, *args, **kwargs):
        """Return transformers' loader; signals to all processes spare its workers."""
        loader = super()._get_dataloader(*args, **kwargs)
        protect_workers(loader.base_dataloader)
        return loader

    def _get_train_sampler(self, train_dataset=None):
        """Return transformers' sampler of batches of similar length."""
        lengths = [example.samples for example in self.train_dataset]
        generator = torch.Generator().manual_seed(self.args.seed)
        sampler = LengthGroupedSampler(
            self.args.train_batch_size, lengths=lengths, generator=generator
        )
        for _ in range(self.epochs_before):
            iter(sampler)  # draws the order of an epoch
        return sampler

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """Return the schedule of :class:`Pace`."""
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, self.pace.lr_factor(num_training_steps)
            )
        return self.lr_scheduler
