"""Live audio: standard input and the microphone, as blocks that arrive in real time.

The source is read in a thread, so that nothing is lost while the caller is busy.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import BinaryIO

import numpy as np

from speechllm.audio.ffmpeg import pipe_blocks
from speechllm.audio.io import SAMPLING_RATE
from speechllm.utils.errors import UserError

SOURCES = ("-", "raw", "mic")
_BLOCK = SAMPLING_RATE // 10  # samples of a block of raw audio
_QUEUE_BLOCKS = 1000  # after which a source that is faster than real time waits


def live_blocks(source: str, pipe: BinaryIO | None = None) -> Iterator[np.ndarray]:
    """Yield the audio of a live source as it arrives, until it ends.

    Args:
        source: ``-``: a pipe with a container that FFmpeg reads; ``raw``: a pipe with
            16-bit little-endian samples at 16 kHz, one channel; ``mic``: the
            microphone.
        pipe: for ``-`` and ``raw``, without a buffer; None: standard input.

    Yields:
        float32 samples (samples,) at 16 kHz.

    Raises:
        UserError: it cannot be read.
    """
    if source == "mic":
        blocks = _microphone()
    else:
        pipe = pipe or open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)
        blocks = _raw(pipe) if source == "raw" else _mono(pipe)
    yield from _in_thread(blocks)


def _in_thread(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Read an iterator in a thread; its exception is raised here."""
    read: queue.Queue[np.ndarray | BaseException | None] = queue.Queue(_QUEUE_BLOCKS)

    def run() -> None:
        try:
            for block in blocks:
                read.put(block)
            read.put(None)
        except BaseException as error:
            read.put(error)

    threading.Thread(target=run, name="live audio", daemon=True).start()
    while (block := read.get()) is not None:
        if isinstance(block, BaseException):
            raise block
        yield block


def _raw(pipe: BinaryIO) -> Iterator[np.ndarray]:
    rest = b""
    while data := pipe.read(2 * _BLOCK):
        data = rest + data
        whole = len(data) - len(data) % 2
        rest = data[whole:]
        if whole:
            yield np.frombuffer(data[:whole], "<i2").astype(np.float32) / 2**15


def _mono(pipe: BinaryIO) -> Iterator[np.ndarray]:
    """Yield the mean of the channels, resampled."""
    import soxr

    rate, resampler = SAMPLING_RATE, None
    for block in pipe_blocks(pipe, "standard input"):
        if block.rate != rate:
            rate = block.rate
            resampler = soxr.ResampleStream(rate, SAMPLING_RATE, 1, dtype="float32")
        mono = np.ascontiguousarray(block.samples.mean(axis=1, dtype=np.float32))
        yield mono if resampler is None else resampler.resample_chunk(mono)
    if resampler is not None:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def import_sounddevice() -> ModuleType:
    """Return the module that reads the microphone.

    Raises:
        UserError: it, or its library PortAudio, is not installed.
    """
    try:
        import sounddevice
    except ImportError:
        raise UserError(
            "the microphone needs sounddevice: pip install sounddevice"
        ) from None
    except OSError as error:  # the library PortAudio
        raise UserError(f"the microphone cannot be used: {error}") from None
    return sounddevice


def _microphone() -> Iterator[np.ndarray]:
    sounddevice = import_sounddevice()
    try:
        with sounddevice.InputStream(SAMPLING_RATE, _BLOCK, channels=1) as stream:
            while True:
                samples, _ = stream.read(_BLOCK)
                yield samples[:, 0].copy()
    except sounddevice.PortAudioError as error:
        raise UserError(f"the microphone cannot be used: {error}") from None
