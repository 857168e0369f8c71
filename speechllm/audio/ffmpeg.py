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
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from speechllm.utils.errors import UserError

if TYPE_CHECKING:
    from av.container import InputContainer

# Decoded audio may be shorter than the header's duration by 5 % and half a second.
_MIN_DECODED_RATIO = 0.95
_MAX_MISSING_SECONDS = 0.5
#: Containers that only refer to other files or streams (FFmpeg's names).
_PLAYLISTS = {"applehttp", "concat", "dash", "hls", "imf", "rtp", "rtsp", "sap", "sdp"}
_BUFFER_BYTES = 1 << 18


def read_with_ffmpeg(
    name: str, file_format: str | None = None
) -> tuple[np.ndarray, int]:
    """Decode the first audio stream of a file.

    Args:
        name: path of the file.
        file_format: FFmpeg's name of the format; None detects it.

    Returns:
        float32 samples (frames, channels) and the sampling rate in Hz.

    Raises:
        UserError: not an audio file, damaged, truncated or without samples.
    """
    blocks = list(ffmpeg_blocks(name, file_format))
    return np.concatenate([block for block, _ in blocks]), blocks[0][1]


def ffmpeg_blocks(
    name: str, file_format: str | None = None
) -> Iterator[tuple[np.ndarray, int]]:
    """Decode the first audio stream of a file block by block.

    Yields:
        float32 samples (frames, channels) and the sampling rate in Hz.

    Raises:
        UserError: as :func:`read_with_ffmpeg`; for a damaged or truncated file after
            the last block that can be decoded.
    """
    import av

    problem, expected, count = None, None, 0
    try:
        with open_container(name, file_format) as container:
            if not container.streams.audio:
                raise UserError(f"{name}: there is no audio stream in this file")
            stream = container.streams.audio[0]
            rate = stream.rate
            if stream.duration and "mov" in container.format.name:
                expected = float(stream.duration * stream.time_base)
            resampler = av.AudioResampler(format="fltp")  # keeps rate and layout
            try:
                for frame in chain(container.decode(stream), [None]):
                    for part in resampler.resample(frame):
                        count += part.samples
                        yield part.to_ndarray().T, rate
            except av.FFmpegError as error:
                problem = error
    except (av.FFmpegError, IndexError) as error:
        raise UserError(f"{name}: not a readable audio file ({error})") from None
    seconds = count / rate if rate else 0.0
    if problem is not None:
        raise UserError(f"{name}: cut off or damaged after {seconds:.2f} s ({problem})")
    if expected and seconds < _MIN_DECODED_RATIO * expected - _MAX_MISSING_SECONDS:
        raise cut_off_error(name, expected, seconds)
    if count == 0:
        raise UserError(f"{name}: the recording has no samples")


@contextmanager
def open_container(
    name: str, file_format: str | None = None
) -> Iterator[InputContainer]:
    """Open a local file with FFmpeg, which gets no access to other files or a network.

    Args:
        name: path of the file.
        file_format: FFmpeg's name of the format; None detects it.

    Raises:
        UserError: the file is a playlist.
        av.FFmpegError: it is not a media file.
    """
    import av

    with open(name, "rb") as stream:
        try:
            container = av.open(
                _Unnamed(stream),
                format=file_format,
                metadata_errors="ignore",
                buffer_size=_BUFFER_BYTES,
                options={"protocol_whitelist": "none"},
            )
        except av.FFmpegError:
            if _is_playlist(name):
                raise _playlist_error(name) from None
            raise
        with container:
            formats = set(container.format.name.split(","))
            if _PLAYLISTS & formats or (
                not container.streams.audio and _is_playlist(name)
            ):
                raise _playlist_error(name)
            yield container


class _Unnamed:
    """A file for FFmpeg without its name, which is not to be taken as an address."""

    def __init__(self, stream: BinaryIO):
        self.read, self.seek, self.tell = stream.read, stream.seek, stream.tell
        self.name = "recording" + _suffix(str(stream.name))

    def readable(self) -> bool:
        return True


def _suffix(name: str) -> str:
    """Return the suffix of a path, by which FFmpeg knows formats without a header."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix if re.fullmatch(r"\.[a-z0-9]{1,8}", suffix) else ""


def _is_playlist(name: str) -> bool:
    with open(name, "rb") as stream:
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
