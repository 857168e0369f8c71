"""Files that are either whole or not there: written beside and renamed."""

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
from typing import IO

from speechllm.utils.errors import UserError

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_open(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Open a file that takes the place of ``path`` only when it is complete.

    Args:
        path: the file to write; its folder is made when it is missing.
        mode: ``"w"`` (UTF-8, LF) or ``"wb"``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with _naming(path), open(handle, mode, **text) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def read_yaml(path: str | Path) -> dict:
    """Read a YAML file of ``name: value`` lines; an empty one has none.

    Raises:
        UserError: it is missing, damaged, or something else than a mapping.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text("utf-8")) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected options as 'name: value'")
    return content


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield an empty sibling folder that takes the place of ``path`` at the end.

    What stood at ``path`` stays until the new folder is complete.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with _naming(path):
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


def unpack_tar(path: str | Path, folder: str | Path, mode: str = "r:") -> None:
    """Unpack the folders and regular files of a tar; nothing else, nowhere else.

    Python's own filter for that is not in all releases of Python 3.11.

    Args:
        mode: of ``tarfile.open``: ``"r:"`` as it is, ``"r:gz"`` compressed.

    Raises:
        tarfile.TarError: the tar is damaged, or a member is a link, a device or would
            land outside of the folder.
        EOFError: the compressed tar is cut off.
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
            with archive.extractfile(member) as source, open(target, "wb") as stream:
                shutil.copyfileobj(source, stream)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say which file or folder a full disk refused; the system does not tell."""
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


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: str | Path, value: dict) -> None:
    """Write a JSON file, whole or not at all."""
    with atomic_open(path, "w") as stream:
        json.dump(value, stream, indent=2, ensure_ascii=False)
        stream.write("\n")
