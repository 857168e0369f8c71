"""Audio decoding with FFmpeg, through PyAV, for formats that libsndfile lacks.

These are AAC in ``m4a`` and video containers, raw G.722 and all other formats of the
FFmpeg build that PyAV ships (https://github.com/PyAV-Org/PyAV).

FFmpeg gets an open file, never a name, and may open nothing else: a name or a playlist
could point to a server or to other files of this machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from speechllm.audio.signal_checks import SILENT, Report, measure_full_scale
from speechllm.utils.errors import UserError

if TYPE_CHECKING:
    from av import AudioFrame, AudioStream
    from av.container import InputContainer

# Decoded audio may be shorter than the header's duration by 5 % and half a second.
_MIN_DECODED_RATIO = 0.95
_MAX_MISSING_SECONDS = 0.5
#: Formats whose header states the length exactly (FFmpeg's names).
_EXACT_FORMATS = {"wv", "tta", "ape", "tak", "mpc", "mpc8"}
#: Containers whose time stamps tell when a frame is played.
_TIMED_FORMATS = {
    "matroska",
    "mov",
    "mpegts",
    "mpeg",
    "flv",
    "avi",
    "asf",
    "ogg",
    "mxf",
}
_MIN_GAP_SECONDS = 0.1  # less is the rounding of time stamps
_MAX_OVERLAP_SECONDS = 1.0
_MAX_GAP_SECONDS = 4 * 3600.0
_TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN")
_FLOAT_CODECS = ("pcm_f", "wavpack")
#: Containers that only refer to other files or streams (FFmpeg's names).
_PLAYLISTS = {"applehttp", "concat", "dash", "hls", "imf", "rtp", "rtsp", "sap", "sdp"}
_BUFFER_BYTES = 1 << 18


class Block(NamedTuple):
    """Consecutive samples of a recording.

    Attributes:
        samples: float32 (frames, channels).
        rate: in Hz.
        first: index of the first frame in the recording.
    """

    samples: np.ndarray
    rate: int
    first: int = 0


def ffmpeg_blocks(
    path: str,
    name: str,
    report: Report,
    file_format: str | None = None,
    track: int | None = None,
) -> Iterator[Block]:
    """Decode an audio track block by block, at its place in time.

    It is the first track, unless that one is silent and another one is not. Sound that
    begins later than the picture, and gaps, are filled with zeros, as the time stamps
    of the container tell. Rate and number of channels may change from block to block.

    Args:
        path: of the file.
        name: of the recording in messages.
        report: receives a message about a silent first track.
        file_format: FFmpeg's name of the format; None detects it.
        track: number of the audio track, from 1; None: as above.

    Raises:
        UserError: not an audio file, without the track, or without samples; for a
            damaged file after the last block that can be decoded.
    """
    import av

    count, seconds, rate = 0, 0.0, 0
    problem, expected = None, None
    try:
        chosen = _choose_track(path, name, report, file_format, track)
        with open_container(path, file_format, name) as container:
            stream = container.streams.audio[chosen]
            container_format = set(container.format.name.split(","))
            clock = _Clock(container, name, report)
            if stream.duration and container_format & _EXACT_FORMATS:
                expected = float(stream.duration * stream.time_base)
            scale = 1.0
            if stream.codec_context.name.startswith(_FLOAT_CODECS):
                scale = measure_full_scale(
                    _decode_again(path, name, chosen, file_format), name, report
                )
            try:
                for frame in _frames(container, stream):
                    samples, rate = _to_samples(frame), frame.sample_rate
                    if scale != 1.0:
                        samples /= scale
                    for gap in clock.gaps(frame, samples.shape[1]):
                        yield Block(gap, rate)
                    count += len(samples)
                    seconds += len(samples) / rate
                    yield Block(samples, rate)
            except av.FFmpegError as error:
                problem = error
    except _decoder_errors() as error:
        raise UserError(f"{name}: not a readable audio file ({error})") from None
    if problem is not None:
        raise UserError(f"{name}: cut off or damaged after {seconds:.2f} s ({problem})")
    if expected and seconds < _MIN_DECODED_RATIO * expected - _MAX_MISSING_SECONDS:
        raise cut_off_error(name, expected, seconds)
    if count == 0:
        raise UserError(f"{name}: the recording has no samples")


def pipe_blocks(pipe: BinaryIO, name: str) -> Iterator[Block]:
    """Decode the first audio track of a pipe as it arrives.

    Args:
        pipe: without a buffer, whose ``read`` returns what has arrived.
        name: of the recording in messages.

    Raises:
        UserError: it is not audio, a playlist, or damaged.
    """
    import av

    # short probes and buffers, for a short delay
    options = {"probesize": "32768", "analyzeduration": "500000"}
    try:
        with av.open(
            _Pipe(pipe),
            metadata_errors="ignore",
            buffer_size=4096,
            options={"protocol_whitelist": "none", **options},
        ) as container:
            if _PLAYLISTS & set(container.format.name.split(",")):
                raise _playlist_error(name)
            if not container.streams.audio:
                raise UserError(f"{name}: there is no audio stream")
            for frame in _frames(container, container.streams.audio[0]):
                yield Block(_to_samples(frame), frame.sample_rate)
    except _decoder_errors() as error:
        raise UserError(
            f"{name}: not a container that FFmpeg reads, or damaged ({error}); samples "
            "without a header need --stream raw"
        ) from None


class _Pipe:
    """A pipe for FFmpeg, without a name and without positions."""

    name = "recording"

    def __init__(self, pipe: BinaryIO):
        self.read = pipe.read

    def readable(self) -> bool:
        return True


class _Clock:
    """Place of the decoded frames in time, by the time stamps of the container."""

    def __init__(self, container: InputContainer, name: str, report: Report):
        self.name, self.report = name, report
        self.timed = bool(_TIMED_FORMATS & set(container.format.name.split(",")))
        self.origin: float | None = None  # time stamp of the recording's beginning
        if container.start_time is not None:
            self.origin = container.start_time / 1e6
        self.end = 0.0  # of the frames so far, in seconds

    def gaps(self, frame: AudioFrame, channels: int) -> Iterator[np.ndarray]:
        """Yield the zeros (frames, channels) that are missing before a frame."""
        rate = frame.sample_rate
        if self.timed and frame.time is not None:
            if self.origin is None:
                self.origin = frame.time
            gap = frame.time - self.origin - self.end
            if gap > _MAX_GAP_SECONDS:
                self.report(
                    f"{self.name}: the time stamps jump by {gap:.0f} s at "
                    f"{self.end:.2f} s; the sound is read without this gap"
                )
            if gap > _MAX_GAP_SECONDS or gap < -_MAX_OVERLAP_SECONDS:
                self.origin += gap  # another clock, as in joined files
            elif gap > _MIN_GAP_SECONDS:
                missing = round(gap * rate)
                self.end += missing / rate
                for first in range(0, missing, rate):
                    yield np.zeros((min(rate, missing - first), channels), np.float32)
        self.end += frame.samples / rate


def _choose_track(
    path: str, name: str, report: Report, file_format: str | None, number: int | None
) -> int:
    """Return the index of an audio track: the given one, or the first with sound.

    Args:
        number: of the track, from 1; None: the first with sound, or else the first.

    Raises:
        UserError: there is no audio track, not the given one, or none that FFmpeg can
            decode.
    """
    with open_container(path, file_format, name) as container:
        streams = container.streams.audio
        tracks = [
            index
            for index, stream in enumerate(streams)
            if stream.codec_context is not None
        ]
        if not streams:
            raise UserError(f"{name}: there is no audio stream in this file")
        if number is not None and number > len(streams):
            raise UserError(f"{name}: no audio track {number}; it has {len(streams)}")
    if not tracks:
        raise UserError(
            f"{name}: no decoder for the codec of this file; convert it to WAV or FLAC"
        )
    if number is not None and number - 1 in tracks:
        return number - 1
    if number is not None:
        raise UserError(f"{name}: no decoder for the codec of audio track {number}")
    if len(tracks) == 1:
        return tracks[0]
    for track in tracks:
        blocks = _decode_again(path, name, track, file_format)
        if any(len(block) and np.abs(block).max() > SILENT for block in blocks):
            if track != tracks[0]:
                report(
                    f"{name}: the first audio track is silent; track {track + 1} is "
                    "read"
                )
            return track
    return tracks[0]


def _decode_again(
    path: str, name: str, track: int, file_format: str | None
) -> Iterator[np.ndarray]:
    """Yield the samples (frames, channels) of a track, up to the first damage."""
    import av

    with open_container(path, file_format, name) as container:
        try:
            for frame in _frames(container, container.streams.audio[track]):
                yield _to_samples(frame)
        except av.FFmpegError:
            return


def _frames(container: InputContainer, stream: AudioStream) -> Iterator[AudioFrame]:
    """Decode the frames of a stream; skip tags between the parts of a joined file."""
    import av

    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.InvalidDataError:
            if not bytes(packet).startswith(_TAGS):
                raise


def _to_samples(frame: AudioFrame) -> np.ndarray:
    """Return the samples of a frame as float32 (frames, channels) in [-1, 1]."""
    samples = frame.to_ndarray()  # planar (channels, frames), or packed (1, …)
    if frame.format.is_planar:
        samples = samples.T
    else:
        samples = samples.reshape(frame.samples, -1)
    if samples.dtype.kind in "iu":
        middle = 2.0 ** (8 * samples.dtype.itemsize - 1)
        zero = middle if samples.dtype.kind == "u" else 0.0
        return ((samples - zero) / middle).astype(np.float32)
    return samples.astype(np.float32)


def _decoder_errors() -> tuple[type[Exception], ...]:
    """Return the classes of errors that PyAV raises for unreadable files."""
    import av

    return (av.FFmpegError, IndexError, ValueError, OverflowError)


@contextmanager
def open_container(
    path: str, file_format: str | None = None, name: str | None = None
) -> Iterator[InputContainer]:
    """Open a local file with FFmpeg, which gets no access to other files or a network.

    Args:
        path: of the file.
        file_format: FFmpeg's name of the format; None detects it.
        name: of the recording in messages; None: the path.

    Raises:
        UserError: the file is a playlist.
        av.FFmpegError: it is not a media file.
    """
    import av

    with open(path, "rb") as stream:
        try:
            container = av.open(
                _Unnamed(stream),
                format=file_format,
                metadata_errors="ignore",
                buffer_size=_BUFFER_BYTES,
                options={"protocol_whitelist": "none"},
            )
        except av.FFmpegError:
            if _is_playlist(path):
                raise _playlist_error(name or path) from None
            raise
        with container:
            formats = set(container.format.name.split(","))
            if _PLAYLISTS & formats or (
                not container.streams.audio and _is_playlist(path)
            ):
                raise _playlist_error(name or path)
            yield container


def has_length(container: InputContainer) -> bool:
    """Return whether a file's header or time stamps tell its length.

    That of others FFmpeg estimates by the bit rate of the first frames.
    """
    formats = set(container.format.name.split(","))
    return bool(formats & (_TIMED_FORMATS | _EXACT_FORMATS))


def stated_seconds(path: str) -> float:
    """Return the length that a media file states, without decoding it.

    Raises:
        UserError: it is not a media file, or states no length.
    """
    with suppress(*_decoder_errors()), open_container(path) as container:
        if container.streams.audio and container.duration:
            return container.duration / 1e6  # FFmpeg counts microseconds
    raise UserError(f"{path}: not a media file, or one that states no length")


class _Unnamed:
    """A file for FFmpeg without its name, which is not to be taken as an address."""

    def __init__(self, stream: BinaryIO):
        self.stream, self.read, self.tell = stream, stream.read, stream.tell
        self.name = "recording" + _suffix(str(stream.name))

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Return the new position, or -1 before the beginning of the file.

        PyAV prints the traceback of an exception.
        """
        try:
            return self.stream.seek(offset, whence)
        except (OSError, ValueError):
            return -1


def _suffix(name: str) -> str:
    """Return the suffix of a path, by which FFmpeg knows formats without a header."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix if re.fullmatch(r"\.[a-z0-9]{1,8}", suffix) else ""


def _is_playlist(path: str) -> bool:
    with open(path, "rb") as stream:
        head = stream.read(512).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return head.startswith(
        (b"#extm3u", b"ffconcat", b"v=0", b"[playlist]", b"rtsp://", b"http")
    ) or (b"<mpd" in head or b"<asx" in head)


def _playlist_error(name: str) -> UserError:
    return UserError(
        f"{name}: a playlist, not a recording; name the recordings themselves"
    )


def cut_off_error(name: str, expected: float, found: float) -> UserError:
    """Return the error for a recording shorter than its header states, in seconds."""
    return UserError(
        f"{name}: cut off, the header states {expected:.2f} s "
        f"but the file has only {found:.2f} s"
    )
