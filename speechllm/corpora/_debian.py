"""Debian packages that contain a corpus: download and unpacking, without root.

Every package is compared with its pinned SHA-256 before it is opened.
"""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from speechllm.corpora._download import download
from speechllm.utils.errors import UserError, reason_of
from speechllm.utils.io import file_sha256, unpack_tar

MIRROR = "https://deb.debian.org/debian/pool/main"
_TIMEOUT_SECONDS = 300


class Unavailable(Exception):
    """Raised if a source does not have the packages; the next one is tried."""


class Package(NamedTuple):
    """A package for all architectures in the pinned version.

    Attributes:
        name, version: as apt-get takes them.
        sha256: of the ``.deb`` file, hexadecimal.
        source: name of the source package, whose folder on the mirror holds the file.
    """

    name: str
    version: str
    sha256: str
    source: str

    @property
    def file_name(self) -> str:
        return f"{self.name}_{self.version}_all.deb"


def fetch_packages(packages: Iterable[Package], folder: Path) -> list[Path]:
    """Download packages with apt-get, or else from Debian's mirror.

    Files that are in the folder already are used; an interrupted download from the
    mirror is resumed.

    Returns:
        The ``.deb`` files, in ``folder``.

    Raises:
        UserError: neither source has a package with its checksum.
    """
    packages = list(packages)
    missing = [p for p in packages if not (folder / p.file_name).is_file()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            apt_download(missing, folder)
        except Unavailable as reason:
            print(f"{reason}; downloading from {MIRROR}", flush=True)
    for package in packages:
        name = package.file_name
        url = f"{MIRROR}/{package.source[0]}/{package.source}/{name}"
        download(url, folder / name, sha256=package.sha256)
    return [folder / package.file_name for package in packages]


def apt_download(packages: Iterable[Package], folder: Path) -> None:
    """Download packages into a folder with apt-get, which uses the machine's mirrors.

    Raises:
        Unavailable: apt-get is not installed, has no such version, or its package has
            another checksum (a distribution that builds it again).
    """
    if not shutil.which("apt-get"):
        raise Unavailable("apt-get is not installed")
    packages = list(packages)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".apt.") as name:
        new = Path(name)
        words = [f"{package.name}={package.version}" for package in packages]
        print(f"downloading {' '.join(words)} with apt-get", flush=True)
        problem = _apt(new, ["download", *words])
        if problem:  # no package lists, as in a new container: use lists of our own
            options = _private_lists(new)
            problem = _apt(new, [*options, "update"]) or _apt(
                new, [*options, "download", *words]
            )
        if problem:
            raise Unavailable(
                f"apt-get has no {words[0]} ({problem}; if package lists are missing, "
                "run 'apt-get update' as root)"
            )
        for package in packages:
            found = file_sha256(new / package.file_name)
            if found != package.sha256:
                raise Unavailable(
                    f"apt-get's {package.file_name} has sha256 {found} instead of "
                    f"{package.sha256}"
                )
        for package in packages:
            os.replace(new / package.file_name, folder / package.file_name)


def unpack_deb(
    deb: Path, folder: Path, wanted: Callable[[str], bool] = lambda name: True
) -> None:
    """Unpack the files of a package, without running its scripts.

    Args:
        deb: the package.
        folder: files are written below it, as ``usr/share/…``.
        wanted: tells by the path, such as ``./usr/share/doc/x``, which files to write.

    Raises:
        UserError: the package is damaged.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".deb.") as name:
        data = Path(name) / "data.tar"
        try:
            with open(deb, "rb") as stream:
                for member, size in _ar_members(stream):
                    if member.startswith("data.tar"):
                        _copy(stream, data, size)
                        unpack_tar(data, folder, "r:*", wanted)
                        return
            raise tarfile.ReadError("it has no data.tar")
        except (tarfile.TarError, lzma.LZMAError, EOFError, ValueError) as error:
            raise UserError(
                f"{deb}: cannot be unpacked ({reason_of(error)}); remove it and "
                "download it again"
            ) from None


def _ar_members(stream: IO[bytes]) -> Iterator[tuple[str, int]]:
    """Yield (name, bytes) of the members of an ar file, each at its first byte.

    Raises:
        ValueError: it is not an ar file, or damaged.
    """
    if stream.read(8) != b"!<arch>\n":
        raise ValueError("not an ar file")
    while header := stream.read(60):
        if len(header) != 60 or header[58:] != b"`\n":
            raise ValueError("damaged header of a member")
        size, start = int(header[48:58]), stream.tell()
        yield header[:16].decode("ascii").rstrip(" /"), size
        stream.seek(start + size + size % 2)


def _copy(stream: IO[bytes], target: Path, size: int) -> None:
    """Copy the next bytes of a stream into a file."""
    with open(target, "wb") as output:
        while size > 0:
            chunk = stream.read(min(size, 1 << 20))
            if not chunk:
                raise EOFError("the file is truncated")
            output.write(chunk)
            size -= len(chunk)


def _private_lists(folder: Path) -> list[str]:
    """Create folders for package lists without root; return apt's options."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    state, cache = (folder / "state").resolve(), (folder / "cache").resolve()
    status = "/var/lib/dpkg/status"
    options = [f"Dir::State={state}", f"Dir::Cache={cache}"]
    options += [f"Dir::State::status={status}", "Acquire::Retries=1"]
    return [part for option in options for part in ("-o", option)]


def _apt(folder: Path, arguments: list[str]) -> str | None:
    """Run apt-get in a folder; return the error message, or None."""
    sandbox = ["-o", "APT::Sandbox::User=root"]  # user _apt has no access to the folder
    try:
        result = subprocess.run(
            ["apt-get", "-q", *sandbox, *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no response within {_TIMEOUT_SECONDS} s"
    if result.returncode == 0:
        return None
    lines = [line for line in result.stderr.splitlines() if line.startswith("E:")]
    return (lines or ["E: unknown error"])[0][2:].strip()
