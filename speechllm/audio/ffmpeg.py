"""Decode audio with FFmpeg (PyAV) where libsndfile cannot."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np

from speechllm.utils.errors import UserError


def read_with_ffmpeg(name: str, file_format: str | None = None):
    """Decode the first audio stream of a file: ((frames, channels), rate)."""
    blocks = list(ffmpeg_blocks(name, file_format))
    return np.concatenate([block for block, _ in blocks]), blocks[0][1]


def ffmpeg_blocks(
    name: str, file_format: str | None = None
) -> Iterator[tuple[np.ndarray, int]]:
    """Decode the first audio stream of a file, as :func:`_read_blocks` does."""
    import av

    problem, promised, there = None, None, 0
    try:
        with av.open(name, format=file_format, metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise UserError(f"{name}: there is no audio stream in this file")
            stream = container.streams.audio[0]
            rate = stream.rate
            if stream.duration and "mov" in container.format.name:
                promised = float(stream.duration * stream.time_base)
            resampler = av.AudioResampler(format="fltp")  # keeps rate and layout
            try:
                for frame in chain(container.decode(stream), [None]):
                    for part in resampler.resample(frame):
                        there += part.samples
                        yield part.to_ndarray().T, rate
            except av.FFmpegError as error:
                problem = error
    except (av.FFmpegError, IndexError) as error:
        raise UserError(f"{name}: not a readable audio file ({error})") from None
    seconds = there / rate if rate else 0.0
    if problem is not None:
        raise UserError(f"{name}: cut off or damaged after {seconds:.2f} s ({problem})")
    if promised and seconds < 0.95 * promised - 0.5:
        raise cut_off_error(name, promised, seconds)
    if there == 0:
        raise UserError(f"{name}: the recording holds no samples")


def cut_off_error(name: str, promised: float, there: float) -> UserError:
    return UserError(
        f"{name}: cut off, the header promises {promised:.2f} s "
        f"but only {there:.2f} s are there"
    )
