"""Atomic file I/O, YAML, JSON, tar files and checksums.

Atomic: written to a temporary sibling and renamed, so that a file or folder is either
complete or not there.

Nothing that the user has is lost. A folder with content is written only if this project
made it, which its ``MARKER`` file tells; the marker lists the files that the project
wrote, and all others stay. Every function that writes a folder uses
:func:`atomic_directory` (all at once) or :func:`claim_directory` (file by file).
"""

from __future__ import annotations

import errno
import fcntl
import filecmp
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tarfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from speechllm.utils.errors import UserError
from speechllm.utils.names import safe_file_name

MARKER = ".speechllm_output"
"""File that states the kind of a folder and lists the files written into it."""


class FolderKind(NamedTuple):
    """A kind of folder that this project writes.

    Attributes:
        name: for the marker and messages.
        signature: patterns of files that together only this project writes into such a
            folder; they identify the folders of releases before 0.3, which have no
            marker.
        files: what those releases wrote there, where it is always the same.
    """

    name: str
    signature: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PREVIOUS = ".previous"  # suffix of an earlier version that is kept
_STALE_SECONDS = 60.0
_PLAUSIBLE_BYTES, _PLAUSIBLE_RATIO = 10 * 2**20, 20  # of audio, weights and tokenizers


@contextmanager
def atomic_open(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that replaces ``path`` once it is complete.

    A link stays and its target is replaced; an existing file keeps its permissions. A
    device or named pipe is written directly.

    Args:
        path: file to write; a missing parent folder is created.
        mode: ``"w"`` (UTF-8, LF) or ``"wb"``.

    Raises:
        UserError: ``path`` is a folder.
        OSError: the disk is full or cannot be written.
    """
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")
    permissions = _mode(path)
    if permissions is not None and stat.S_ISDIR(permissions):
        raise UserError(f"{path}: is a folder; name a file")
    if permissions is not None and not stat.S_ISREG(permissions):
        with open(path, mode, encoding=encoding, newline=newline) as stream:
            yield stream
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    temporary = _temporary_name(path)
    handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with (
            name_full_disk(path),
            open(handle, mode, encoding=encoding, newline=newline) as stream,
        ):
            _lock(handle)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if permissions is not None:
            os.chmod(temporary, stat.S_IMODE(permissions))
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_directory(
    path: str | Path, kind: FolderKind, inputs: Iterable[str | Path] = ()
) -> Iterator[Path]:
    """Yield an empty folder whose files become those of ``path`` once it is complete.

    Of an earlier folder at ``path``, the files that this project wrote are replaced or
    removed, and all others stay.

    Args:
        path: folder to write; a missing parent folder is created.
        kind: of the folder.
        inputs: files and folders that the content is made from.

    Raises:
        UserError: ``path`` may not be written, see :func:`claim_directory`, or a file
            of the user has the name of a new one.
    """
    path = Path(os.path.realpath(path))
    require_output(path, kind, inputs)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    temporary = _temporary_name(path)
    temporary.mkdir()
    handle = os.open(temporary, os.O_RDONLY)
    try:
        _lock(handle)
        with name_full_disk(path):
            yield temporary
            written = _list_files(temporary)
            if path.is_dir():
                _merge(temporary, path, written, kind)
            else:
                write_marker(temporary, kind, written)
                os.rename(temporary, path)
    finally:
        os.close(handle)
        shutil.rmtree(temporary, ignore_errors=True)


def claim_directory(
    path: str | Path, kind: FolderKind, inputs: Iterable[str | Path] = ()
) -> Path:
    """Create a folder for output that is written file by file, or check an earlier one.

    Args:
        path: the folder.
        kind: of the folder.
        inputs: files and folders that the content is made from.

    Returns:
        The folder, with a marker.

    Raises:
        UserError: ``path`` is a file, is or contains an input, or has content and was
            not written by this project as this kind of folder.
    """
    path = Path(path)
    require_output(path, kind, inputs)
    path.mkdir(parents=True, exist_ok=True)
    if read_marker(path) is None:
        write_marker(path, kind, ())
    return path


def remove_directory(path: str | Path, kind: FolderKind) -> None:
    """Remove the files that this project wrote into a folder, and the empty folder.

    A folder of another kind or of the user stays as it is.
    """
    path = Path(path)
    marker = read_marker(path)
    if marker is None and _has_signature(path, kind):
        marker = Marker(kind.name, set(kind.files))
    if marker is not None and marker.kind == kind.name:
        _remove_outdated(path, marker.files)
        if not set(os.listdir(path)) - {MARKER}:
            shutil.rmtree(path)


def require_output(
    path: str | Path, kind: FolderKind, inputs: Iterable[str | Path] = ()
) -> None:
    """Raise UserError if a folder may not be written, see :func:`claim_directory`."""
    real = Path(os.path.realpath(path))
    for given in inputs:
        source = Path(os.path.realpath(given))
        if real == source or real in source.parents:
            raise UserError(
                f"{path}: is or contains the input {given}, so it is not written; name "
                "another output folder"
            )
    if not os.path.lexists(real):
        return
    if not real.is_dir():
        raise UserError(f"{path}: is a file; name a folder")
    marker = read_marker(real)
    if marker is not None:
        reason = "" if marker.kind == kind.name else f"is a {marker.kind}"
    elif not _has_content(real) or _has_signature(real, kind):
        reason = ""
    else:
        reason = "has content that this project did not write"
    if reason:
        raise UserError(
            f"{path}: {reason}, so it is not changed to a {kind.name}; name a new "
            "folder, or move the old one away"
        )


def _has_content(folder: Path) -> bool:
    """Tell if a folder has more than a launcher's logs and unfinished markers."""
    return any(
        name != "log" and not name.startswith(f".{MARKER}.")
        for name in os.listdir(folder)
    )


def _has_signature(folder: Path, kind: FolderKind) -> bool:
    """Tell if a release before 0.3 wrote a folder of this kind."""
    return bool(kind.signature) and all(
        any(folder.glob(pattern)) for pattern in kind.signature
    )


class Marker(NamedTuple):
    """Content of a marker: the kind of its folder and the files written into it."""

    kind: str
    files: set[str]


def read_marker(folder: Path) -> Marker | None:
    """Read the marker of a folder; None if there is none.

    Raises:
        UserError: it is damaged.
    """
    try:
        lines = (folder / MARKER).read_text("utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (UnicodeDecodeError, IsADirectoryError):
        lines = []
    if not lines or not lines[0].startswith("# "):
        raise UserError(f"{folder / MARKER}: damaged; move the folder away")
    return Marker(lines[0][2:], {line for line in lines[1:] if line})


def write_marker(folder: Path, kind: FolderKind, files: Iterable[str]) -> None:
    """State in a folder its kind, and which of its files this project wrote."""
    with atomic_open(folder / MARKER) as stream:
        stream.writelines(f"{line}\n" for line in (f"# {kind.name}", *files))


def _merge(new: Path, old: Path, written: list[str], kind: FolderKind) -> None:
    """Move new files into an earlier folder, and remove its files that are outdated.

    Without a marker, files that the new ones differ from are kept in a sibling folder.
    """
    marker = read_marker(old)
    if marker is None:
        _keep_different(new, old, written)
        listed = {*written, *kind.files}
    else:
        listed = marker.files
        require_own_files(old, marker, written)
    write_marker(old, kind, sorted(listed.union(written)))  # complete also after a kill
    for name in written:
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(new / name, old / name)
    _remove_outdated(old, listed.difference(written))
    write_marker(old, kind, written)


def require_own_files(folder: Path, marker: Marker, names: Iterable[str]) -> None:
    """Raise UserError if a name is that of a file that this project did not write."""
    for name in names:
        if os.path.lexists(folder / name) and name not in marker.files:
            raise UserError(
                f"{folder / name}: not written by this project, so it is not replaced; "
                "move it away"
            )


def _keep_different(new: Path, old: Path, names: Iterable[str]) -> None:
    """Move the files of ``old`` that differ from those of ``new`` to a sibling."""
    kept = previous_name(old)
    for name in names:
        one, other = new / name, old / name
        equal = other.is_file() and filecmp.cmp(one, other, shallow=False)
        if os.path.lexists(other) and not equal:
            (kept / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(other, kept / name)


def previous_name(path: Path) -> Path:
    """Return the free name under which an earlier version of a file is kept.

    It is ``<name>.previous``, or ``<name>.previous.2`` and so on.
    """
    found, number = path.with_name(safe_file_name(path.name, PREVIOUS)), 1
    while os.path.lexists(found):
        number += 1
        found = path.with_name(safe_file_name(path.name, f"{PREVIOUS}.{number}"))
    return found


def _remove_outdated(root: Path, names: Iterable[str]) -> None:
    """Remove files of a folder, and its subfolders that become empty."""
    for name in sorted(names):
        path = root / name
        inside = path.parent.resolve().is_relative_to(root.resolve())
        if not inside or (path.is_dir() and not path.is_symlink()):
            continue  # in a marker that this project did not write
        path.unlink(missing_ok=True)
        folder = path.parent
        while folder != root and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent


def _list_files(folder: Path) -> list[str]:
    """List the files and links below a folder as sorted relative paths."""
    names = []
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        names += [os.path.relpath(os.path.join(root, n), folder) for n in files + links]
    return sorted(name for name in names if name != MARKER)


def _mode(path: str | Path) -> int | None:
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None


def _temporary_name(path: Path) -> Path:
    """Return the name of a new hidden sibling, within the limit of 255 bytes."""
    head = os.fsdecode(os.fsencode(path.name)[:200])
    return path.with_name(f".{head}.{secrets.token_hex(4)}.tmp")


def _lock(handle: int) -> None:
    """Mark a temporary file or folder as in use, where the file system has locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pass


def _remove_stale(path: Path) -> None:
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
        UserError: its content is far larger than the tar file.
    """
    root = Path(folder).resolve()
    packed, unpacked = os.path.getsize(path), 0
    with tarfile.open(path, mode) as archive:
        for member in archive:
            unpacked += member.size
            require_plausible_size(f"{path}: {member.name}", unpacked, packed)
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

    safetensors hides it in an error of its own.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL_DISK or error.filename:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    except Exception as error:
        found = re.search(r"os error (\d+)", str(error))
        if type(error).__name__ != "SafetensorError" or not found:
            raise
        code = int(found[1])
        raise OSError(code, os.strerror(code), str(path)) from None
