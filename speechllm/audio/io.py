"""Audio files of any common format as mono float32 samples.

libsndfile reads its formats (wav, flac, ogg, mp3, NIST sphere, …) and can seek to a
segment; FFmpeg (:mod:`speechllm.audio.ffmpeg`) reads the others (m4a, raw G.722, video
containers); kaldiio reads Kaldi archives (``x.ark:123``). Every defect of a recording
is a :class:`~speechllm.utils.errors.UserError` that names the file.
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

from speechllm.audio.ffmpeg import (
    cut_off_error,
    ffmpeg_blocks,
    open_container,
    read_with_ffmpeg,
)
from speechllm.utils.errors import UserError

SAMPLING_RATE = 16000  # Hz, of all models and of formatted audio
MAX_OVERSHOOT_SECONDS = 0.5  # as Kaldi's extract-segments: clip below, reject above
_ARCHIVE = re.compile(r"^(?P<path>.+\.ark):(?P<offset>\d+)$")
_BLOCK_SECONDS = 10.0  # of stream_audio
_UNKNOWN_WAV_LENGTH = 0x7FFF0000  # from here on: sox and ffmpeg writing to a pipe
_EXACT_LENGTH_FORMATS = {"WAV", "WAVEX", "RF64", "W64", "FLAC", "AIFF", "NIST"}
_G722_SAMPLES_PER_BYTE = 2  # ITU-T G.722 at 64 kbit/s, sampled at 16 kHz


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
) -> np.ndarray:
    """Read a recording or a segment of it.

    Args:
        source: path, Kaldi archive position ``x.ark:123``, or, with ``allow_pipes``, a
            shell command that ends with ``|`` and prints audio.
        start, end: seconds; ``None`` is the start or the end of the recording. An end
            up to half a second after the recording is clipped.
        sampling_rate: of the result, in Hz.
        allow_pipes: run commands in ``source``. Only for trusted lists.
        channel: 0-based channel to read; ``None`` averages all channels.

    Returns:
        float32 samples in [-1, 1], shape (samples,), never empty, all finite.

    Raises:
        UserError: the recording is missing, empty, truncated, not audio, has NaN or
            infinite samples, or ends before ``start`` or ``end``.
    """
    name = str(source)
    start = 0.0 if start is None else float(start)
    if start < 0 or (end is not None and end <= start):
        raise UserError(f"{name}: the segment {start:g}–{end:g} s is empty or negative")
    samples, rate, offset = _read(name, start, end, allow_pipes)  # (frames, channels)
    samples = cut_seconds(samples, rate, start, end, name, offset)
    if len(samples) == 0:
        raise UserError(f"{name}: the recording has no samples")
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
        source: path, or Kaldi archive position ``x.ark:123`` (read at once).
        sampling_rate: of the result, in Hz.

    Yields:
        float32 samples in [-1, 1], shape (samples,), the mean of all channels; about
        10 s each. Concatenated they equal the result of :func:`load_audio`.

    Raises:
        UserError: as :func:`load_audio`; for a truncated or damaged recording after
            all samples that can be read.
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


def check_waveform(audio: str | Path | np.ndarray) -> np.ndarray:
    """Read a file at 16 kHz, or check an array of samples.

    Returns:
        float32 samples (samples,), finite, not empty.

    Raises:
        UserError: the file cannot be read, or the array is empty, has another number
            of dimensions, or NaN or infinite samples.
    """
    if isinstance(audio, (str, Path)):
        return load_audio(audio, sampling_rate=SAMPLING_RATE)
    wave = np.asarray(audio, dtype=np.float32)
    if wave.ndim != 1 or wave.size == 0 or not np.isfinite(wave).all():
        raise UserError(
            f"an array of shape {wave.shape}: expected finite samples (samples,) at "
            "16 kHz, not empty"
        )
    return wave


def audio_info(source: str | Path) -> AudioInfo:
    """Return length, rate and channels, from the header where there is one.

    Raises:
        UserError: the recording is missing, empty or not audio.
    """
    import soundfile

    name = str(source)
    if _ARCHIVE.match(name) and not os.path.exists(name):
        samples, rate = _read_archive(name)
        return AudioInfo(len(samples) / rate, rate, samples.shape[1])
    _check_file(name)
    if name.endswith(".g722"):
        frames = os.path.getsize(name) * _G722_SAMPLES_PER_BYTE
        return AudioInfo(frames / SAMPLING_RATE, SAMPLING_RATE, 1)
    try:
        info = soundfile.info(name)
        return AudioInfo(info.frames / info.samplerate, info.samplerate, info.channels)
    except soundfile.LibsndfileError:
        samples, rate = read_with_ffmpeg(name)
        return AudioInfo(len(samples) / rate, rate, samples.shape[1])


def seconds_by_header(source: str | Path) -> float | None:
    """Return the length in seconds that a file's header states; None without one."""
    import soundfile

    name = str(source)
    if not os.path.isfile(name):
        return None
    try:
        info = soundfile.info(name)
        return info.frames / info.samplerate
    except (soundfile.LibsndfileError, OSError):
        pass
    import av

    try:
        with open_container(name) as container:
            return container.duration / av.time_base if container.duration else None
    except (UserError, av.FFmpegError, IndexError, OSError):
        return None


def can_seek(source: str | Path) -> bool:
    """Return True if a segment can be read without decoding the audio before it."""
    import soundfile

    name = str(source)
    if not os.path.isfile(name) or name.endswith(".g722"):
        return False
    try:
        return soundfile.SoundFile(name).seekable()
    except soundfile.LibsndfileError:
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


def _read(
    name: str, start: float, end: float | None, allow_pipes: bool
) -> tuple[np.ndarray, int, float]:
    """Return samples (frames, channels), rate in Hz and start time in seconds."""
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
        if problem := _truncated_wav_error(file, name):
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
    """Yield a recording as blocks (frames, channels), each with its rate in Hz.

    Raises:
        UserError: also after the last block, if the recording is truncated.
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
        rate, count = sound.samplerate, 0
        problem = _truncated_wav_error(name, name)
        size = rate // 4  # frames; a damaged block is lost as a whole
        try:
            while len(block := sound.read(size, dtype="float32", always_2d=True)):
                count += len(block)
                yield block, rate
        except soundfile.LibsndfileError as error:
            problem = UserError(
                f"{name}: cut off or damaged after {count / rate:.2f} s ({error})"
            )
        if count < sound.frames and sound.format in _EXACT_LENGTH_FORMATS:
            problem = problem or cut_off_error(name, sound.frames / rate, count / rate)
    if problem is not None:
        raise problem
    if count == 0:
        raise UserError(f"{name}: the recording has no samples")


def _read_archive(name: str) -> tuple[np.ndarray, int]:
    match = _ARCHIVE.match(name)
    path, offset = match["path"], int(match["offset"])
    _check_file(path)
    with open(path, "rb") as stream:
        stream.seek(offset)
        head = stream.read(3)
    if head == b"PKL":  # unpickling runs code from the archive
        raise UserError(f"{name}: pickled archives are refused; write audio archives")
    import kaldiio

    try:
        loaded = kaldiio.load_mat(name)
    # kaldiio raises many classes on damaged input, some of its own
    except Exception as error:
        raise UserError(f"{name}: not a readable Kaldi archive ({error})") from None
    if not isinstance(loaded, tuple):
        raise UserError(f"{name}: the archive contains a matrix, not audio")
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
        if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", path):
            raise UserError(
                f"{path}: an address; recordings are local files, download it first"
            )
        raise UserError(f"{path}: the audio file does not exist")
    if os.path.isdir(path):
        raise UserError(f"{path}: this is a folder, not an audio file")
    if not os.path.isfile(path):
        raise UserError(f"{path}: a pipe or device, not an audio file; write a file")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: no permission to read the audio file")
    if os.path.getsize(path) == 0:
        raise UserError(f"{path}: the audio file is empty (0 bytes)")


def _truncated_wav_error(path: str, name: str) -> UserError | None:
    """Return an error if a RIFF file is shorter than its data chunk states.

    libsndfile reads such a file without an error, and training would pair half an
    utterance with its full text.
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
                available = size - stream.tell()
                if available < length < _UNKNOWN_WAV_LENGTH:
                    return cut_off_error(
                        name, length / bytes_per_second, available / bytes_per_second
                    )
                return None
            if kind == b"fmt " and length >= 16:
                body = stream.read(length + length % 2)
                bytes_per_second = struct.unpack_from("<I", body, 8)[0] or 1
            else:
                stream.seek(length + length % 2, os.SEEK_CUR)
    return None
