"""Download of corpora: resumed after an interruption, checked, unpacked safely.

An unfinished download is ``<name>.part`` next to its target, with the server's version
of the file in ``<name>.part.version``. The target itself is complete and was checked.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from speechllm.utils import io
from speechllm.utils.errors import UserError, reason_of

ATTEMPTS = 6
"""Failures in a row, without a byte received between them, that end a download."""

_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 1.0, 60.0
_TIMEOUT_SECONDS = 60.0
_CHUNK_BYTES = 1 << 20
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_AGENT = "Mozilla/5.0 (compatible; speechllm)"  # some servers refuse urllib's own


class _InterruptedError(Exception):
    """Raised if a connection failed, so that the download may be resumed."""


@dataclass(frozen=True)
class _Expected:
    """What is known of a file: its size in bytes and its checksums."""

    size: int | None
    md5: str | None
    sha256: str | None

    def difference(self, path: Path) -> str | None:
        """Return how a file differs from the expectation, or None."""
        found = path.stat().st_size
        if self.size is not None and found != self.size:
            return f"{found:,} bytes instead of {self.size:,}"
        for name, wanted in (("md5", self.md5), ("sha256", self.sha256)):
            if wanted is not None:
                with open(path, "rb") as stream:
                    digest = hashlib.file_digest(stream, name).hexdigest()
                if digest != wanted.lower():
                    return f"{name} {digest} instead of {wanted.lower()}"
        return None


def download(
    url: str,
    path: str | Path,
    *,
    size: int | None = None,
    md5: str | None = None,
    sha256: str | None = None,
) -> Path:
    """Download a file unless it is there; an interrupted download is resumed.

    Args:
        url: HTTP or HTTPS address.
        path: target; a missing parent folder is created.
        size: expected number of bytes.
        md5, sha256: expected checksums, hexadecimal.

    Returns:
        ``path``, which is complete and has the expected size and checksums.

    Raises:
        UserError: the server refuses the file or cannot be reached, the file differs
            from what is expected, an existing file does, the disk is too small, or
            another process downloads the same file.
    """
    path, expected = Path(path), _Expected(size, md5, sha256)
    if path.exists():
        problem = expected.difference(path)
        if problem:
            raise UserError(
                f"{path}: {problem}; remove it to have it downloaded again from {url}"
            )
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    version = path.with_name(f"{path.name}.part.version")
    with _locked(partial) as stream, io.name_full_disk(partial):
        if path.exists():  # another process has finished it meanwhile
            return download(url, path, size=size, md5=md5, sha256=sha256)
        _receive_all(url, stream, version, expected)
        problem = expected.difference(partial)
        if problem:
            partial.unlink()
            version.unlink(missing_ok=True)
            raise UserError(
                f"{url}: the file received has {problem}, so it was removed; run the "
                "same command again, and if that fails the server has another file"
            )
        os.replace(partial, path)
        version.unlink(missing_ok=True)
    return path


def unpack_tar(archive: str | Path, folder: str | Path) -> None:
    """Unpack a tar or tar.gz file into a folder, once.

    The hidden file ``.<archive>.unpacked`` in ``folder`` records that it is done.
    Files of other content that are in ``folder`` already are not replaced.

    Raises:
        UserError: the archive is missing or damaged, one of its members would be
            written outside of ``folder``, or one differs from a file in ``folder``.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise UserError(f"{archive}: no such file; download it")
    done = folder / f".{archive.name}.unpacked"
    state = f"{archive.stat().st_size}\n"
    if done.is_file() and done.read_text("utf-8") == state:
        return
    new = folder / f".{archive.name}.new"
    shutil.rmtree(new, ignore_errors=True)  # of a killed process
    new.mkdir(parents=True)
    try:
        print(f"unpacking {archive} into {folder}", flush=True)
        io.unpack_tar(archive, new, "r:gz" if _is_gzip(archive) else "r:")
        _move_files(new, folder)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(
            f"{archive}: cannot be unpacked ({reason_of(error)}); remove it and "
            "download it again"
        ) from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
    with io.atomic_open(done) as stream:
        stream.write(state)


@contextmanager
def _locked(partial: Path) -> Iterator[IO[bytes]]:
    """Open an unfinished download to append to it; only one process may.

    Raises:
        UserError: another process downloads the file.
    """
    with open(partial, "ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{partial}: another process is downloading this file; wait for it"
            ) from None
        except OSError:  # a file system without locks
            pass
        try:
            yield stream
        finally:
            stream.flush()
            if partial.exists() and not os.path.getsize(partial):
                partial.unlink()  # the server refused, or another process finished it


def _receive_all(
    url: str, stream: IO[bytes], version: Path, expected: _Expected
) -> None:
    """Append to an unfinished file what it lacks; connections that fail are renewed."""
    failures, wait = 0, _FIRST_WAIT_SECONDS
    while True:
        before = stream.tell()
        try:
            _receive(url, stream, version, expected)
            stream.flush()
            os.fsync(stream.fileno())
            return
        except _InterruptedError as error:
            stream.flush()
            if stream.tell() > before:
                failures, wait = 0, _FIRST_WAIT_SECONDS
            failures += 1
            if failures == ATTEMPTS:
                raise UserError(
                    f"{url}: {error}; {stream.tell():,} bytes are kept, run the same "
                    "command again to resume"
                ) from None
            print(f"{url}: {error}; trying again in {wait:.0f} s", file=sys.stderr)
            time.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)


def _receive(url: str, stream: IO[bytes], version: Path, expected: _Expected) -> None:
    """Append to an unfinished file what one request brings.

    Raises:
        _InterruptedError: the connection failed before the end of the file.
        UserError: the server refuses, has a file of another size, or the disk is too
            small.
    """
    have = stream.tell()
    if have and have == expected.size:
        return
    headers = {"User-Agent": _AGENT, "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if version.is_file():  # the server starts again if its file has changed
            headers["If-Range"] = version.read_text("utf-8")
    try:
        response = _open(url, headers)
    except urllib.error.HTTPError as error:  # of status 416: nothing follows
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return
        _empty(stream)
        raise _InterruptedError("its size has changed") from None
    with response:
        if have and not _continues(response, have):
            _empty(stream)
            have = 0
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdecimal() else None
        _check_total(url, total, have, expected, Path(stream.name).parent)
        if not have:
            _write_version(version, response)
        _copy(response, stream, have, total)


def _open(url: str, headers: dict[str, str]) -> Any:
    """Request a file; return the response.

    Raises:
        urllib.error.HTTPError: of status 416, the range does not exist.
        _InterruptedError: the server cannot be reached, or not now.
        UserError: it refuses.
    """
    try:
        request = urllib.request.Request(url, headers=headers)
        return urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            raise
        reason = f"HTTP {error.code} {error.reason}"
        if error.code in _TRANSIENT:
            raise _InterruptedError(reason) from None
        raise UserError(
            f"{url}: the server refuses it with {reason}; open the address in a "
            "browser to see if it still exists"
        ) from None
    except (http.client.HTTPException, OSError) as error:
        raise _InterruptedError(_cause(error)) from None
    except ValueError as error:
        raise UserError(f"{url}: not an address ({reason_of(error)})") from None


def _cause(error: BaseException) -> str:
    """Return the cause of a failed connection."""
    inner = getattr(error, "reason", error)  # of URLError: an OSError or a text
    return str(getattr(inner, "strerror", None) or inner or type(error).__name__)


def _empty(stream: IO[bytes]) -> None:
    stream.seek(0)
    stream.truncate()


def _continues(response: Any, have: int) -> bool:
    """Tell if a response begins after the bytes that are there."""
    content_range = response.headers.get("Content-Range", "")
    return response.status == 206 and content_range.startswith(f"bytes {have}-")


def _check_total(
    url: str, total: int | None, have: int, expected: _Expected, folder: Path
) -> None:
    """Compare a file's size with the expected one and the free space."""
    if total is None:
        return
    if expected.size is not None and total != expected.size:
        raise UserError(
            f"{url}: the server's file has {total:,} bytes instead of "
            f"{expected.size:,}; it is another release"
        )
    free = shutil.disk_usage(folder).free
    if total - have > free:
        raise UserError(
            f"{folder}: {(total - have) / 1e9:.1f} GB are still to be downloaded from "
            f"{url}, and {free / 1e9:.1f} GB are free; make room or name another folder"
        )


def _write_version(version: Path, response: Any) -> None:
    """Keep the server's name for this version of a file, for ``If-Range``."""
    etag = response.headers.get("ETag", "")
    value = response.headers.get("Last-Modified") if etag[:2] in ("", "W/") else etag
    if value:
        version.write_text(value, "utf-8")
    else:
        version.unlink(missing_ok=True)


def _copy(response: Any, stream: IO[bytes], have: int, total: int | None) -> None:
    """Append a response to a file, and show size, rate and time left."""
    from tqdm import tqdm

    with tqdm(
        desc=Path(stream.name).stem,
        initial=have,
        total=total,
        unit="B",
        unit_scale=True,
        mininterval=1 if sys.stderr.isatty() else 30,
    ) as bar:
        while chunk := _read(response):
            stream.write(chunk)
            bar.update(len(chunk))
    if total is not None and stream.tell() < total:
        raise _InterruptedError(
            f"the connection ended at {stream.tell():,} of {total:,} bytes"
        )


def _read(response: Any) -> bytes:
    try:
        chunk: bytes = response.read(_CHUNK_BYTES)
    except (http.client.HTTPException, OSError) as error:
        raise _InterruptedError(_cause(error)) from None
    return chunk


def _is_gzip(archive: Path) -> bool:
    with open(archive, "rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _move_files(new: Path, folder: Path) -> None:
    """Move all files of ``new`` into ``folder``, without replacing other ones.

    Raises:
        UserError: a file of another size is there; nothing was moved.
    """
    files = [path.relative_to(new) for path in new.rglob("*") if path.is_file()]
    for name in files:
        there = folder / name
        if os.path.lexists(there) and not (
            there.is_file() and there.stat().st_size == (new / name).stat().st_size
        ):
            raise UserError(
                f"{there}: differs from the file in the archive, so it is not "
                "replaced; move it away"
            )
    for name in files:
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.rename(new / name, folder / name)
