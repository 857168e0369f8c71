"""Atomic file I/O, YAML, JSON, tar files and checksums.

Atomic: written to a temporary sibling and renamed, so that a file is either complete
or not there.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import IO, Any, Literal

from speechllm.utils.errors import UserError, reason_of
from speechllm.utils.names import safe_file_name

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PREVIOUS = ".previous"  # suffix of an earlier version that is kept
_STALE_SECONDS = 60.0
_PLAUSIBLE_BYTES, _PLAUSIBLE_RATIO = 10 * 2**20, 20  # of audio, weights and tokenizers


@contextmanager
def atomic_open(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that replaces ``path`` once it is complete.

    A link stays and its target is replaced; an existing file keeps its permissions and,
    if possible, its group. A device or named pipe is written directly.

    Args:
        path: file to write; a missing parent folder is created.
        mode: ``"w"`` (UTF-8, LF) or ``"wb"``.

    Raises:
        UserError: ``path`` is a folder.
        OSError: the disk is full or cannot be written.
    """
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")
    earlier = _status(path)
    if earlier is not None and stat.S_ISDIR(earlier.st_mode):
        raise UserError(f"{path}: is a folder; name a file")
    if earlier is not None and not stat.S_ISREG(earlier.st_mode):
        with open(path, mode, encoding=encoding, newline=newline) as stream:
            yield stream
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_siblings(path)
    temporary = temporary_sibling(path)
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with (
            name_full_disk(path),
            open(handle, mode, encoding=encoding, newline=newline) as stream,
        ):
            mark_in_use(handle)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if earlier is not None:
            with suppress(OSError):  # only the owner and root may change it
                os.chown(temporary, -1, earlier.st_gid)
            os.chmod(temporary, stat.S_IMODE(earlier.st_mode))
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def previous_name(path: Path) -> Path:
    """Return the free name under which an earlier version of a file is kept.

    It is ``<name>.previous``, or ``<name>.previous.2`` and so on.
    """
    found, number = path.with_name(safe_file_name(path.name, PREVIOUS)), 1
    while os.path.lexists(found):
        number += 1
        found = path.with_name(safe_file_name(path.name, f"{PREVIOUS}.{number}"))
    return found


def _status(path: str | Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def temporary_sibling(path: Path) -> Path:
    """Return the name of a new hidden sibling, within the limit of 255 bytes."""
    head = os.fsdecode(os.fsencode(path.name)[:200])
    return path.with_name(f".{head}.{secrets.token_hex(4)}.tmp")


def mark_in_use(handle: int) -> None:
    """Mark a temporary file or folder as in use, where the file system has locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pass


def remove_stale_siblings(path: Path) -> None:
    """Remove the temporary siblings of ``path`` that a killed process left."""
    head = os.fsdecode(os.fsencode(path.name)[:200])
    for stale in path.parent.glob(f".{escape(head)}.{'[0-9a-f]' * 8}.tmp"):
        try:
            if time.time() - stale.stat().st_mtime < _STALE_SECONDS:
                continue
            handle = os.open(stale, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
            finally:
                os.close(handle)
        except OSError:  # in use, or removed by another process
            continue


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping; an empty file is an empty mapping.

    Raises:
        UserError: the file is missing, damaged, or not a mapping.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    # RecursionError: nested too deep; ValueError: not UTF-8, or no such date
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        reason = reason_of(error)
        raise UserError(f"{path}: cannot be read as YAML: {reason}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected options as 'name: value'")
    return content


def write_json(path: str | Path, value: dict[str, Any]) -> None:
    """Write a JSON file atomically."""
    with atomic_open(path, "w") as stream:
        json.dump(value, stream, indent=2, ensure_ascii=False)
        stream.write("\n")


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's content as hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def unpack_tar(
    path: str | Path,
    folder: str | Path,
    mode: Literal["r:", "r:gz", "r:*"] = "r:",
    wanted: Callable[[str], bool] = lambda name: True,
) -> None:
    """Unpack a tar file of folders and regular files into ``folder``.

    Python's own extraction filter is missing in some releases of Python 3.11.

    Args:
        mode: of ``tarfile.open``: ``"r:"`` uncompressed, ``"r:gz"`` compressed, or
            ``"r:*"`` either, also by bzip2 or LZMA.
        wanted: tells by its name if a member is unpacked.

    Raises:
        tarfile.TarError: the tar file is damaged, or a wanted member is a link, a
            device or has a path outside of the folder.
        EOFError: the compressed tar file is truncated.
        UserError: its content is far larger than the tar file.
    """
    root = Path(folder).resolve()
    packed, unpacked = os.path.getsize(path), 0
    with tarfile.open(path, mode) as archive:
        for member in archive:
            unpacked += member.size
            require_plausible_size(f"{path}: {member.name}", unpacked, packed)
            if not wanted(member.name):
                continue
            target = (root / member.name).resolve()
            if not target.is_relative_to(root) or not (
                member.isfile() or member.isdir()
            ):
                raise tarfile.ExtractError(
                    f"{member.name}: a link, a device or outside of the folder"
                )
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            source = archive.extractfile(member)
            assert source is not None  # a regular file has content
            with source, open(target, "wb") as stream:
                shutil.copyfileobj(source, stream)


def require_plausible_size(place: str, unpacked: int, packed: int) -> None:
    """Raise UserError if content in an archive is far larger than the archive.

    Args:
        place: archive and member, for the message.
        unpacked, packed: bytes.
    """
    if unpacked > _PLAUSIBLE_BYTES + _PLAUSIBLE_RATIO * packed:
        raise UserError(
            f"{place}: would unpack to {unpacked / 2**20:,.0f} MiB from "
            f"{packed / 2**20:,.1f} MiB; do not trust it"
        )


@contextmanager
def name_full_disk(path: Path) -> Iterator[None]:
    """Add the path to the error of a full disk, which the system leaves out.

    safetensors and torch hide it in an error of their own.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL_DISK or error.filename:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    except Exception as error:
        code = _hidden_code(error)
        if code is None:
            raise
        raise OSError(code, os.strerror(code), str(path)) from None


def _hidden_code(error: Exception) -> int | None:
    """Return the system's error number in an error of safetensors or torch."""
    if type(error).__name__ == "SafetensorError":
        found = re.search(r"os error (\d+)", str(error))
        return int(found[1]) if found else None
    cause = error.__context__  # torch fails again when it closes the file
    if isinstance(error, RuntimeError) and isinstance(cause, OSError):
        return cause.errno if cause.errno in _FULL_DISK else None
    return None
