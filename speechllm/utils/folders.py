"""Output folders: written all at once or file by file, without a loss for the user.

A folder with content is written only if this project made it, which its ``MARKER`` file
tells; the marker lists the files that the project wrote, and all others stay. Every
function that writes a folder uses :func:`atomic_directory` (all at once) or
:func:`claim_directory` (file by file).
"""

from __future__ import annotations

import errno
import filecmp
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from speechllm.utils.errors import UserError
from speechllm.utils.io import (
    atomic_open,
    mark_in_use,
    name_full_disk,
    previous_name,
    remove_stale_siblings,
    temporary_sibling,
)

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
        before: patterns of files that other programs of the project write into such a
            folder before it has a marker.
    """

    name: str
    signature: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    before: tuple[str, ...] = ()


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
    remove_stale_siblings(path)
    temporary = temporary_sibling(path)
    temporary.mkdir()
    handle = os.open(temporary, os.O_RDONLY)
    try:
        mark_in_use(handle)
        with name_full_disk(path):
            yield temporary
            written = _list_files(temporary)
            _make_readable(temporary, written)
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
    elif not _has_content(real, kind) or _has_signature(real, kind):
        reason = ""
    else:
        reason = "has content that this project did not write"
    if reason:
        raise UserError(
            f"{path}: {reason}, so it is not changed to a {kind.name}; name a new "
            "folder, or move the old one away"
        )


def _has_content(folder: Path, kind: FolderKind) -> bool:
    """Tell if a folder has more than logs, a lock and unfinished markers."""
    expected = ("log", ".lock", f".{MARKER}.*", *kind.before)
    return not all(
        any(fnmatchcase(name, pattern) for pattern in expected)
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
        _replace(new / name, old / name)
    _remove_outdated(old, listed.difference(written))
    write_marker(old, kind, written)


def _replace(new: Path, old: Path) -> None:
    """Move a file to ``old``; a link there stays, and the file replaces its target."""
    target = old if new.is_symlink() else Path(os.path.realpath(old))
    try:
        os.replace(new, target)
    except OSError as error:
        if error.errno != errno.EXDEV:  # the link leads to another disk
            raise
        with atomic_open(target, "wb") as stream, open(new, "rb") as content:
            shutil.copyfileobj(content, stream)


def link_folder(folder: str | Path, link: str | Path) -> None:
    """Make a link to a folder, or change it to lead there.

    Args:
        folder: the target.
        link: name of the link; a missing parent folder is created.

    Raises:
        UserError: ``link`` is a file or folder.
    """
    link = Path(link)
    if os.path.lexists(link) and not link.is_symlink():
        raise UserError(f"{link}: is not a link, so it is not replaced; move it away")
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(link)
    temporary.symlink_to(os.path.realpath(folder))
    os.replace(temporary, link)


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


def _make_readable(folder: Path, names: Iterable[str]) -> None:
    """Give files the permissions of the umask, which safetensors does not."""
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for name in names:
        path = folder / name
        if not path.is_symlink():
            path.chmod(stat.S_IMODE(path.stat().st_mode) | mode)


def _list_files(folder: Path) -> list[str]:
    """List the files and links below a folder as sorted relative paths."""
    names = []
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        names += [os.path.relpath(os.path.join(root, n), folder) for n in files + links]
    return sorted(name for name in names if name != MARKER)
