"""Shards of formatted audio: a thousand utterances each, in files or a Kaldi archive.

The audio of a shard is in ``<output>/audio/<shard>/``: one file per utterance, or with
the formats ``flac.ark`` and ``wav.ark`` one archive as ESPnet writes it. Once it is
complete, ``<output>/audio/<shard>.tsv`` records the result of each utterance, after a
fingerprint of all inputs. A shard with a valid fingerprint and all its audio is not
written again. Whole recordings that have the format already are copied byte by byte.
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
from speechllm.audio.ready import read_ready
from speechllm.audio.signal_checks import report_silence
from speechllm.audio.sources import archive_file
from speechllm.data.kaldi_table import Dropped
from speechllm.utils.errors import UserError, describe_error
from speechllm.utils.io import atomic_open, name_full_disk
from speechllm.utils.names import safe_file_name

AUDIO_FORMATS = ("flac", "wav", "flac.ark", "wav.ark")
RECORD = ".tsv"  # suffix of the list of a shard's results
_ARCHIVE = "audio.ark"  # in the folder of a shard
_POSITION = re.compile(r"(.+\.ark):(\d+)")
_FORMAT_VERSION = "2"  # raise it when earlier audio has to be written again


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

    @property
    def in_archive(self) -> bool:
        """True for a Kaldi archive, False for one file per utterance."""
        return self.audio_format.endswith(".ark")

    @property
    def encoding(self) -> str:
        """Format of each utterance: flac or wav."""
        return self.audio_format.removesuffix(".ark")


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

    Raises:
        UserError: the inputs have changed and none of them is there any more, so that
            the audio of an earlier run would be lost.
    """
    fingerprint = _fingerprint(shard)
    damaged: list[str] = []
    if _first_line(shard.record) == fingerprint:
        damaged = find_damaged(read_record(shard.record)[0])
        if not damaged:
            return shard.record, []
    if shard.record.exists():
        _require_source(shard)
    shard.record.unlink(missing_ok=True)
    shutil.rmtree(shard.folder, ignore_errors=True)
    shard.folder.mkdir(parents=True)
    lines = [fingerprint]
    recordings = _Recordings(shard)
    caught = (UserError,) if shard.debug else (Exception,)
    with _open_writer(shard) as writer:
        for cut in shard.cuts:
            try:
                content, samples = recordings.read_encoded(cut)
            except caught as error:
                detail = describe_error(error)
                lines.append(f"dropped\t{cut.utterance}\tunreadable audio\t{detail}")
                continue
            path, size = writer.write(cut.utterance, content)
            notes = tuple(" ".join(note.split()) for note in recordings.notes)
            lines.append(Written(cut.utterance, path, samples, size, notes).line())
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
        self.suffix = f".{shard.encoding}"

    def write(self, utterance: str, content: bytes) -> tuple[str, int]:
        """Write encoded audio; return the path and its size in bytes."""
        stem = utterance.replace("%", "%25")
        path = self.folder / safe_file_name(stem, self.suffix)
        _write_file(path, content)
        return str(path), len(content)


class _ArchiveWriter:
    """Writer of a Kaldi archive, in ESPnet's layout (kaldiio, ``save_ark``).

    An entry is the id, a space, ``AUDIO``, the number of bytes of the length, the
    length (little-endian), and the file.
    """

    def __init__(self, shard: Shard) -> None:
        self.path = shard.folder / _ARCHIVE
        self.stream = open(self.path, "wb")

    def write(self, utterance: str, content: bytes) -> tuple[str, int]:
        """Write encoded audio; return its position and the entry's size in bytes."""
        self.stream.write(f"{utterance} ".encode())
        start = self.stream.tell()
        digits = (len(content).bit_length() + 7) // 8
        length = len(content).to_bytes(digits, "little")
        self.stream.write(b"AUDIO" + bytes([digits]) + length + content)
        return f"{self.path}:{start}", self.stream.tell() - start


@contextmanager
def _open_writer(shard: Shard) -> Iterator[_FileWriter | _ArchiveWriter]:
    """Yield the writer of a shard's format."""
    if not shard.in_archive:
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
        self.encoding = shard.encoding
        self.allow_pipes = shard.allow_pipes
        self.clamp_segments = shard.clamp_segments
        self.name: str | None = None
        self.samples = np.zeros(0, np.float32)
        self.notes: list[str] = []  # about the last cut and its recording
        self.recording_notes: list[str] = []
        self.error: Exception | None = None

    def read_encoded(self, cut: Cut) -> tuple[bytes, int]:
        """Return a cut as the content of a file, and its number of samples.

        Raises:
            UserError: the audio cannot be read.
        """
        if cut.start is None and cut.end is None and cut.speed == 1:
            ready = read_ready(cut.source, self.encoding)
            if ready is not None:
                content, samples = ready
                self.name, self.notes = None, []
                peak = max(int(samples.max()), -int(samples.min()))
                report_silence(peak / 2**15, cut.source, self.notes.append)
                return content, len(samples)
        samples = change_speed(self.read(cut), cut.speed)
        if len(samples) == 0:
            raise UserError(f"{cut.source}: the segment has no samples")
        return encode_audio(samples, self.encoding, SAMPLING_RATE), len(samples)

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
    try:
        status = os.stat(archive_file(path) or path)
    except (OSError, ValueError):  # a pipe, or a missing file
        return None
    return status.st_size, status.st_mtime_ns


def _require_source(shard: Shard) -> None:
    """Raise UserError if the recordings are files and none of them exists."""
    sources = {cut.source for cut in shard.cuts}
    commands = any(source.rstrip().endswith("|") for source in sources)
    if not commands and all(_file_state(source) is None for source in sources):
        raise UserError(
            f"{min(sources)}: does not exist any more, nor does any recording of "
            f"{shard.record}; restore them, or remove that file to give up their "
            "formatted audio"
        )


def _first_line(path: Path) -> str | None:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.readline().rstrip("\n")
    except FileNotFoundError:
        return None
