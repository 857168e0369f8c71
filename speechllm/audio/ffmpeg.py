"""Audio decoding with FFmpeg, through PyAV, for formats that libsndfile lacks.

These are AAC in ``m4a`` and video containers, raw G.722 and all other formats of the
FFmpeg build that PyAV ships (https://github.com/PyAV-Org/PyAV).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np

from speechllm.utils.errors import UserError

# Decoded audio may be shorter than the header's duration by 5 % and half a second.
_MIN_DECODED_RATIO = 0.95
_MAX_MISSING_SECONDS = 0.5


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
        with av.open(name, format=file_format, metadata_errors="ignore") as container:
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


def cut_off_error(name: str, expected: float, found: float) -> UserError:
    """Return the error for a recording shorter than its header states, in seconds."""
    return UserError(
        f"{name}: cut off, the header states {expected:.2f} s "
        f"but the file has only {found:.2f} s"
    )
