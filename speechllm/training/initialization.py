"""Initialisation from checkpoints, and checkpoints that survive a kill."""

from __future__ import annotations

import datetime
import functools
import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from espnet2.tasks import abs_task
from espnet2.train.reporter import Reporter
from typeguard import TypeCheckError

from speechllm.models.speech_llm import SpeechLLM
from speechllm.pretrained.checkpoint import is_hub_id, load_tensors
from speechllm.pretrained.model_folder import is_nue_asr
from speechllm.text.ctc_labels import read_token_list
from speechllm.utils.errors import UserError, is_out_of_memory, reason_of
from speechllm.utils.folders import FolderKind
from speechllm.utils.io import atomic_open, read_yaml

#: Folder of a training. Before it begins, the recipe writes its log, Slurm's job files
#: (``q``), its config with other models, a file for distributed processes and, in a
#: series, its time; a user may put a state there to resume from.
TRAINING = FolderKind(
    "training",
    ("config.yaml", "*.pth"),
    before=(
        "train.log*",
        "q",
        "train_config.yaml",
        ".dist_init_*",
        "attempt",
        "seconds",
    )
    + ("checkpoint.pth", "mid_epoch.pth"),
)

#: Types besides tensors in the resume state of ESPnet's reporter (times and losses).
_RESUME_TYPES = [
    datetime.timedelta,
    np.dtype,
    *{type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int64)},
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
]


@contextmanager
def safe_checkpoints() -> Iterator[None]:
    """Make ESPnet's trainer write checkpoints atomically and run no code from them.

    ``torch.save`` to a path writes a temporary file and renames it, so that a kill
    leaves the previous checkpoint intact. ``torch.load``, which ESPnet calls to resume
    and to average, unpickles tensors and the reporter's numbers only, and maps the file
    into memory, of which the processes of a machine share one copy. ``--init_param``
    accepts safetensors, too.
    """
    save, load = torch.save, torch.load
    load_pretrained = abs_task.load_pretrained_model

    @functools.wraps(save)
    def save_atomically(obj, f, *args, **options):
        if not isinstance(f, (str, os.PathLike)):
            return save(obj, f, *args, **options)
        with atomic_open(f, "wb") as stream:
            save(obj, stream, *args, **options)

    @functools.wraps(load)
    def load_safely(f, *args, **options):
        is_path = isinstance(f, (str, os.PathLike))
        options = {"mmap": is_path, **options}
        if is_path and os.path.exists(f) and not os.path.isfile(f):
            raise UserError(f"{f}: not a regular file; move it away")
        try:
            with torch.serialization.safe_globals(_RESUME_TYPES):
                return load(f, *args, **{**options, "weights_only": True})
        except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            place = f if is_path else getattr(f, "name", f)  # Lightning opens the file
            raise UserError(
                f"{place}: not a checkpoint of this training, or damaged; it is not "
                "read, since it could run code; move it away to resume without it "
                f"({str(error).splitlines()[0]})"
            ) from None

    torch.save, torch.load = save_atomically, load_safely
    abs_task.load_pretrained_model = load_init_param
    try:
        yield
    finally:
        torch.save, torch.load = save, load
        abs_task.load_pretrained_model = load_pretrained


@contextmanager
def name_foreign_state(path: Path) -> Iterator[None]:
    """Turn the errors of a state that does not fit into one that names its file.

    Raises:
        UserError: the block has raised one of them.
    """
    try:
        yield
    except (
        AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError,
        TypeCheckError,
    ) as error:  # fmt: skip
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {reason_of(error)}"[:200]
        raise UserError(
            f"{path}: not the state of this training, or damaged ({reason}); if the "
            "model or its optimizer has changed, change that back; else move the file "
            "away to resume without it"
        ) from error


def load_init_param(
    init_param: str, model: SpeechLLM, ignore_init_mismatch: bool, map_location: str
) -> None:
    """Initialise a model from trained weights: ``--init_param START[:PREFIX]``.

    Args:
        init_param: ``.safetensors`` or ``.pth`` of a SpeechLLM, a folder with
            ``model.safetensors``, or a folder or hub id in Nue-ASR's released format
            (``yky-h/nue-asr``); with ``:PREFIX`` only the tensors whose names begin
            with it (``encoder``, ``ctc``, …). Weights of a layer that has an adapter
            only in this model are loaded below the adapter.
        model: the model to initialise.
        ignore_init_mismatch: skip tensors that do not fit instead of failing.
        map_location: device of the tensors.

    Raises:
        UserError: the model is missing, tensors are unknown or of another shape
            (names the first ones), or the CTC head has other labels.
    """
    path, _, prefix = init_param.partition(":")
    try:
        state = read_init_tensors(path, map_location)
    except UserError as error:
        raise UserError(f"--init_param {init_param}: {error}") from error
    if prefix:
        state = {k: v for k, v in state.items() if k.startswith(prefix)}
    if any(k.startswith("ctc.") for k in state) and getattr(model, "token_list", None):
        folder = Path(path) if Path(path).is_dir() else Path(path).parent
        try:
            require_same_labels(folder, model.token_list)
        except UserError as error:
            if not ignore_init_mismatch:
                raise
            logging.warning(f"not loaded from {path}: the CTC head; {error}")
            state = {k: v for k, v in state.items() if not k.startswith("ctc.")}
    if not state:
        raise UserError(f"--init_param {init_param}: no such tensors in the file")
    own = {k: v.shape for k, v in torch.nn.Module.state_dict(model).items()}
    adapted = {k.replace(".base_layer.", "."): k for k in own if ".base_layer." in k}
    state = {adapted.get(k, k): v for k, v in state.items()}
    misfits = [k for k, v in state.items() if own.get(k) != v.shape]
    if misfits and not ignore_init_mismatch:
        first = ", ".join(
            f"{k} {tuple(state[k].shape)} instead of {tuple(own[k])}"
            if k in own
            else f"{k}, which this model lacks"
            for k in misfits[:3]
        )
        raise UserError(
            f"--init_param {init_param}: {len(misfits)} tensors do not fit this "
            f"model: {first}; --ignore_init_mismatch true skips them"
        )
    for name in misfits:
        logging.warning(f"not loaded from {path}: {name}")
        del state[name]
    model.load_state_dict(state, strict=False)


def require_same_labels(folder: Path, labels: Sequence[str]) -> None:
    """Check that a training's or an exported model's folder has these CTC labels.

    A head for the same number of labels in another order would load without an error.

    Raises:
        UserError: the labels differ; names the first difference.
    """
    if (folder / "tokens.txt").exists():
        known = read_token_list(str(folder / "tokens.txt"))
    elif (folder / "config.yaml").exists():
        known = read_yaml(folder / "config.yaml").get("ctc_token_list") or []
    else:
        return
    if not isinstance(known, list) or known == list(labels) or not known:
        return
    pairs = enumerate(zip_longest(known, labels, fillvalue="no label"))
    number, (there, here) = next((n, pair) for n, pair in pairs if pair[0] != pair[1])
    raise UserError(
        f"{folder}: trained with other CTC labels, number {number} is {there!r} there "
        f"and {here!r} here; train the warm-up again, or use the token list that it "
        "was trained with"
    )


def require_same_start(output_dir: Path, init_param: Sequence[str]) -> None:
    """Check that a training that resumes is given the start that it began with.

    Another one would have no effect. Checkpoints that are no longer where they were are
    the same if they and their folders have the same names, as of a moved experiment.

    Args:
        output_dir: folder of the training, with a state to resume from.
        init_param: ``--init_param`` of the call.

    Raises:
        UserError: its ``config.yaml`` has another one.
    """
    config = output_dir / "config.yaml"
    if not config.exists():  # a state that the user has put there
        return
    before = read_yaml(config).get("init_param") or []
    if len(before) == len(init_param) and all(map(is_same_start, before, init_param)):
        return
    began, given = (", ".join(map(str, s)) or "none" for s in (before, init_param))
    raise UserError(
        f"{output_dir}: this training began with --init_param {began}, so {given} "
        "would have no effect; to train from there, use another folder (in a recipe "
        "--expdir or --train_tag) or move this one away; to go on with this training, "
        f"move {config} away"
    )


def is_same_start(before: str, now: str) -> bool:
    """Return whether two values of ``--init_param`` name the same tensors."""
    (path, _, prefix), (other, _, other_prefix) = (
        str(start).partition(":") for start in (before, now)
    )
    if prefix != other_prefix:
        return False
    if os.path.exists(path):
        return os.path.exists(other) and os.path.samefile(path, other)
    return Path(path).parts[-2:] == Path(other).parts[-2:]


def read_init_tensors(path: str, map_location: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint, folder or hub id under SpeechLLM's names."""
    from speechllm.pretrained.hub import snapshot_commit
    from speechllm.pretrained.resolve import resolve_model

    start = resolve_model(path) if is_hub_id(path) else Path(path)
    if commit := snapshot_commit(start):
        logging.info("initialisation: %s: commit %s", path, commit)
    if is_nue_asr(start):
        from speechllm.models.nue_asr import speech_llm_state

        return speech_llm_state(start)
    return load_tensors(start, map_location)


def repair_checkpoint(output_dir: Path, criteria: Sequence[Sequence[str]] = ()) -> None:
    """Write the files that a kill right after ``checkpoint.pth`` left missing.

    These are the epoch's model and the links to the latest and the best model. Only the
    process of rank 0 calls this.

    Args:
        output_dir: ESPnet's output folder of the training.
        criteria: ``best_model_criterion``: (phase, name, ``min`` or ``max``) of each.

    Raises:
        UserError: ``checkpoint.pth`` is not the state of a training.
    """
    checkpoint = output_dir / "checkpoint.pth"
    if not checkpoint.exists():
        return
    with safe_checkpoints(), name_foreign_state(checkpoint):
        states = torch.load(checkpoint, map_location="cpu")
        reporter = Reporter()
        reporter.load_state_dict(states["reporter"])
        trained = states["model"]
        model = output_dir / f"{reporter.get_epoch()}epoch.pth"
        targets = {"latest.pth": model.name}
        for phase, name, mode in criteria:
            if reporter.has(phase, name):
                best = reporter.get_best_epoch(phase, name, mode)
                targets[f"{phase}.{name}.best.pth"] = f"{best}epoch.pth"
    if not model.exists():
        with atomic_open(model, "wb") as stream:
            torch.save(trained, stream)
    for link, target in targets.items():
        temporary = output_dir / f".{link}.new"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.replace(output_dir / link)
