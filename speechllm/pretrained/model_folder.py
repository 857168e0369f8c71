"""Model folders in the format of transformers: files, completeness, fingerprint.

A folder has ``config.json``, ``model.safetensors`` (or shards with an index, or the
older ``pytorch_model.bin``), and the files of the tokenizer or feature extractor.
Nothing here loads a model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_open, file_sha256, write_json

if TYPE_CHECKING:
    import numpy as np

_CONTENTS_BELOW = 2 << 30  # bytes; a larger file enters a fingerprint by size only
_FINGERPRINT_FILE = ".speechllm_fingerprint.json"


def weight_files(folder: str | Path) -> list[Path]:
    """Return the weight files that transformers loads; ``[]`` if one is missing.

    The order of preference is transformers': one safetensors file, safetensors shards,
    one PyTorch file, PyTorch shards.
    """
    folder = Path(folder)
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            names = sorted(set(_read_json(index)["weight_map"].values()))
            if all((folder / shard).is_file() for shard in names):
                return [folder / shard for shard in names]
    return []


def missing_parts(folder: str | Path) -> list[str]:
    """Return the files that a model folder lacks, for a message; empty if complete."""
    folder = Path(folder)
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if not weight_files(folder):
        missing.append("model.safetensors (or all its shards)")
    return missing


def is_nue_asr(folder: str | Path) -> bool:
    """Return True if a folder's ``config.json`` is in Nue-ASR's released format."""
    try:
        content = _read_json(Path(folder) / "config.json")
    except (OSError, UserError):
        return False
    return isinstance(content, dict) and content.get("model_type") == "nue_asr"


def model_fingerprint(folder: str | Path) -> str:
    """Return a checksum that identifies a model: 64 hexadecimal digits.

    It is the SHA-256 of the names, sizes and contents of ``config.json`` and the
    weight files, without the content of files of 2 GiB or more. It is cached in the
    folder (if writable) and valid while no file changes its size or time, so that only
    the first call reads the weights.

    Raises:
        UserError: the folder does not contain a complete model.
    """
    folder = Path(folder)
    if missing := missing_parts(folder):
        raise UserError(f"{folder} is not a model: it lacks {' and '.join(missing)}")
    files = [folder / "config.json", *weight_files(folder)]
    stats = [file.stat() for file in files]
    state = [[f.name, s.st_size, s.st_mtime_ns] for f, s in zip(files, stats)]
    cache = folder / _FINGERPRINT_FILE
    try:
        record = _read_json(cache)
        if record["files"] == state:
            return record["fingerprint"]
    except (OSError, UserError, KeyError, TypeError):
        pass  # missing or damaged

    digest = hashlib.sha256()
    for file, stat in zip(files, stats):
        content = file_sha256(file) if stat.st_size < _CONTENTS_BELOW else "-"
        digest.update(f"{file.name}\0{stat.st_size}\0{content}\n".encode())
    fingerprint = digest.hexdigest()
    try:
        write_json(cache, {"fingerprint": fingerprint, "files": state})
    except OSError:
        pass  # the folder is not writable
    return fingerprint


def write_safetensors(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write weights as transformers expects them (metadata ``format: pt``)."""
    from safetensors.numpy import save

    # not save_file, which hides a full disk in its own class of error
    with atomic_open(path, "wb") as stream:
        stream.write(save(dict(tensors), metadata={"format": "pt"}))


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
