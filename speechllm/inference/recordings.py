"""Recordings given on the command line, and the files for their texts."""

from __future__ import annotations

import json
import math
import os
import select
import shutil
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from speechllm.inference.output_formats import ALL, FILE_FORMATS, LINE_FORMATS
from speechllm.utils.errors import UserError
from speechllm.utils.names import one_line, safe_file_name, utf8_name

if TYPE_CHECKING:
    import numpy as np


STANDARD_INPUT = "-"
FIFO_SECONDS = 30.0  # until the first byte of a named pipe


@dataclass(frozen=True)
class Recording:
    """A recording to transcribe.

    Attributes:
        name: in the output.
        source: for :func:`speechllm.audio.io.stream_audio`, or ``-``: standard input.
        problem: reason why it cannot be read, if that is known already.
        relative: its path below the folder that was searched.
        track: audio track to read, from 1; None: the first one with sound.
    """

    name: str
    source: str
    problem: str | None = None
    relative: str | None = None
    track: int | None = None

    def stream(self) -> Iterator[np.ndarray]:
        """Yield blocks of float32 samples ``(samples,)`` at 16 kHz.

        Raises:
            UserError: it cannot be read.
        """
        from speechllm.audio.io import stream_audio

        if self.problem is not None:
            raise UserError(self.problem)
        if self.source == STANDARD_INPUT:
            yield from stream_pipe(sys.stdin.buffer, "standard input", self.track)
            return
        mode = file_mode(self.source)
        if mode is not None and stat.S_ISFIFO(mode):
            with open_fifo(self.source) as pipe:
                yield from stream_pipe(pipe, self.source, self.track)
            return
        if problem := special_file_error(self.source, mode):
            raise UserError(problem)
        if utf8_name(self.source) != self.source:
            yield from stream_renamed(self.source, self.track)
            return
        yield from stream_audio(self.source, track=self.track)

    def expected_seconds(self) -> float | None:
        """Return the length in seconds, or None if the header does not give it."""
        from speechllm.audio.io import seconds_by_header

        if self.problem is not None or not os.path.isfile(self.source):
            return None
        try:
            seconds = seconds_by_header(self.source, estimated=True)
        except Exception:  # it is for display only; reading reports the error
            return None
        if seconds is None or not math.isfinite(seconds) or seconds <= 0:
            return None
        return seconds

    def state(self) -> str | None:
        """Return name, source, track, size and time of a file; None for a pipe."""
        if self.source == STANDARD_INPUT:
            return None
        path = self.source
        if not os.path.exists(path):  # a position in a Kaldi archive
            path = path.rpartition(":")[0]
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return json.dumps([self.name, self.source, self.track])
        if not stat.S_ISREG(status.st_mode):
            return None
        size, time = status.st_size, status.st_mtime_ns
        return json.dumps([self.name, self.source, self.track, size, time])


def find_recordings(
    inputs: Sequence[str],
    note: Callable[[str], object] | None = None,
    track: int | None = None,
) -> list[Recording]:
    """List the recordings given by command-line arguments.

    Args:
        inputs: audio files; folders, searched as by :func:`search_folder`; Kaldi
            tables ``*.scp``; ``-`` for one recording, of any format, on standard
            input.
        note: called with a message for each kind of file that is left out; by default
            it is printed on stderr.
        track: of the recordings.

    Raises:
        UserError: a folder or table has no recordings, a table is malformed, there
            are no inputs or none of them exists, or ``-`` is repeated. A missing file
            among others is not checked here; reading it raises the error.
    """
    note = note or print_note
    if inputs and all(map(is_missing, inputs)):
        from speechllm.audio.sources import check_file

        check_file(inputs[0])  # raises the error before a model is loaded
    recordings: list[Recording] = []
    for given in inputs:
        if given != STANDARD_INPUT and os.path.isdir(given):
            found, left_out = search_folder(given)
            if not found:
                reasons = "".join(f"; left out: {reason}" for reason in left_out)
                raise UserError(
                    f"{one_line(given)}: no audio file in this folder{reasons}"
                )
            for reason in left_out:
                note(f"{one_line(given)}: left out: {reason}")
        elif Path(given).suffix == ".scp":
            from speechllm.data.kaldi_table import iterate_table

            found = [Recording(name, source) for name, source in iterate_table(given)]
            if not found:
                raise UserError(f"{given}: the list is empty")
        else:
            found = [Recording(given, given)]
        recordings += found
    if not recordings:
        raise UserError("nothing to transcribe: name audio files, folders or a wav.scp")
    if sum(r.source == STANDARD_INPUT for r in recordings) > 1:
        raise UserError("standard input (-) can be read only once")
    return [replace(recording, track=track) for recording in recordings]


def is_missing(given: str) -> bool:
    """Return True for the name of a file or folder that does not exist."""
    from speechllm.audio.sources import archive_file  # imports NumPy

    return not (
        given == STANDARD_INPUT
        or os.path.exists(given)
        or Path(given).suffix == ".scp"
        or archive_file(given)
        or given.rstrip().endswith("|")
    )


def print_note(message: str) -> None:
    """Print a message on stderr, if that can be written."""
    with suppress(Exception):
        print(f"note: {message}", file=sys.stderr)


def search_folder(folder: str) -> tuple[list[Recording], list[str]]:
    """List the files of a folder and its subfolders that have an audio suffix.

    Linked folders are searched too, each once. A subfolder that cannot be read, or a
    pipe or device with an audio suffix, is listed as a recording with a ``problem``.

    Returns:
        The recordings, sorted, and one message for each kind of file left out: hidden
        ones, other suffixes, and folders that a link reaches again.
    """
    from speechllm.audio.sources import AUDIO_SUFFIXES  # imports NumPy

    found: list[Recording] = []
    hidden: list[str] = []
    repeated: list[str] = []
    others: dict[str, list[str]] = {}
    seen: set[str] = set()

    def add_unreadable(error: OSError) -> None:
        place = str(error.filename)
        problem = f"{place}: the folder cannot be read: {error.strerror}"
        found.append(Recording(place, place, problem, os.path.relpath(place, folder)))

    for place, folders, files in os.walk(
        folder, onerror=add_unreadable, followlinks=True
    ):
        real = os.path.realpath(place)
        if real in seen:
            repeated.append(place)
            folders.clear()
            continue
        seen.add(real)
        hidden += [os.path.join(place, n) for n in folders if n.startswith(".")]
        visible = [name for name in folders if not name.startswith(".")]
        folders[:] = sorted(
            visible, key=lambda name: (os.path.islink(os.path.join(place, name)), name)
        )
        for name in sorted(files):
            path = str(Path(place, name))
            suffix = Path(name).suffix.lower()
            if name.startswith("."):
                hidden.append(path)
            elif suffix not in AUDIO_SUFFIXES:
                others.setdefault(suffix, []).append(path)
            else:
                mode = file_mode(path)
                problem = special_file_error(path, mode)
                if mode is not None and stat.S_ISFIFO(mode):
                    problem = f"{path}: a named pipe; name it as an argument to read it"
                relative = os.path.relpath(path, folder)
                found.append(Recording(path, path, problem, relative))
    left_out = [
        _count(
            paths,
            f"file with the suffix {suffix}" if suffix else "file without a suffix",
            f"files with the suffix {suffix}" if suffix else "files without a suffix",
        )
        for suffix, paths in sorted(others.items())
    ]
    if hidden:
        left_out.append(_count(hidden, "hidden file or folder", "hidden entries"))
    if repeated:
        left_out.append(_count(repeated, "folder reached twice by a link"))
    return sorted(found, key=lambda r: Path(r.name)), left_out


def _count(paths: Sequence[str], one: str, several: str | None = None) -> str:
    """Return the number of the paths and the first ones."""
    kind = one if len(paths) == 1 else several or one.replace(" ", "s ", 1)
    shown = ", ".join(map(one_line, paths[:3])) + (", …" if len(paths) > 3 else "")
    return f"{len(paths)} {kind} ({shown})"


def file_mode(path: str) -> int | None:
    """Return the type and mode of a file, links followed; None if there is none."""
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError):
        return None


def special_file_error(path: str, mode: int | None) -> str | None:
    """Return the error for a device or socket; None for others."""
    if mode is None or stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    return f"{path}: this is a device or a socket, not an audio file"


def open_fifo(path: str) -> IO[bytes]:
    """Open a named pipe for reading once its writer has written something.

    Raises:
        UserError: nothing was written for ``FIFO_SECONDS``, or it cannot be opened.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    waiting = select.poll()
    waiting.register(handle, select.POLLIN)
    if not waiting.poll(1000 * FIFO_SECONDS):
        os.close(handle)
        raise UserError(
            f"{path}: nothing was written into this named pipe for {FIFO_SECONDS:g} s; "
            "start the program that writes it first"
        )
    os.set_blocking(handle, True)
    return os.fdopen(handle, "rb")


def stream_pipe(
    pipe: IO[bytes], name: str, track: int | None = None
) -> Iterator[np.ndarray]:
    """Read one recording, of any format, from a pipe."""
    from speechllm.audio.io import stream_audio

    # most formats need a seekable file
    with tempfile.NamedTemporaryFile(prefix="standard-input-") as file:
        shutil.copyfileobj(pipe, file, 1 << 20)
        file.flush()
        try:
            yield from stream_audio(file.name, track=track)
        except UserError as error:
            raise UserError(str(error).replace(file.name, name)) from None


def stream_renamed(path: str, track: int | None = None) -> Iterator[np.ndarray]:
    """Read a file whose name is not UTF-8, which libraries refuse, by a link to it."""
    from speechllm.audio.io import stream_audio

    with tempfile.TemporaryDirectory(prefix="recording-") as folder:
        link = os.path.join(folder, "recording" + utf8_name(Path(path).suffix))
        os.symlink(os.path.abspath(path), link)
        try:
            yield from stream_audio(link, track=track)
        except UserError as error:
            raise UserError(str(error).replace(link, path)) from None


def output_paths(
    recordings: Sequence[Recording], output: str | None, form: str
) -> list[dict[str, Path]] | None:
    """Return the files of each recording, by format; None if ``output`` is one file.

    Args:
        output: a folder, which may not exist yet; it gets the subfolders of the folder
            that was searched. For a single recording, and for formats of several
            recordings in one file, also a file, or None for standard output.
        form: one of ``speechllm.inference.output_formats.FORMATS``.

    Raises:
        UserError: several recordings have the same output, or a folder is needed.
    """
    is_folder = output is not None and (os.path.isdir(output) or output.endswith("/"))
    if form in LINE_FORMATS and (form not in FILE_FORMATS or not is_folder):
        return None
    if len(recordings) == 1 and form != ALL and not is_folder:
        return None
    if output is None:
        raise UserError(
            f"{form} has one file per recording: name a folder with --output"
        )
    forms = FILE_FORMATS if form == ALL else (form,)
    stems = [output_stem(recording) for recording in recordings]
    counts = Counter(stems)
    names: dict[Path, str] = {}
    paths = []
    for recording, stem in zip(recordings, stems):
        if counts[stem] > 1:  # a.wav and a.mp3
            stem = stem.with_name(Path(recording.source).name or stem.name)
        files = {
            form: Path(output) / stem.parent / safe_file_name(stem.name, f".{form}")
            for form in forms
        }
        for path in files.values():
            if path in names:
                raise UserError(
                    f"{path} would hold the texts of both {names[path]} and "
                    f"{recording.name}: give them different names in a wav.scp"
                )
            names[path] = recording.name
        paths.append(files)
    return paths


def output_stem(recording: Recording) -> Path:
    """Return the path of a recording's output below its folder, without suffix."""
    if recording.source == STANDARD_INPUT:
        return Path("standard_input")
    if recording.relative is not None:
        path = Path(recording.relative)
        return path.with_name(path.stem)
    if recording.name != recording.source:  # an utterance of a table
        return Path(safe_file_name(recording.name.replace("/", "_")))
    return Path(Path(recording.name).stem or "recording")
