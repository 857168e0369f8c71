"""Audio files of any common format as mono float32 samples.

libsndfile reads its formats (wav, flac, ogg, NIST sphere, …) and can seek to a segment;
FFmpeg (:mod:`speechllm.audio.ffmpeg`) reads the others (mp3, m4a, raw G.722, video
containers); kaldiio reads Kaldi archives (``x.ark:123``). Every defect of a recording
is a :class:`~speechllm.utils.errors.UserError` that names it; what is mended
(:mod:`speechllm.audio.signal_checks`) is reported.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby
from pathlib import Path

import numpy as np

from speechllm.audio.containers import seconds_by_frames
from speechllm.audio.ffmpeg import Block, ffmpeg_blocks, has_length, open_container
from speechllm.audio.reader import is_g722, open_recording, open_sound
from speechllm.audio.signal_checks import (
    ChannelMixer,
    Report,
    as_array,
    report_silence,
    scale_array,
)
from speechllm.audio.sources import check_file, is_archive, read_archive
from speechllm.utils.errors import UserError

SAMPLING_RATE = 16000  # Hz, of all models and of formatted audio
MAX_OVERSHOOT_SECONDS = 0.5  # as Kaldi's extract-segments: clip below, reject above
_BLOCK_SECONDS = 10.0  # of stream_audio
_LOADED_SECONDS = 60.0  # read at once by load_audio
_G722_SAMPLES_PER_BYTE = 2  # ITU-T G.722 at 64 kbit/s, sampled at 16 kHz

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AudioInfo:
    """Properties of a recording.

    Attributes:
        seconds: length.
        rate: sampling rate in Hz.
        channels: number of channels.
    """

    seconds: float
    rate: int
    channels: int


def load_audio(
    source: str | Path,
    start: float | None = None,
    end: float | None = None,
    sampling_rate: int = SAMPLING_RATE,
    allow_pipes: bool = False,
    channel: int | None = None,
    report: Report = logger.warning,
) -> np.ndarray:
    """Read a recording or a segment of it.

    Args:
        source: path, position in a Kaldi archive ``x.ark:123`` or tar file
            ``x.tar:512+900``, or, with ``allow_pipes``, a shell command that ends with
            ``|`` and prints audio.
        start, end: seconds; ``None`` is the start or the end of the recording. An end
            up to half a second after the recording is clipped.
        sampling_rate: of the result, in Hz.
        allow_pipes: run commands in ``source``. Only for trusted lists.
        channel: 0-based channel to read; ``None`` averages all channels, or reads the
            louder one where they cancel each other.
        report: called with a message if the signal is mended or silent
            (:mod:`speechllm.audio.signal_checks`); logs a warning by default.

    Returns:
        float32 samples in [-1, 1], shape (samples,), never empty, all finite.

    Raises:
        UserError: the recording is missing, empty, truncated, not audio, has NaN or
            infinite samples, or ends before ``start`` or ``end``.
    """
    name = str(source)
    _check_rate(sampling_rate)
    start = _seconds(name, start) or 0.0
    end = _seconds(name, end)
    if start < 0 or (end is not None and end <= start):
        raise UserError(f"{name}: the segment {start:g}–{end} s is empty or negative")
    with open_recording(name, allow_pipes, report) as recording:
        if recording.problem is not None:
            raise recording.problem
        blocks = list(recording.blocks(start, end, _LOADED_SECONDS))
    parts = []  # samples (frames, channels) of one format each
    for (rate, _), part in groupby(blocks, _format):
        parts.append((np.concatenate([block.samples for block in part]), rate))
    if len(parts) == 1:
        samples, rate = parts[0]
        first = blocks[0].first
        samples = cut_seconds(samples, rate, start, end, name, first / rate)
        mono = _to_mono(samples, rate, name, channel, report)
        mono = resample(mono, rate, sampling_rate)
    else:
        joined = [
            resample(_to_mono(part, rate, name, channel, report), rate, sampling_rate)
            for part, rate in parts
        ]
        whole = np.concatenate(joined)[:, None]
        mono = cut_seconds(whole, sampling_rate, start, end, name)[:, 0]
    report_silence(float(np.abs(mono).max(initial=0.0)), name, report)
    return mono


def stream_audio(
    source: str | Path,
    sampling_rate: int = SAMPLING_RATE,
    report: Report = logger.warning,
    track: int | None = None,
) -> Iterator[np.ndarray]:
    """Read a recording of any length block by block, in bounded memory.

    Args:
        source: path, or Kaldi archive position ``x.ark:123`` (read at once).
        sampling_rate: of the result, in Hz.
        report: as for :func:`load_audio`.
        track: audio track of a file with several, from 1; None: the first with sound.

    Yields:
        float32 samples in [-1, 1], shape (samples,), the mean of all channels; about
        10 s each. Concatenated they equal the result of :func:`load_audio`.

    Raises:
        UserError: as :func:`load_audio`; for a truncated or damaged recording after
            all samples that can be read.
    """
    name = str(source)
    _check_rate(sampling_rate)
    with open_recording(name, False, report, track) as recording:
        problem, held, count, peak = None, [], 0, 0.0
        parts = _mono_parts(recording.blocks(), name, sampling_rate, report)
        while problem is None:
            try:
                held.append(next(parts))
            except StopIteration:
                break
            except UserError as error:
                problem = error
                break
            count += len(held[-1])
            peak = max(peak, float(np.abs(held[-1]).max(initial=0.0)))
            if count >= _BLOCK_SECONDS * sampling_rate:
                yield np.concatenate(held)
                held, count = [], 0
        if count:
            yield np.concatenate(held)
        problem = recording.problem or problem
        if problem is not None:
            raise problem
        report_silence(peak, name, report)


def _mono_parts(
    blocks: Iterator[Block], name: str, sampling_rate: int, report: Report
) -> Iterator[np.ndarray]:
    """Yield blocks as mono samples at another rate; rate and channels may change.

    Raises:
        UserError: of ``blocks`` after all samples before it; a sample is not finite.
    """
    current, mixer, resampler, problem = None, None, None, None

    def convert(monos: list[np.ndarray], last: bool) -> Iterator[np.ndarray]:
        for mono in monos:
            mono = check_samples(mono, name)
            yield mono if resampler is None else resampler.resample_chunk(mono)
        if last and resampler is not None:
            yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)

    while problem is None:
        try:
            block = next(blocks)
        except StopIteration:
            break
        except UserError as error:
            problem = error
            break
        if _format(block) != current:
            if mixer is not None:
                yield from convert(mixer.flush(), last=True)
            current = _format(block)
            mixer, resampler = ChannelMixer(block.rate, name, report), None
            if block.rate != sampling_rate:
                import soxr

                resampler = soxr.ResampleStream(
                    block.rate, sampling_rate, 1, dtype="float32"
                )
        yield from convert(mixer.push(block.samples), last=False)
    if mixer is not None:
        yield from convert(mixer.flush(), last=True)
    if problem is not None:
        raise problem


def check_waveform(
    audio: str | Path | np.ndarray, report: Report = logger.warning
) -> np.ndarray:
    """Read a file at 16 kHz, or check an array of samples.

    Integers are scaled by their range, and floats far above 1, in the scale of int16,
    by 32768.

    Args:
        audio: path, or samples at 16 kHz as an array or a tensor (samples,).
        report: as for :func:`load_audio`.

    Returns:
        float32 samples (samples,) in [-1, 1], finite, not empty.

    Raises:
        UserError: the file cannot be read, or the array is empty, has another number
            of dimensions, NaN or infinite samples, or an unknown scale.
    """
    if isinstance(audio, (str, Path)):
        return load_audio(audio, sampling_rate=SAMPLING_RATE, report=report)
    array = as_array(audio)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise UserError(
            f"an array of shape {array.shape}: expected finite samples (samples,) at "
            "16 kHz, not empty"
        )
    return np.ascontiguousarray(scale_array(array, "an array", report))


def audio_info(source: str | Path) -> AudioInfo:
    """Return length, rate and channels, from the header where there is one.

    Raises:
        UserError: the recording is missing, empty or not audio.
    """
    name = str(source)
    if is_archive(name):
        samples, rate = read_archive(name)
        return AudioInfo(len(samples) / rate, rate, samples.shape[1])
    check_file(name)
    if is_g722(name):
        frames = os.path.getsize(name) * _G722_SAMPLES_PER_BYTE
        return AudioInfo(frames / SAMPLING_RATE, SAMPLING_RATE, 1)
    if (sound := open_sound(name)) is not None:
        with sound:
            rate = sound.samplerate
            return AudioInfo(sound.frames / rate, rate, sound.channels)
    seconds, rate, channels = 0.0, 0, 0
    for block in ffmpeg_blocks(name, name, report=lambda _: None):
        if not rate:
            rate, channels = _format(block)
        seconds += len(block.samples) / block.rate
    return AudioInfo(seconds, rate, channels)


def seconds_by_header(source: str | Path, estimated: bool = False) -> float | None:
    """Return the length in seconds of a file without decoding it; None if unknown.

    Args:
        estimated: where the length is not stated, as in raw AAC, return FFmpeg's
            estimate by the bit rate of the first frames, which can be far off.
    """
    name = str(source)
    if not os.path.isfile(name):
        return None
    import av

    with suppress(UserError, av.FFmpegError, IndexError, OSError):
        if (sound := open_sound(name)) is not None:
            with sound:
                return sound.frames / sound.samplerate
        with open_container(name) as container:
            if estimated or has_length(container):
                return container.duration / av.time_base if container.duration else None
        return seconds_by_frames(name)
    return None


def can_seek(source: str | Path) -> bool:
    """Return True if a segment can be read without decoding the audio before it."""
    name = str(source)
    if not os.path.isfile(name) or is_g722(name):
        return False
    with suppress(UserError):
        if (sound := open_sound(name)) is not None:
            with sound:
                return sound.seekable()
    return False


def encode_audio(samples: np.ndarray, audio_format: str, rate: int) -> bytes:
    """Encode mono (samples,), clipped to [-1, 1], as a 16-bit ``flac`` or ``wav``."""
    import soundfile

    buffer = BytesIO()
    clipped = np.clip(samples, -1.0, 1.0)
    soundfile.write(buffer, clipped, rate, format=audio_format, subtype="PCM_16")
    return buffer.getvalue()


def resample(samples: np.ndarray, rate: float, new_rate: float) -> np.ndarray:
    """Resample (samples,) from ``rate`` to ``new_rate`` in Hz with soxr's HQ filter."""
    if rate == new_rate:
        return samples
    import soxr

    return soxr.resample(samples, rate, new_rate).astype(np.float32, copy=False)


def change_speed(samples: np.ndarray, factor: float) -> np.ndarray:
    """Change tempo and pitch of (samples,) by ``factor``, as ``sox speed`` does."""
    return resample(samples, factor, 1.0)


def cut_seconds(
    samples: np.ndarray,
    rate: int,
    start: float,
    end: float | None,
    name: str,
    offset: float = 0.0,
) -> np.ndarray:
    """Cut a segment out of samples (frames, channels).

    Args:
        samples: of recording ``name``, from second ``offset`` on.
        rate: in Hz.
        start, end: seconds of the recording; see :func:`load_audio`.

    Raises:
        UserError: the recording ends before ``start``, or too long before ``end``.
    """
    seconds = offset + len(samples) / rate
    first = round((start - offset) * rate)
    if first and first >= len(samples):
        raise UserError(
            f"{name}: the segment begins at {start:g} s "
            f"but the recording is {seconds:.2f} s long"
        )
    if end is None:
        return samples[first:]
    if end > seconds + MAX_OVERSHOOT_SECONDS:
        raise UserError(
            f"{name}: the segment ends at {end:g} s "
            f"but the recording is {seconds:.2f} s long"
        )
    return samples[first : round((end - offset) * rate)]


def check_samples(samples: np.ndarray, name: str) -> np.ndarray:
    """Return ``samples`` as contiguous float32.

    Raises:
        UserError: there are none, or some are NaN or infinite.
    """
    if samples.size == 0:
        raise UserError(f"{name}: the recording has no samples")
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    bad = ~np.isfinite(samples)
    if bad.any():
        raise UserError(
            f"{name}: {int(bad.sum())} samples are NaN or infinite, "
            f"the first at sample {int(bad.argmax())}; write the file again"
        )
    return samples


def _seconds(name: str, value: float | None) -> float | None:
    """Return a time as a number; raise UserError if it is not a finite one."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise UserError(f"{name}: {value!r} is not a time in seconds")
    return seconds


def _check_rate(rate: float) -> None:
    if not isinstance(rate, (int, float)) or not 1 <= rate < math.inf:
        raise UserError(f"sampling_rate {rate!r}: a number of Hz from 1 on")


def _format(block: Block) -> tuple[int, int]:
    return block.rate, block.samples.shape[1]


def _to_mono(
    samples: np.ndarray, rate: int, name: str, channel: int | None, report: Report
) -> np.ndarray:
    """Return one channel of samples (frames, channels), or their mix."""
    if channel is None:
        mixer = ChannelMixer(rate, name, report)
        mono = [*mixer.push(samples), *mixer.flush()] if len(samples) else [samples]
        return check_samples(np.concatenate(mono), name)
    if not 0 <= channel < samples.shape[1]:
        raise UserError(
            f"{name}: no channel {channel}, the recording has {samples.shape[1]}"
        )
    return check_samples(samples[:, channel], name)
