"""Audio of any common format as mono float32 samples at the rate a model wants.

libsndfile reads what it knows (wav, flac, ogg, mp3, NIST sphere, …) and can jump to
a segment; FFmpeg (through PyAV) reads the rest (m4a, raw G.722, video containers).
Kaldi archives (``x.ark:123``) go through kaldiio. Everything that is wrong with a
recording comes out as a :class:`~speechllm.utils.errors.UserError` that names it.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from speechllm.audio.ffmpeg import cut_off_error, ffmpeg_blocks, read_with_ffmpeg
from speechllm.utils.errors import UserError

SAMPLING_RATE = 16000
MAX_OVERSHOOT_SECONDS = 0.5  # as Kaldi's extract-segments: clamp below, refuse above
_ARCHIVE = re.compile(r"^(?P<path>.+\.ark):(?P<offset>\d+)$")
_BLOCK_SECONDS = 10.0  # of a stream
_UNKNOWN_WAV_LENGTH = 0x7FFF0000  # sox and ffmpeg write such lengths into a pipe
_EXACT_LENGTH_FORMATS = {"WAV", "WAVEX", "RF64", "W64", "FLAC", "AIFF", "NIST"}
_G722_SAMPLES_PER_BYTE = 2  # ITU-T G.722 at 64 kbit/s: 8000 bytes are 16000 samples


@dataclass(frozen=True)
class AudioInfo:
    """Length in seconds, sampling rate in Hz and number of channels."""

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
) -> np.ndarray:
    """Read a recording, or the part of it between two times.

    Args:
        source: a path, a Kaldi archive position ``x.ark:123``, or, with
            ``allow_pipes``, a shell command that ends with ``|`` and prints audio.
        start, end: seconds; ``None`` means the start and the end of the recording.
            An end up to half a second past the recording is cut to it.
        sampling_rate: of the result, in Hz.
        allow_pipes: run commands found in ``source``. Only for trusted lists.
        channel: 0-based channel to take; ``None`` averages all channels.

    Returns:
        float32 samples in [-1, 1], shape (samples,), never empty, all finite.

    Raises:
        UserError: the recording is missing, empty, cut off, not audio, has NaN or
            infinite samples, or does not reach ``start`` or ``end``.
    """
    name = str(source)
    start = 0.0 if start is None else float(start)
    if start < 0 or (end is not None and end <= start):
        raise UserError(f"{name}: the segment {start:g}–{end:g} s is empty or negative")
    samples, rate, offset = _read(name, start, end, allow_pipes)  # (frames, channels)
    samples = cut_seconds(samples, rate, start, end, name, offset)
    if len(samples) == 0:
        raise UserError(f"{name}: the recording holds no samples")
    if channel is not None:
        if not 0 <= channel < samples.shape[1]:
            raise UserError(
                f"{name}: no channel {channel}, the recording has {samples.shape[1]}"
            )
        mono = samples[:, channel]
    else:
        mono = samples.mean(axis=1)
    mono = check_samples(mono, name)
    return resample(mono, rate, sampling_rate)


def stream_audio(
    source: str | Path, sampling_rate: int = SAMPLING_RATE
) -> Iterator[np.ndarray]:
    """Read a recording of any length block by block, in bounded memory.

    Args:
        source: a path, or a Kaldi archive position ``x.ark:123`` (read at once).
        sampling_rate: of the result, in Hz.

    Yields:
        float32 samples in [-1, 1], the mean of all channels; about 10 s each. Together
        they are what :func:`load_audio` returns.

    Raises:
        UserError: as :func:`load_audio` does; for a recording that is cut off or
            damaged in the middle, after all samples that are there.
    """
    name = str(source)
    resampler, problem, held, count = None, None, [], 0
    blocks = _read_blocks(name)
    while problem is None:
        try:
            samples, rate = next(blocks)
            mono = check_samples(samples.mean(axis=1), name)
        except StopIteration:
            break
        except UserError as error:
            problem = error
            break
        if resampler is None and rate != sampling_rate:
            import soxr

            resampler = soxr.ResampleStream(rate, sampling_rate, 1, dtype="float32")
        held.append(mono if resampler is None else resampler.resample_chunk(mono))
        count += len(held[-1])
        if count >= _BLOCK_SECONDS * sampling_rate:
            yield np.concatenate(held)
            held, count = [], 0
    if resampler is not None:
        held.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    if sum(map(len, held)):
        yield np.concatenate(held)
    if problem is not None:
        raise problem


def check_samples(samples: np.ndarray, name: str) -> np.ndarray:
    """Return ``samples`` as contiguous float32, or say what is wrong with them."""
    if samples.size == 0:
        raise UserError(f"{name}: the recording holds no samples")
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    bad = ~np.isfinite(samples)
    if bad.any():
        raise UserError(
            f"{name}: {int(bad.sum())} samples are NaN or infinite, "
            f"the first at sample {int(bad.argmax())}; write the file again"
        )
    return samples


def resample(samples: np.ndarray, rate: float, new_rate: float) -> np.ndarray:
    """Resample (samples,) from ``rate`` to ``new_rate`` Hz with soxr's HQ filter."""
    if rate == new_rate:
        return samples
    import soxr

    return soxr.resample(samples, rate, new_rate).astype(np.float32, copy=False)


def change_speed(samples: np.ndarray, factor: float) -> np.ndarray:
    """Play ``factor`` times as fast: tempo and pitch change, as in ``sox speed``."""
    return resample(samples, factor, 1.0)


def audio_info(source: str | Path) -> AudioInfo:
    """Tell length, rate and channels, from the header where there is one."""
    import soundfile

    name = str(source)
    if _ARCHIVE.match(name) and not os.path.exists(name):
        samples, rate = _read_archive(name)
        return AudioInfo(len(samples) / rate, rate, samples.shape[1])
    _check_file(name)
    if name.endswith(".g722"):
        frames = os.path.getsize(name) * _G722_SAMPLES_PER_BYTE
        return AudioInfo(frames / 16000, 16000, 1)
    try:
        info = soundfile.info(name)
        return AudioInfo(info.frames / info.samplerate, info.samplerate, info.channels)
    except soundfile.LibsndfileError:
        samples, rate = read_with_ffmpeg(name)
        return AudioInfo(len(samples) / rate, rate, samples.shape[1])


def seconds_by_header(source: str | Path) -> float | None:
    """Length in seconds as a file's header has it; None where nothing tells it."""
    import soundfile

    name = str(source)
    try:
        info = soundfile.info(name)
        return info.frames / info.samplerate
    except (soundfile.LibsndfileError, OSError):
        pass
    import av

    try:
        with av.open(name, metadata_errors="ignore") as container:
            return container.duration / av.time_base if container.duration else None
    except (av.FFmpegError, IndexError, OSError):
        return None


def can_seek(source: str | Path) -> bool:
    """Whether a segment can be read without decoding what lies before it."""
    import soundfile

    name = str(source)
    if not os.path.isfile(name) or name.endswith(".g722"):
        return False
    try:
        return soundfile.SoundFile(name).seekable()
    except soundfile.LibsndfileError:
        return False


def encode_audio(samples: np.ndarray, audio_format: str, rate: int) -> bytes:
    """Encode mono samples as a 16-bit ``flac`` or ``wav`` file, clipped to [-1, 1]."""
    import soundfile

    buffer = BytesIO()
    clipped = np.clip(samples, -1.0, 1.0)
    soundfile.write(buffer, clipped, rate, format=audio_format, subtype="PCM_16")
    return buffer.getvalue()


def _read(
    name: str, start: float, end: float | None, allow_pipes: bool
) -> tuple[np.ndarray, int, float]:
    """Return samples (frames, channels), their rate and the second they begin at."""
    if name.rstrip().endswith("|"):
        if not allow_pipes:
            raise UserError(
                f"{name}: this is a command, not a file; commands in wav.scp are run "
                "only when pipes are allowed"
            )
        return *_read_pipe(name), 0.0
    if _ARCHIVE.match(name) and not os.path.exists(name):
        return *_read_archive(name), 0.0
    _check_file(name)
    if name.endswith(".g722"):
        return *read_with_ffmpeg(name, "g722"), 0.0
    import soundfile

    try:
        return _read_with_soundfile(name, name, start, end)
    except soundfile.LibsndfileError:
        return *read_with_ffmpeg(name), 0.0


def _read_with_soundfile(
    name: str, file, start: float, end: float | None
) -> tuple[np.ndarray, int, float]:
    import soundfile

    with soundfile.SoundFile(file) as sound:
        rate = sound.samplerate
        if problem := _missing_wav(file, name):
            raise problem
        first = min(round(start * rate), sound.frames) if sound.seekable() else 0
        last = sound.frames
        if end is not None:
            last = min(round(end * rate), sound.frames)
        if first:
            sound.seek(first)
        try:
            samples = sound.read(max(last - first, 0), dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise UserError(f"{name}: the recording is damaged: {error}") from None
        if len(samples) < last - first and sound.format in _EXACT_LENGTH_FORMATS:
            raise cut_off_error(
                name, sound.frames / rate, (first + len(samples)) / rate
            )
    return samples, rate, first / rate


def _read_blocks(name: str) -> Iterator[tuple[np.ndarray, int]]:
    """A recording as blocks (frames, channels), each with its rate.

    Raises:
        UserError: also after the last block, if the recording is cut off.
    """
    if name.rstrip().endswith("|"):
        raise UserError(f"{name}: this is a command, not a file")
    if _ARCHIVE.match(name) and not os.path.exists(name):
        yield _read_archive(name)
        return
    _check_file(name)
    import soundfile

    try:
        if name.endswith(".g722"):
            yield from ffmpeg_blocks(name, "g722")
            return
        sound = soundfile.SoundFile(name)
    except soundfile.LibsndfileError:
        yield from ffmpeg_blocks(name)
        return
    with sound:
        rate, there = sound.samplerate, 0
        problem = _missing_wav(name, name)
        size = rate // 4  # what is lost where a file is damaged
        try:
            while len(block := sound.read(size, dtype="float32", always_2d=True)):
                there += len(block)
                yield block, rate
        except soundfile.LibsndfileError as error:
            problem = UserError(
                f"{name}: cut off or damaged after {there / rate:.2f} s ({error})"
            )
        if there < sound.frames and sound.format in _EXACT_LENGTH_FORMATS:
            problem = problem or cut_off_error(name, sound.frames / rate, there / rate)
    if problem is not None:
        raise problem
    if there == 0:
        raise UserError(f"{name}: the recording holds no samples")


def cut_seconds(
    samples: np.ndarray,
    rate: int,
    start: float,
    end: float | None,
    name: str,
    offset: float = 0.0,
) -> np.ndarray:
    """Cut (frames, channels) that begin at second ``offset`` of recording ``name``.

    ``start`` and ``end`` are seconds of the recording; see :func:`load_audio`.
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


def _read_archive(name: str) -> tuple[np.ndarray, int]:
    match = _ARCHIVE.match(name)
    path, offset = match["path"], int(match["offset"])
    _check_file(path)
    with open(path, "rb") as stream:
        stream.seek(offset)
        head = stream.read(3)
    if head == b"PKL":  # unpickling can run any code that the archive's author likes
        raise UserError(f"{name}: pickled archives are refused; write audio archives")
    import kaldiio

    try:
        loaded = kaldiio.load_mat(name)
    # kaldiio raises whatever its parsing stumbles over, classes of its own among it
    except Exception as error:
        raise UserError(f"{name}: not a readable Kaldi archive ({error})") from None
    if not isinstance(loaded, tuple):
        raise UserError(f"{name}: the archive holds a matrix, not audio")
    rate, samples = loaded if isinstance(loaded[0], int) else loaded[::-1]
    samples = np.asarray(samples)
    if np.issubdtype(samples.dtype, np.integer):
        samples = samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    return samples.reshape(len(samples), -1), int(rate)


def _read_pipe(name: str) -> tuple[np.ndarray, int]:
    import soundfile

    command = name.rstrip()[:-1]
    result = subprocess.run(command, shell=True, capture_output=True, check=False)
    if result.returncode != 0 or not result.stdout:
        last = result.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise UserError(
            f"{name}: the command failed with status {result.returncode}"
            + (f": {last[0]}" if last else " and printed nothing")
        )
    try:
        with soundfile.SoundFile(BytesIO(result.stdout)) as sound:
            return sound.read(dtype="float32", always_2d=True), sound.samplerate
    except soundfile.LibsndfileError as error:
        raise UserError(f"{name}: the command printed no audio ({error})") from None


def _check_file(path: str) -> None:
    if not os.path.exists(path):
        raise UserError(f"{path}: the audio file does not exist")
    if not os.path.isfile(path):
        raise UserError(f"{path}: this is a folder, not an audio file")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: no permission to read the audio file")
    if os.path.getsize(path) == 0:
        raise UserError(f"{path}: the audio file is empty (0 bytes)")


def _missing_wav(path: str, name: str) -> UserError | None:
    """What is wrong with a RIFF file that is shorter than its data chunk says.

    libsndfile silently takes what is there, and a recogniser would be trained on
    half an utterance with the whole text.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as stream:
        head = stream.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return None
        bytes_per_second = 1
        while len(chunk := stream.read(8)) == 8:
            kind, length = struct.unpack("<4sI", chunk)
            if kind == b"data":
                there = size - stream.tell()
                if there < length < _UNKNOWN_WAV_LENGTH:
                    return cut_off_error(
                        name, length / bytes_per_second, there / bytes_per_second
                    )
                return None
            if kind == b"fmt " and length >= 16:
                body = stream.read(length + length % 2)
                bytes_per_second = struct.unpack_from("<I", body, 8)[0] or 1
            else:
                stream.seek(length + length % 2, os.SEEK_CUR)
    return None


def check_waveform(audio: str | Path | np.ndarray) -> np.ndarray:
    """Read a file, or check an array: (samples,), finite, not empty."""
    if isinstance(audio, (str, Path)):
        return load_audio(audio, sampling_rate=SAMPLING_RATE)
    wave = np.asarray(audio, dtype=np.float32)
    if wave.ndim != 1 or wave.size == 0 or not np.isfinite(wave).all():
        raise UserError(
            f"an array of shape {wave.shape}: expected finite samples (samples,) at "
            "16 kHz, not empty"
        )
    return wave
