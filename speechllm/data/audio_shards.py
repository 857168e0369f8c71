"""Shards of formatted audio: a thousand utterances each, in files or a Kaldi archive.

The audio of a shard is in ``<output>/audio/<shard>/``: one file per utterance, or with
the formats ``flac.ark`` and ``wav.ark`` one archive as ESPnet writes it. Once it is
complete, ``<output>/audio/<shard>.tsv`` records the result of each utterance, after a
fingerprint of all inputs. A shard with a valid fingerprint and all its audio is not
written again.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from speechllm.audio.io import (
    MAX_OVERSHOOT_SECONDS,
    SAMPLING_RATE,
    audio_info,
    can_seek,
    change_speed,
    cut_seconds,
    encode_audio,
    load_audio,
)
from speechllm.data.kaldi_table import Dropped
from speechllm.utils.errors import UserError, describe_error
from speechllm.utils.io import atomic_open, name_full_disk
from speechllm.utils.names import safe_file_name

AUDIO_FORMATS = ("flac", "wav", "flac.ark", "wav.ark")
RECORD = ".tsv"  # suffix of the list of a shard's results
_ARCHIVE = "audio.ark"  # in the folder of a shard
_POSITION = re.compile(r"(.+\.ark):(\d+)")
_FORMAT_VERSION = "2"  # raise it when the written samples change


@dataclass(frozen=True)
class Cut:
    """Source of an utterance.

    Attributes:
        utterance: id.
        source: recording, see :func:`~speechllm.audio.io.load_audio`.
        start, end: seconds of the recording; None for all of it.
        speed: speed factor.
    """

    utterance: str
    source: str
    start: float | None
    end: float | None
    speed: float


@dataclass(frozen=True)
class Shard:
    """The cuts of a shard, and the folder and format of its audio."""

    cuts: list[Cut]
    folder: Path
    audio_format: str
    allow_pipes: bool
    debug: bool = False
    clamp_segments: bool = False

    @property
    def record(self) -> Path:
        """File with the results, next to the folder."""
        return self.folder.with_suffix(RECORD)


class Written(NamedTuple):
    """Formatted audio of an utterance, a line of a record.

    Attributes:
        utterance: id.
        path: audio file, or position in an archive.
        samples: length.
        size: of the file, or of the entry in the archive, in bytes; None in records of
            earlier versions.
        notes: what was mended in the signal.
    """

    utterance: str
    path: str
    samples: int
    size: int | None
    notes: tuple[str, ...] = ()

    def line(self) -> str:
        """Return the line of the record."""
        size = () if self.size is None else (self.size,)
        fields = (self.utterance, self.path, self.samples, *size, *self.notes)
        return "\t".join(map(str, ("ok", *fields)))


def write_shard(shard: Shard) -> tuple[Path, list[str]]:
    """Write the audio and the record of a shard unless they are up to date and whole.

    The first line of the record is the fingerprint; the others are tab-separated:
    ``ok <utterance> <path> <samples> <bytes> [<note> …]`` or ``dropped <utterance>
    <reason> <detail>``. A note tells what was mended in the signal.

    Returns:
        The path of the record, and the audio that was recorded but missing or damaged,
        so that the shard was written again.
    """
    fingerprint = _fingerprint(shard)
    damaged: list[str] = []
    if _first_line(shard.record) == fingerprint:
        damaged = find_damaged(read_record(shard.record)[0])
        if not damaged:
            return shard.record, []
    shard.record.unlink(missing_ok=True)
    shutil.rmtree(shard.folder, ignore_errors=True)
    shard.folder.mkdir(parents=True)
    lines = [fingerprint]
    recordings = _Recordings(shard)
    caught = (UserError,) if shard.debug else (Exception,)
    with _open_writer(shard) as writer:
        for cut in shard.cuts:
            try:
                samples = change_speed(recordings.read(cut), cut.speed)
                if len(samples) == 0:
                    raise UserError(f"{cut.source}: the segment has no samples")
            except caught as error:
                detail = describe_error(error)
                lines.append(f"dropped\t{cut.utterance}\tunreadable audio\t{detail}")
                continue
            path, size = writer.write(cut.utterance, samples)
            notes = tuple(" ".join(note.split()) for note in recordings.notes)
            written = Written(cut.utterance, path, len(samples), size, notes)
            lines.append(written.line())
    with atomic_open(shard.record) as stream:
        stream.write("\n".join(lines) + "\n")
    return shard.record, damaged


def read_record(path: Path) -> tuple[list[Written], list[Dropped]]:
    """Read a record: what was written, and the failures."""
    written, failed = [], []
    with open(path, encoding="utf-8") as stream:
        next(stream)
        for line in stream:
            kind, utterance, *rest = line.rstrip("\n").split("\t")
            if kind == "ok":
                audio, samples, *notes = rest
                size = None
                if notes and notes[0].isdecimal():
                    size = int(notes.pop(0))
                entry = Written(utterance, audio, int(samples), size, tuple(notes))
                written.append(entry)
            else:
                failed.append(Dropped(utterance, "format_audio", *rest))
    return written, failed


def find_damaged(written: list[Written]) -> list[str]:
    """Return the paths of recorded audio that is missing or does not have its size.

    Of audio in a record of an earlier version, which has no sizes, the length in the
    header of the file is compared.
    """
    archives: dict[str, bool] = {}
    damaged = []
    for entry in written:
        position = _POSITION.fullmatch(entry.path)
        if position is None:
            whole = _is_whole_file(entry)
        else:
            archive = position[1]
            if archive not in archives:
                archives[archive] = _is_whole_archive(archive, written)
            whole = archives[archive]
        if not whole:
            damaged.append(entry.path)
    return damaged


def _is_whole_file(entry: Written) -> bool:
    try:
        if entry.size is not None:
            return os.stat(entry.path).st_size == entry.size
        import soundfile

        return soundfile.info(entry.path).frames == entry.samples
    except (OSError, RuntimeError):  # soundfile's errors are RuntimeErrors
        return False


def _is_whole_archive(archive: str, written: list[Written]) -> bool:
    """Tell if an archive has the recorded size and an entry at each position."""
    end = 0
    try:
        with open(archive, "rb") as stream:
            for entry in written:
                offset = int(entry.path.rpartition(":")[2])
                stream.seek(offset)
                if stream.read(5) != b"AUDIO" or entry.size is None:
                    return False
                digits = int.from_bytes(stream.read(1), "little")  # of the length
                length = int.from_bytes(stream.read(digits), "little")
                if 6 + digits + length != entry.size:
                    return False
                end = max(end, offset + entry.size)
            return os.fstat(stream.fileno()).st_size == end
    except OSError:
        return False


class _FileWriter:
    """Writer of one file per utterance."""

    def __init__(self, shard: Shard) -> None:
        self.folder = shard.folder
        self.audio_format = shard.audio_format

    def write(self, utterance: str, samples: np.ndarray) -> tuple[str, int]:
        """Write samples (samples,) at 16 kHz; return the path and its size in bytes."""
        stem = utterance.replace("%", "%25")
        path = self.folder / safe_file_name(stem, f".{self.audio_format}")
        content = encode_audio(samples, self.audio_format, SAMPLING_RATE)
        _write_file(path, content)
        return str(path), len(content)


class _ArchiveWriter:
    """Writer of a Kaldi archive, in ESPnet's layout."""

    def __init__(self, shard: Shard) -> None:
        self.path = shard.folder / _ARCHIVE
        self.options = {
            "format": shard.audio_format.partition(".")[0],
            "subtype": "PCM_16",
        }
        self.stream = open(self.path, "wb")

    def write(self, utterance: str, samples: np.ndarray) -> tuple[str, int]:
        """Write samples (samples,) at 16 kHz; return the position and size in bytes."""
        import kaldiio

        start = self.stream.tell() + len(f"{utterance} ".encode())
        audio = (SAMPLING_RATE, np.clip(samples, -1.0, 1.0))
        with name_full_disk(self.path):
            kaldiio.save_ark(
                self.stream,
                {utterance: audio},
                write_function="soundfile",
                write_kwargs=self.options,
            )
        return f"{self.path}:{start}", self.stream.tell() - start


@contextmanager
def _open_writer(shard: Shard) -> Iterator[_FileWriter | _ArchiveWriter]:
    """Yield the writer of a shard's format."""
    if not shard.audio_format.endswith(".ark"):
        yield _FileWriter(shard)
        return
    writer = _ArchiveWriter(shard)
    with name_full_disk(writer.path), writer.stream:
        yield writer


def _write_file(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:  # the error of a full disk lacks the path
        raise OSError(error.errno, error.strerror, str(path)) from None


class _Recordings:
    """Reader of cuts; caches the last recording that does not support seeking."""

    def __init__(self, shard: Shard) -> None:
        self.allow_pipes = shard.allow_pipes
        self.clamp_segments = shard.clamp_segments
        self.name: str | None = None
        self.samples = np.zeros(0, np.float32)
        self.notes: list[str] = []  # about the last cut and its recording
        self.recording_notes: list[str] = []
        self.error: Exception | None = None

    def read(self, cut: Cut) -> np.ndarray:
        """Return the samples (samples,) of a cut at 16 kHz and original speed.

        Raises:
            UserError: the audio cannot be read.
        """
        options = {"allow_pipes": self.allow_pipes}
        if cut.end is None or can_seek(cut.source):
            self.name, self.notes = None, []
            report = self.notes.append
            end = cut.end
            if self.clamp_segments and end is not None:
                end = self._clamp(cut, audio_info(cut.source).seconds)
            return load_audio(cut.source, cut.start, end, report=report, **options)
        if self.name != cut.source:
            self.name, self.error, self.recording_notes = cut.source, None, []
            options["report"] = self.recording_notes.append
            try:
                self.samples = load_audio(cut.source, **options)
            except Exception as error:  # raised for each cut of the recording
                self.error = error
        if self.error is not None:
            raise self.error
        self.notes, end = list(self.recording_notes), cut.end
        if self.clamp_segments:
            end = self._clamp(cut, len(self.samples) / SAMPLING_RATE)
        return cut_seconds(
            self.samples[:, None], SAMPLING_RATE, cut.start, end, cut.source
        )[:, 0]

    def _clamp(self, cut: Cut, seconds: float) -> float | None:
        """Return the end of a cut, or that of its recording if that is earlier."""
        if cut.end is None or not (cut.start or 0) < seconds < cut.end:
            return cut.end
        if cut.end > seconds + MAX_OVERSHOOT_SECONDS:
            self.notes.append("the segment ends after its recording and was cut there")
        return seconds


def _fingerprint(shard: Shard) -> str:
    """Hash all inputs of a shard, including size and time of its sources."""
    clamped = " clamped" if shard.clamp_segments else ""
    head = f"{_FORMAT_VERSION} {shard.audio_format}{clamped}"
    digest = hashlib.sha256(head.encode())
    states = {}
    for cut in shard.cuts:
        if cut.source not in states:
            states[cut.source] = _file_state(cut.source)
        digest.update(f"{cut} {states[cut.source]}\n".encode())
    return digest.hexdigest()


def _file_state(path: str) -> tuple[int, int] | None:
    """Return size and time of a recording's file or archive; None of a command."""
    position = _POSITION.fullmatch(path)
    try:
        status = os.stat(position[1] if position else path)
    except (OSError, ValueError):  # a pipe, or a missing file
        return None
    return status.st_size, status.st_mtime_ns


def _first_line(path: Path) -> str | None:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.readline().rstrip("\n")
    except FileNotFoundError:
        return None
