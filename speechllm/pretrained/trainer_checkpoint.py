"""Checkpoints of Lightning: single files, FSDP's shards and DeepSpeed's, as tensors.

None of them can run code: pickles are read with a fixed list of classes.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader, Metadata, load
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import StorageMeta, TensorStorageMetadata

from speechllm.utils.errors import UserError

PREFIX = "model."  # of the model in ESPnet's module for Lightning
SHARDS = ".metadata"  # file of torch.distributed.checkpoint
DEEPSPEED_TAG = "checkpoint"  # Lightning's name for the subfolder
#: Tensors that training changes without a gradient, in a checkpoint of DeepSpeed.
UNTRAINED = "untrained"

#: What torch.distributed.checkpoint writes into ``.metadata``.
_METADATA_TYPES = {
    "torch": {"Size", "float16", "bfloat16", "float32", "float64", "uint8", "int8"}
    | {"int16", "int32", "int64", "bool", "device"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "TensorProperties",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "StorageMeta",
        "Metadata",
        "MetadataIndex",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "pathlib": {"Path", "PosixPath"},
    "pathlib._local": {"Path", "PosixPath"},
}


def read_trainer_checkpoint(path: Path, device: str = "cpu") -> dict[str, Any]:
    """Return the model's tensors of a checkpoint, under the names of SpeechLLM.

    Args:
        path: ``.ckpt``, a file, or a folder that torch.distributed.checkpoint (FSDP) or
            DeepSpeed wrote.
        device: torch device of the tensors.

    Raises:
        UserError: a folder without a checkpoint, or DeepSpeed's, and the package is not
            installed.
        Exception: the checkpoint is damaged, or contains other classes.
    """
    if (path / DEEPSPEED_TAG).is_dir():
        state = _read_deepspeed(path)
    elif (path / SHARDS).is_file():
        state = _read_shards(path)
    elif path.is_dir():
        raise UserError(f"{path}: this folder has no complete checkpoint")
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    return {k.removeprefix(PREFIX): v.to(device) for k, v in state.items()}


class SafeShardReader(FileSystemReader):
    """Reader of sharded checkpoints whose metadata cannot run code."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the metadata; raises UnpicklingError for any other class."""
        rank = kwargs.get("rank")
        with open(self._get_metadata_path(rank), "rb") as stream:
            metadata = _MetadataUnpickler(stream).load()
        if getattr(metadata, "storage_meta", None) is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _MetadataUnpickler(pickle.Unpickler):
    """Unpickler of the classes of ``.metadata`` only."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _METADATA_TYPES.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} in {SHARDS}")
        return super().find_class(module, name)


def load_shards(state: dict[str, Any], path: Path, no_dist: bool = False) -> None:
    """Read entries of a sharded checkpoint into ``state``, in place.

    ``torch.distributed.checkpoint.load`` unpickles the metadata and all values that are
    not tensors, such as the options of an optimizer; here neither can run code.

    Args:
        state: tensors, of which a process may have shards, and other values, under the
            names of the checkpoint.
        path: folder of the checkpoint.
        no_dist: read in this process alone.

    Raises:
        Exception: the checkpoint is damaged, or contains other classes.
    """
    reader = SafeShardReader(path)
    reader.read_metadata()  # of a damaged one ``load`` hides the reason
    try:
        with weights_only(()):
            load(state, storage_reader=reader, no_dist=no_dist)
    except CheckpointException as error:  # has the traceback of each process
        raise next(iter(error.failures.values()))[0] from None


def _read_shards(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors below ``state_dict`` of a sharded checkpoint."""
    entries = SafeShardReader(path).read_metadata().state_dict_metadata
    start = "state_dict."
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if name.startswith(start) and isinstance(entry, TensorStorageMetadata)
    }
    load_shards(state, path, no_dist=True)
    return {name.removeprefix(start): tensor for name, tensor in state.items()}


def _read_deepspeed(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint of DeepSpeed, joined by its own function."""
    try:
        classes = deepspeed_classes()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    with weights_only(classes):
        from deepspeed.utils.zero_to_fp32 import (
            get_fp32_state_dict_from_zero_checkpoint,
        )

        state = get_fp32_state_dict_from_zero_checkpoint(
            str(path), tag=DEEPSPEED_TAG, exclude_frozen_parameters=True
        )
        file = sorted((path / DEEPSPEED_TAG).glob("*_model_states.pt"))[0]
        saved = torch.load(file, map_location="cpu")
    names = {n for shapes in saved["param_shapes"] for n in shapes}
    # parts of one buffer, which safetensors does not write
    trained = {k: v.detach().clone() for k, v in state.items() if k in names}
    return {**trained, **saved[UNTRAINED]}


def deepspeed_classes() -> list[Any]:
    """Return the classes besides tensors that DeepSpeed saves.

    Raises:
        UserError: DeepSpeed is not installed.
    """
    try:
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address
    except ImportError:
        raise UserError(
            "checkpoints of DeepSpeed need the package: pip install "
            "'speechllm[deepspeed]'"
        ) from None
    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]


@contextmanager
def weights_only(classes: Sequence[Any]) -> Iterator[None]:
    """Let ``torch.load`` in other packages unpickle tensors and some classes only."""
    original = torch.load

    @functools.wraps(original)
    def load_safely(*args: Any, **options: Any) -> Any:
        with torch.serialization.safe_globals(list(classes)):
            return original(*args, **{**options, "weights_only": True})

    torch.load = load_safely
    try:
        yield
    finally:
        torch.load = original
