"""Recordings by name: local files, archives and, if allowed, piped commands.

All are read in the same way: the output of a command, and a file within a tar file,
are written to a temporary file. ``x.tar:512+900`` is the file of 900 bytes at byte 512
of an uncompressed tar file, ``x.tar:512+900,2048+700`` the recording of two such files
in sequence, in a format whose files can be joined, such as FLAC.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

import numpy as np

from speechllm.utils.errors import UserError

PIPE_SECONDS = 300.0  # without any output, after which a command is ended
#: Suffixes of files in folders, of formats that libsndfile or FFmpeg reads.
AUDIO_SUFFIXES = frozenset(
    ".wav .wave .bwf .flac .mp3 .mp2 .mpa .m2a .m4a .m4b .m4r .aac .adts .ogg .oga "
    ".ogx .opus .spx .aif .aiff .aifc .au .snd .sph .nist .w64 .rf64 .caf .voc .gsm "
    ".sln .g722 .g729 .amr .awb .wma .asf .ape .wv .tta .tak .mpc .mka .weba .ra .rm "
    ".ac3 .eac3 .ec3 .dts .dss .dsf .qcp .ircam .sf .avr .paf .pvf .shn .3ga "
    ".mp4 .m4v .mov .qt .mkv .webm .avi .wmv .flv .f4v .mpg .mpeg .mpe .vob .ts .mts "
    ".m2ts .3gp .3g2 .3gpp .ogv .ogm .mxf .dv .rmvb".split()
)
_ARCHIVE = re.compile(r"^(?P<path>.+\.ark):(?P<offset>\d+)$")
_MEMBERS = re.compile(r"^(?P<path>.+\.tar):(?P<spans>\d+\+\d+(,\d+\+\d+)*)$")


def is_archive(name: str) -> bool:
    """Return True for a position in a Kaldi archive, ``x.ark:123``."""
    return bool(_ARCHIVE.match(name)) and not os.path.exists(name)


def archive_file(name: str) -> str | None:
    """Return the path of the archive that a position is in; None for other names."""
    match = _ARCHIVE.match(name) or _MEMBERS.match(name)
    return match["path"] if match and not os.path.exists(name) else None


def read_content(name: str) -> bytes | None:
    """Return the content of a file, or of one file within a tar file.

    Returns:
        None for other recordings (commands, positions in Kaldi archives, several files
        in sequence) and for those that cannot be read.
    """
    match = _MEMBERS.match(name)
    offset, size = 0, -1
    if match and not os.path.exists(name):
        if "," in match["spans"]:
            return None
        name = match["path"]
        offset, size = map(int, match["spans"].split("+"))
    if not os.path.isfile(name):
        return None
    try:
        with open(name, "rb") as stream:
            stream.seek(offset)
            content = stream.read(size)
    except OSError:
        return None
    return content if len(content) == size or size < 0 else None


@contextmanager
def local_file(name: str, allow_pipes: bool = False) -> Iterator[str]:
    """Yield the path of a recording: a file, part of a tar file, output of a command.

    Args:
        name: path, position in a tar file, or a shell command that ends with ``|``.
        allow_pipes: run commands.

    Raises:
        UserError: it is not a readable local file, or the command is not allowed, fails
            or hangs.
    """
    match = _MEMBERS.match(name)
    if match and not os.path.exists(name):
        check_file(match["path"])
        with tempfile.NamedTemporaryFile(prefix="recording-") as file:
            _copy_members(name, match["path"], match["spans"], file)
            yield file.name
        return
    if not name.rstrip().endswith("|"):
        check_file(name)
        yield name
        return
    if not allow_pipes:
        raise UserError(
            f"{name}: this is a command, not a file; commands in wav.scp are run "
            "only when pipes are allowed"
        )
    with tempfile.NamedTemporaryFile(prefix="recording-") as file:
        _run_command(name, file)
        yield file.name


def check_file(path: str) -> None:
    """Raise UserError unless a path is a readable file that is not empty."""
    if not os.path.exists(path):
        if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", path):
            raise UserError(
                f"{path}: an address; recordings are local files, download it first"
            )
        raise UserError(f"{path}: the audio file does not exist")
    if os.path.isdir(path):
        raise UserError(f"{path}: this is a folder, not an audio file")
    if not os.path.isfile(path):
        raise UserError(f"{path}: a pipe or device, not an audio file; write a file")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: no permission to read the audio file")
    if os.path.getsize(path) == 0:
        raise UserError(f"{path}: the audio file is empty (0 bytes)")


def read_archive(name: str) -> tuple[np.ndarray, int]:
    """Read a recording of a Kaldi archive.

    Returns:
        Samples (frames, channels), integers or floats, and the rate in Hz.

    Raises:
        UserError: the archive is missing, damaged, pickled or contains no audio.
    """
    match = _ARCHIVE.match(name)
    assert match is not None
    path, offset = match["path"], int(match["offset"])
    check_file(path)
    with open(path, "rb") as stream:
        stream.seek(offset)
        head = stream.read(3)
    if head == b"PKL":  # unpickling runs code from the archive
        raise UserError(f"{name}: pickled archives are refused; write audio archives")
    import kaldiio

    try:
        loaded = kaldiio.load_mat(name)
    # kaldiio raises many classes on damaged input, some of its own
    except Exception as error:
        raise UserError(f"{name}: not a readable Kaldi archive ({error})") from None
    if not isinstance(loaded, tuple):
        raise UserError(f"{name}: the archive contains a matrix, not audio")
    rate, samples = loaded if isinstance(loaded[0], int) else loaded[::-1]
    samples = np.asarray(samples)
    return samples.reshape(len(samples), -1), int(rate)


def _copy_members(name: str, path: str, spans: str, file: IO[bytes]) -> None:
    """Copy byte ranges of a tar file to a file, one after the other.

    Raises:
        UserError: the tar file ends before them.
    """
    with open(path, "rb") as archive:
        for span in spans.split(","):
            offset, size = map(int, span.split("+"))
            archive.seek(offset)
            content = archive.read(size) if offset + size <= _size(archive) else b""
            if not content:
                raise UserError(
                    f"{name}: not in the tar file, which has {_size(archive):,} bytes; "
                    "prepare the corpus again"
                )
            file.write(content)
    file.flush()


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def _run_command(name: str, file: IO[bytes]) -> None:
    """Run a shell command that ends with ``|`` and write its output to a file."""
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            name.rstrip()[:-1],
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=messages,
            start_new_session=True,
        )
        try:
            _copy_output(process, file, name)
            status = process.wait(PIPE_SECONDS)
        except subprocess.TimeoutExpired:
            raise _hanging(name) from None
        finally:
            if process.poll() is None:  # its children too
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            assert process.stdout is not None
            process.stdout.close()
        file.flush()
        if status != 0 or os.path.getsize(file.name) == 0:
            messages.seek(0)
            last = messages.read().decode("utf-8", "replace").strip().splitlines()[-1:]
            raise UserError(
                f"{name}: the command failed with status {status}"
                + (f": {last[0]}" if last else " and printed nothing")
            )


def _copy_output(process: subprocess.Popen, file: IO[bytes], name: str) -> None:
    """Copy the output of a process until it ends.

    Raises:
        UserError: there was no output for ``PIPE_SECONDS``.
    """
    assert process.stdout is not None
    handle = process.stdout.fileno()
    waiting = select.poll()  # takes any number of open files, unlike select
    waiting.register(handle, select.POLLIN | select.POLLHUP)
    while True:
        if not waiting.poll(1000 * PIPE_SECONDS):
            raise _hanging(name)
        content = os.read(handle, 1 << 20)
        if not content:
            return
        file.write(content)


def _hanging(name: str) -> UserError:
    return UserError(
        f"{name}: the command printed nothing for {PIPE_SECONDS:g} s and was ended"
    )
