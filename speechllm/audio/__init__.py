"""Audio: reading, voice activity detection and segmentation.

``load_audio``, ``stream_audio`` and ``SAMPLING_RATE`` are importable from here.
"""

from speechllm.audio.io import SAMPLING_RATE, load_audio, stream_audio

__all__ = ["SAMPLING_RATE", "load_audio", "stream_audio"]
