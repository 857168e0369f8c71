"""Checkpoints from which an interrupted training of ``Trainer`` resumes."""

from __future__ import annotations

import json
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

from transformers import TrainerCallback

from speechllm.baselines.progress import SAVE_SECONDS
from speechllm.training.signals import StopRequest, stopped
from speechllm.utils.folders import FolderKind, claim_directory, remove_directory
from speechllm.utils.io import previous_name, write_json

KIND = FolderKind("folder of checkpoints")
SETTINGS = "settings.json"


class Checkpoints(TrainerCallback):
    """Save at intervals and on a signal, and remove the checkpoints not needed.

    A checkpoint to resume from has the state of the optimizer, too; those that
    ``Trainer`` writes for a new best model have the weights only.

    Args:
        folder: ``output_dir`` of the trainer.
        stop: signal on which the training saves and ends.
    """

    def __init__(self, folder: Path, stop: StopRequest):
        self.folder, self.stop = folder, stop
        self.saved = time.monotonic()
        self.kept: set[str] = set()  # the last one to resume from, and its best model

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Begin an interval; keep what the training resumes from."""
        if state.best_global_step:  # the folder may have been moved since
            best = self.folder / f"checkpoint-{state.best_global_step}"
            state.best_model_checkpoint = str(best)
        self.saved = time.monotonic()
        self.kept = names(state.global_step, state.best_global_step)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Request a checkpoint if one is due; an evaluation goes first."""
        due = self.stop.number or time.monotonic() - self.saved >= SAVE_SECONDS
        control.should_save = bool(due) and not control.should_evaluate
        args.save_only_model = not control.should_save

    def on_save(self, args, state, control, **kwargs) -> None:
        """Remove older checkpoints; end the training if it was asked to.

        Raises:
            UserError: there was a signal, and the state is saved.
        """
        if not args.save_only_model:
            self.saved = time.monotonic()
            self.kept = names(state.global_step, state.best_global_step)
        needed = self.kept | names(state.best_global_step)
        for checkpoint in find_all(self.folder):
            if checkpoint.name not in needed:
                shutil.rmtree(checkpoint)
        if self.stop.number and not args.save_only_model:
            raise stopped(self.stop.number, f"step {state.global_step}")


def find_all(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, but no copies under other names."""
    return [
        path
        for path in folder.glob("checkpoint-*")
        if path.is_dir() and path.name.removeprefix("checkpoint-").isdigit()
    ]


def names(*steps: int | None) -> set[str]:
    """Return the names of the checkpoints of some steps."""
    return {f"checkpoint-{step}" for step in steps if step}


def find_checkpoint(folder: Path, settings: dict) -> Path | None:
    """Return the last complete checkpoint of the same settings, None without any.

    Those of other settings are moved to ``<folder>.previous``; those that a kill left
    incomplete are removed.

    Raises:
        UserError: the folder has other content.
    """
    claim_directory(folder, KIND)
    if read_settings(folder) != settings:
        keep_checkpoints(folder)
        write_json(folder / SETTINGS, settings)
    found: dict[int, Path] = {}
    for checkpoint in find_all(folder):
        try:  # the last file of each
            state = json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            shutil.rmtree(checkpoint)
            continue
        if (checkpoint / "optimizer.pt").is_file():
            found[state["global_step"]] = checkpoint
    return found[max(found)] if found else None


def read_settings(folder: Path) -> dict | None:
    """Return the settings of the checkpoints in a folder, None if there are none."""
    with suppress(FileNotFoundError, ValueError):
        return json.loads((folder / SETTINGS).read_text("utf-8"))
    return None


def keep_checkpoints(folder: Path) -> None:
    """Move checkpoints and their settings to a new sibling folder, if there are any."""
    checkpoints = find_all(folder)
    if not checkpoints:
        return
    kept = previous_name(folder)
    kept.mkdir()
    for path in (*checkpoints, folder / SETTINGS):
        if path.exists():
            path.replace(kept / path.name)
    print(f"{kept}: checkpoints of other settings", file=sys.stderr)


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a folder, and the folder if nothing else is in it."""
    for checkpoint in find_all(folder):
        shutil.rmtree(checkpoint)
    (folder / SETTINGS).unlink(missing_ok=True)
    remove_directory(folder, KIND)
