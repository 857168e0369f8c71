"""One reader of recordings, with libsndfile, FFmpeg or kaldiio.

libsndfile reads its formats, except for MP3 and for files that it would read in part or
refuses (:mod:`speechllm.audio.containers`); FFmpeg reads the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from speechllm.audio.containers import Container, check_container
from speechllm.audio.ffmpeg import Block, cut_off_error, ffmpeg_blocks
from speechllm.audio.signal_checks import Report, measure_full_scale, scale_array
from speechllm.audio.sources import is_archive, local_file, read_archive
from speechllm.utils.errors import UserError

STREAM_SECONDS = 0.25  # of a block
_EXACT_LENGTH_FORMATS = {"WAV", "WAVEX", "RF64", "W64", "FLAC", "AIFF", "NIST"}
_RAW_SUFFIXES = (".gsm", ".vox")  # headerless formats that libsndfile knows by suffix
_RATES = range(1000, 1_000_001)  # Hz; others are damaged headers


@dataclass
class AudioReader:
    """Reader of an open recording.

    Attributes:
        path: file with the audio; None for a position in an archive.
        name: of the recording in messages.
        container: result of the checks of the file.
        report: receives messages.
        track: audio track to read, from 1; None: the first one with sound.
    """

    path: str | None
    name: str
    container: Container
    report: Report
    track: int | None = None

    @property
    def problem(self) -> UserError | None:
        """Error of a recording that is cut off."""
        reason = self.container.cut_off
        return UserError(f"{self.name}: cut off, {reason}") if reason else None

    def blocks(
        self,
        start: float = 0.0,
        end: float | None = None,
        block_seconds: float = STREAM_SECONDS,
    ) -> Iterator[Block]:
        """Yield the recording, or at least the part between two times in seconds.

        Args:
            start, end: in seconds.
            block_seconds: length of the blocks that libsndfile reads; a damaged one is
                lost as a whole, short ones take more time.

        Raises:
            UserError: it cannot be decoded; of a damaged one, after the last block.
        """
        single = self.path is None or is_g722(self.name)
        if single and self.track not in (None, 1):
            raise UserError(f"{self.name}: no audio track {self.track}; it has 1")
        if self.path is None:
            samples, rate = read_archive(self.name)
            blocks = iter([Block(scale_array(samples, self.name, self.report), rate)])
        elif is_g722(self.name):
            blocks = ffmpeg_blocks(self.path, self.name, self.report, "g722")
        elif self.track is None and (sound := open_sound(self.path)) is not None:
            blocks = self._sound_blocks(sound, start, end, block_seconds)
        else:
            blocks = ffmpeg_blocks(self.path, self.name, self.report, track=self.track)
        for block in blocks:
            if block.rate not in _RATES:
                raise UserError(
                    f"{self.name}: the header states a sampling rate of {block.rate} "
                    f"Hz, not one from {_RATES[0]} to {_RATES[-1]}"
                )
            yield block

    def _sound_blocks(
        self, sound, start: float, end: float | None, block_seconds: float
    ) -> Iterator[Block]:
        """Yield blocks of an open file of libsndfile."""
        import soundfile

        with sound:
            rate, frames = sound.samplerate, sound.frames
            scale = 1.0
            if sound.subtype in ("FLOAT", "DOUBLE"):
                scale = self._full_scale()
            first, last = 0, frames
            if sound.seekable():
                first = min(round(start * rate), frames)
            if end is not None:
                last = min(round(end * rate), frames)
            count, problem = first, None
            size = max(int(block_seconds * rate), 1)
            try:
                if first:
                    sound.seek(first)
                while count < last:
                    size = min(size, last - count)
                    samples = sound.read(size, dtype="float32", always_2d=True)
                    if not len(samples):
                        break
                    if scale != 1.0:
                        samples /= scale
                    yield Block(samples, rate, count)
                    count += len(samples)
            except soundfile.SoundFileError as error:
                problem = UserError(
                    f"{self.name}: cut off or damaged after {count / rate:.2f} s "
                    f"({error})"
                )
            if count < last and sound.format in _EXACT_LENGTH_FORMATS:
                problem = problem or cut_off_error(
                    self.name, frames / rate, count / rate
                )
            if problem is None and count == first and frames:  # a segment after the end
                yield Block(np.zeros((0, sound.channels), np.float32), rate, first)
        if problem is not None:
            raise problem
        if frames == 0:
            raise UserError(f"{self.name}: the recording has no samples")

    def _full_scale(self) -> float:
        """Return full scale of a file of floats, whose segments share it."""
        assert self.path is not None
        status = os.stat(self.path)
        scale, messages = _measure_file(
            self.path, status.st_size, status.st_mtime_ns, self.name
        )
        for message in messages:
            self.report(message)
        return scale


@contextmanager
def open_recording(
    name: str, allow_pipes: bool, report: Report, track: int | None = None
) -> Iterator[AudioReader]:
    """Yield a recording after the checks of its file.

    Raises:
        UserError: it cannot be read at all.
    """
    if is_archive(name):
        yield AudioReader(None, name, Container(), report, track)
        return
    with local_file(name, allow_pipes) as path:
        container = Container() if is_g722(name) else check_container(path)
        if container.refused is not None:
            raise UserError(f"{name}: {container.refused}")
        yield AudioReader(path, name, container, report, track)


@lru_cache(maxsize=256)
def _measure_file(
    path: str, size: int, time: int, name: str
) -> tuple[float, list[str]]:
    """Return full scale of a file of libsndfile, and messages about it.

    Args:
        path: of the file.
        size, time: of this file in bytes and nanoseconds.
        name: of the recording in messages.
    """
    import soundfile

    messages: list[str] = []
    with soundfile.SoundFile(_full_name(path)) as sound:
        blocks = sound.blocks(1 << 16, dtype="float32", always_2d=True)
        return measure_full_scale(blocks, name, messages.append), messages


def _full_name(path: str) -> bytes:
    """Return a file's absolute path: libsndfile reads standard input for ``-``."""
    return os.path.abspath(os.fsencode(path))


def open_sound(path: str):
    """Open a file with libsndfile; return None if FFmpeg has to read it."""
    import soundfile

    if check_container(path).needs_ffmpeg:
        return None
    try:
        sound = soundfile.SoundFile(_full_name(path))
    except (soundfile.SoundFileError, TypeError):  # TypeError: raw data
        return None
    if sound.format == "MP3":  # libsndfile silences frames after each seek, and
        sound.close()  # soundfile seeks after each block
        return None
    if sound.format == "RAW" and not path.lower().endswith(_RAW_SUFFIXES):
        sound.close()  # any bytes
        return None
    return sound


def is_g722(name: str) -> bool:
    return name.lower().endswith(".g722")
