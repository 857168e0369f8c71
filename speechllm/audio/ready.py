"""Recordings that are formatted already: 16-bit mono FLAC or WAV at 16 kHz."""

from __future__ import annotations

from io import BytesIO

import numpy as np

from speechllm.audio.containers import Container, check_content
from speechllm.audio.io import SAMPLING_RATE
from speechllm.audio.sources import read_content

_MAGIC = {"flac": b"fLaC", "wav": b"RIFF"}


def read_ready(source: str, audio_format: str) -> tuple[bytes, np.ndarray] | None:
    """Read a recording that can be copied as it is.

    It is decoded once: libFLAC compares the checksum of each frame, so that a damaged
    recording is not taken for a whole one.

    Args:
        source: path, or position of one file in a tar file.
        audio_format: ``flac`` or ``wav``.

    Returns:
        The content of its file, and int16 samples (samples,). None if it has another
        format, rate, sample width or several channels, or any defect, for which
        :func:`~speechllm.audio.io.load_audio` has a message or a remedy.
    """
    import soundfile

    content = read_content(source)
    if content is None or not content.startswith(_MAGIC[audio_format]):
        return None
    if check_content(content) != Container():
        return None
    try:
        with soundfile.SoundFile(BytesIO(content)) as sound:
            form = sound.format, sound.subtype, sound.samplerate, sound.channels
            if form != (audio_format.upper(), "PCM_16", SAMPLING_RATE, 1):
                return None
            frames = sound.frames
            samples = sound.read(dtype="int16")
    except soundfile.SoundFileError:
        return None
    return (content, samples) if 0 < frames == len(samples) else None
