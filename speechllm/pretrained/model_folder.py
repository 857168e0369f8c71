"""Model folders in the format of transformers: files, completeness, fingerprint.

A folder has ``config.json``, ``model.safetensors`` (or shards with an index, or the
older ``pytorch_model.bin``), and the files of the tokenizer or feature extractor.
Nothing here loads a model.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechllm.pretrained.checkpoint import load_tensors
from speechllm.utils.errors import UserError, is_out_of_memory, reason_of
from speechllm.utils.io import atomic_open, file_sha256, write_json

if TYPE_CHECKING:
    import numpy as np
    from transformers import PretrainedConfig

_OLD_CONTENTS_BELOW = 2 << 30  # bytes; release 0.2 read no larger files
_VOCABULARIES = (  # files of a tokenizer that define its ids
    "tokenizer.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)
#: For every Auto… class of transformers, which would else ask whether to run a folder's
#: Python code.
NO_CODE = {"trust_remote_code": False}
#: Parameters that many checkpoints lack, since inference does not use them.
NOT_IN_WEIGHTS = ("masked_spec_embed", "num_batches_tracked")
FINGERPRINT_FILE = ".speechllm_fingerprint.json"


def require_no_foreign_links(folder: str | Path) -> None:
    """Raise UserError if a folder to publish has links that lead out of it.

    Whoever wrote the folder chose their targets, which may be private files of this
    machine. A snapshot in the hub's cache consists of links to the cache's ``blobs``;
    they are followed. Links to folders are refused, since their files would be left
    out. Hidden files are not published, so they are not checked.
    """
    folder = Path(folder)
    root = folder.resolve()
    roots = [root]
    if root.parent.name == "snapshots":
        roots.append(root.parents[1] / "blobs")
    for path in sorted(folder.rglob("*")):
        hidden = any(p.startswith(".") for p in path.relative_to(folder).parts)
        if hidden or not path.is_symlink():
            continue
        target = Path(os.path.realpath(path))
        if not (target.is_file() and any(map(target.is_relative_to, roots))):
            raise UserError(
                f"{path}: a link to {target}, which is not a file of this model; "
                "replace the link with a copy, or remove it"
            )


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
            try:
                names = sorted(set(read_json(index)["weight_map"].values()))
            except (KeyError, TypeError, AttributeError):
                raise UserError(f"{index}: no weight_map of tensors to files") from None
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
        content = read_json(Path(folder) / "config.json")
    except (OSError, UserError):
        return False
    return isinstance(content, dict) and content.get("model_type") == "nue_asr"


def check_files(folder: str | Path) -> None:
    """Check that the files of a model folder can be read and are whole.

    JSON files are parsed and the sizes of weight files compared with their headers;
    the weights themselves are not read.

    Raises:
        UserError: a file is a FIFO, socket or device, unreadable, not JSON, or cut off;
            names the file.
    """
    for path in sorted(Path(folder).iterdir()):
        is_known = path.suffix in (".json", ".safetensors", ".bin", ".model", ".yaml")
        if path.is_dir() and not is_known:
            continue
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: not a regular file; remove it")
        if not is_known:
            continue
        if path.name.startswith("."):
            continue
        try:
            if path.suffix == ".json":
                read_json(path)
            elif path.suffix == ".safetensors":
                safetensors_shapes(path)
            else:
                with open(path, "rb") as stream:
                    zipped = stream.read(2) == b"PK"
                if path.suffix == ".bin" and zipped and not zipfile.is_zipfile(path):
                    raise UserError(f"{path}: cut off; download it again")
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{path}: cannot be read: {reason}") from error


def safetensors_shapes(path: Path) -> list[tuple[str, tuple[int, ...]]]:
    """Return name and shape of the tensors in a safetensors file, from its header.

    Raises:
        UserError: the file is not in this format, or cut off.
    """
    size = path.stat().st_size
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= size - 8:
            raise UserError(f"{path}: not a safetensors file, or cut off")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            end = max((t["data_offsets"][1] for t in header.values()), default=0)
            shapes = [(name, tuple(t["shape"])) for name, t in header.items()]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(f"{path}: its header is damaged") from error
    if size != 8 + length + end:
        raise UserError(
            f"{path}: {size} bytes, but its header needs {8 + length + end}; it is cut "
            "off or damaged: download it again"
        )
    return shapes


@contextmanager
def name_damaged_weights(folder: str | Path | None) -> Iterator[None]:
    """Turn an error of loading a model into one that names its damaged weight file.

    Args:
        folder: of the pretrained model; None: leave errors as they are.

    Raises:
        UserError: a weight file is damaged, or pickled with more than tensors.
    """
    try:
        yield
    except Exception as error:
        if folder is not None and not isinstance(error, UserError):
            hidden = type(error).__name__ == "SafetensorError"
            for file in [] if is_out_of_memory(error) else weight_files(folder):
                if hidden or file.suffix == ".bin":
                    load_tensors(file)
        raise


def load_pretrained(
    kind: Any, folder: str | Path, unused: str | None = None, **options: Any
) -> Any:
    """Load a model of transformers, which has random values where weights are missing.

    Args:
        kind: class of the model, or an automatic one.
        folder: of the pretrained model; no code of it is run.
        unused: prefix of parameters that the caller does not use.
        options: of ``from_pretrained``.

    Raises:
        UserError: a weight file is damaged, or lacks parameters of the model.
    """
    with name_damaged_weights(folder):
        model, info = kind.from_pretrained(
            folder, output_loading_info=True, **options, **NO_CODE
        )
    missing = sorted(
        name
        for name in info["missing_keys"]
        if not name.endswith(NOT_IN_WEIGHTS)
        and not (unused and name.startswith(unused))
    )
    if missing:
        files = weight_files(folder)
        place = files[0] if len(files) == 1 else folder
        raise UserError(
            f"{place}: the weights are incomplete or of another model than its "
            f"config.json: {len(missing)} parameters are not in them: "
            f"{', '.join(missing[:3])}"
        )
    return model


def model_fingerprint(folder: str | Path, tokenizer: bool = False) -> str:
    """Return a checksum that identifies a model: 64 hexadecimal digits.

    It is the SHA-256 of the names, sizes and contents of ``config.json``, the weight
    files and, for an LLM, the vocabulary of the tokenizer. The checksums of the files
    are cached in the folder (if writable) and valid while a file does not change its
    size or time, so that only the first call reads the weights.

    Raises:
        UserError: the folder does not contain a complete model.
    """
    return _fingerprint(Path(folder), tokenizer)


def has_fingerprint(folder: str | Path, expected: str, tokenizer: bool = False) -> bool:
    """Compare a model with a fingerprint, also with one that release 0.2 recorded.

    Those are without the tokenizer and the content of files of 2 GiB or more. Models
    trained since then record :func:`speechllm.pretrained.identity.model_identity`.

    Raises:
        UserError: the folder does not contain a complete model.
    """
    folder = Path(folder)
    return expected in (
        _fingerprint(folder, False, _OLD_CONTENTS_BELOW),
        _fingerprint(folder, tokenizer),
    )


def _fingerprint(folder: Path, tokenizer: bool, below: float = math.inf) -> str:
    if missing := missing_parts(folder):
        raise UserError(f"{folder} is not a model: it lacks {' and '.join(missing)}")
    files = [folder / "config.json", *weight_files(folder)]
    if tokenizer:
        files += vocabulary_files(folder)
    cache = folder / FINGERPRINT_FILE
    try:
        record = dict(read_json(cache))
        known = dict(record.get("sha256", {}))
    except (OSError, UserError, TypeError, ValueError):
        record, known = {}, {}  # missing, damaged or of an old release
    digest = hashlib.sha256()
    changed = False
    for file in files:
        stat = file.stat()
        content = "-"
        if stat.st_size < below:
            state = [stat.st_size, stat.st_mtime_ns]
            entry = known.get(file.name)
            if not isinstance(entry, list) or entry[:2] != state or len(entry) != 3:
                entry = known[file.name] = [*state, file_sha256(file)]
                changed = True
            content = entry[2]
        digest.update(f"{file.name}\0{stat.st_size}\0{content}\n".encode())
    if changed:
        with suppress(OSError):  # the folder is not writable
            write_json(cache, {**record, "sha256": known})
    return digest.hexdigest()


def vocabulary_files(folder: Path) -> list[Path]:
    """Return the files of a tokenizer that define its ids."""
    found = [folder / name for name in _VOCABULARIES if (folder / name).is_file()]
    return [path for path in found if path.name == "tokenizer.json"] or found


def read_model_config(folder: str | Path) -> PretrainedConfig:
    """Read the configuration of a model; no code of the folder is run.

    Raises:
        UserError: it is missing or damaged, or of a type that transformers does not
            know.
    """
    from transformers import AutoConfig

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, **NO_CODE)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        if _has_own_code(Path(folder) / "config.json"):
            reason = "needs Python code of its own, which is not run"
        else:
            reason = reason_of(error)[:300]
        raise UserError(f"{folder}: no model can be loaded: {reason}") from None
    return config


def _has_own_code(path: Path) -> bool:
    try:
        return "auto_map" in json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def write_safetensors(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write weights as transformers expects them (metadata ``format: pt``)."""
    from safetensors.numpy import save

    # not save_file, which hides a full disk in its own class of error
    with atomic_open(path, "wb") as stream:
        stream.write(save(dict(tensors), metadata={"format": "pt"}))


def read_json(path: Path) -> dict:
    """Read a JSON file.

    Raises:
        UserError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error


def read_mapping(path: Path) -> dict:
    """Read a JSON file with a mapping.

    Raises:
        UserError: it is something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON mapping; download the model again")
    return content
