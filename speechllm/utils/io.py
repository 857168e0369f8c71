"""Atomic file I/O, YAML, JSON, tar files and checksums.

Atomic: written to a temporary sibling and renamed, so that a file or folder is either
complete or not there.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from speechllm.utils.errors import UserError

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_open(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that replaces ``path`` once it is complete.

    Args:
        path: file to write; a missing parent folder is created.
        mode: ``"w"`` (UTF-8, LF) or ``"wb"``.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with (
            _name_full_disk(path),
            open(handle, mode, encoding=encoding, newline=newline) as stream,
        ):
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty sibling folder that replaces ``path`` once it is complete.

    An earlier folder at ``path`` stays until then.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with _name_full_disk(path):
            yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            os.rename(path, old / path.name)
            os.rename(temporary, path)
            shutil.rmtree(old)
        else:
            os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping; an empty file is an empty mapping.

    Raises:
        UserError: the file is missing, damaged, or not a mapping.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text("utf-8")) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read as YAML: {reason}") from error
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
    path: str | Path, folder: str | Path, mode: Literal["r:", "r:gz"] = "r:"
) -> None:
    """Unpack a tar file of folders and regular files into ``folder``.

    Python's own extraction filter is missing in some releases of Python 3.11.

    Args:
        mode: of ``tarfile.open``: ``"r:"`` uncompressed, ``"r:gz"`` compressed.

    Raises:
        tarfile.TarError: the tar file is damaged, or a member is a link, a device or
            has a path outside of the folder.
        EOFError: the compressed tar file is truncated.
    """
    root = Path(folder).resolve()
    with tarfile.open(path, mode) as archive:
        for member in archive:
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


@contextmanager
def _name_full_disk(path: Path) -> Iterator[None]:
    """Add the path to the error of a full disk, which the system leaves out."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL_DISK or error.filename:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
