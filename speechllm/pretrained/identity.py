"""Identity of a pretrained model: the values of its tensors and its vocabulary.

A trained model records them for the pretrained models that it is based on. File names,
``config.json``, the layout of the weight files and the precision in which equal values
are stored are not part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechllm.pretrained.checkpoint import load_tensors
from speechllm.pretrained.model_folder import (
    FINGERPRINT_FILE,
    NOT_IN_WEIGHTS,
    missing_parts,
    read_json,
    vocabulary_files,
    weight_files,
)
from speechllm.utils.errors import UserError
from speechllm.utils.io import write_json

if TYPE_CHECKING:
    from torch import Tensor

SOURCE_FILE = "speechllm_source.json"  # of models converted from a package


def model_identity(folder: str | Path, tokenizer: bool = False) -> dict[str, str]:
    """Return what identifies a pretrained model.

    Args:
        folder: of the model.
        tokenizer: also identify the vocabulary, of an LLM.

    Returns:
        ``weights`` and ``vocabulary``, SHA-256 in 64 hexadecimal digits, and
        ``precision`` of weights that were dequantised.

    Raises:
        UserError: the folder does not contain a complete model.
    """
    folder = Path(folder)
    found = {"weights": weights_sha256(folder)}
    if tokenizer:
        found["vocabulary"] = vocabulary_sha256(folder)
    if precision := stored_precision(folder):
        found["precision"] = precision
    return found


def stored_precision(folder: Path) -> str | None:
    """Return the precision of converted weights in their package, else None."""
    try:
        record = read_json(folder / SOURCE_FILE)
    except (OSError, UserError):
        return None
    precision = record.get("precision") if isinstance(record, dict) else None
    return precision if isinstance(precision, str) else None


def weights_sha256(folder: Path) -> str:
    """Return a checksum of names, shapes and values of a model's tensors.

    It is cached in the folder (if writable) while no weight file changes its size or
    time. Values are compared in float32.

    Raises:
        UserError: the folder does not contain a complete model, or it is damaged.
    """
    if missing := missing_parts(folder):
        raise UserError(f"{folder} is not a model: it lacks {' and '.join(missing)}")
    files = weight_files(folder)
    states = [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]
    cache = folder / FINGERPRINT_FILE
    known: dict[str, Any] = {}
    with suppress(OSError, UserError, TypeError, ValueError):
        known = dict(read_json(cache))
    record = known.get("tensors")
    if isinstance(record, list) and len(record) == 2 and record[0] == states:
        return str(record[1])
    lines = sorted(
        f"{name}\0{list(tensor.shape)}\0{_sha256(tensor)}\n"
        for file in files
        for name, tensor in _tensors(file)
        if not name.endswith(NOT_IN_WEIGHTS)
    )
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    with suppress(OSError):  # the folder is not writable
        write_json(cache, {**known, "tensors": [states, digest]})
    return digest


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a weight file, one at a time where the format allows it."""
    if file.suffix != ".safetensors":
        yield from load_tensors(file).items()
        return
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as content:
            for name in content.keys():
                yield name, content.get_tensor(name)
    except SafetensorError as error:
        raise UserError(f"{file}: damaged ({error}); download it again") from None


def _sha256(tensor: Tensor) -> str:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.is_floating_point():
        tensor = tensor.float()
    return hashlib.sha256(tensor.numpy().data).hexdigest()


def vocabulary_sha256(folder: Path) -> str:
    """Return a checksum of a tokenizer's tokens, their ids and merges."""
    digest = hashlib.sha256()
    for file in vocabulary_files(folder):
        content = file.read_bytes()
        if file.name == "tokenizer.json":
            content = json.dumps(_token_ids(read_json(file)), sort_keys=True).encode()
        digest.update(f"{file.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _token_ids(tokenizer: Mapping[str, Any]) -> Any:
    """Return the parts of a ``tokenizer.json`` that relate texts and ids."""
    model = tokenizer.get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        return tokenizer
    merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges", [])]
    added = [[t["id"], t["content"]] for t in tokenizer.get("added_tokens", [])]
    return [model["vocab"], merges, added]
