"""Audio files in FFmpeg's formats, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from speechllm.audio import SAMPLING_RATE as RATE


def mux_one_picture(container) -> None:
    """Add a video stream of one black picture."""
    import av

    stream = container.add_stream("mpeg4", rate=5)
    stream.width = stream.height = 64
    stream.pix_fmt = "yuv420p"
    frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
    container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def encode_with_ffmpeg(
    path: Path, samples: np.ndarray, codec: str, video=False
) -> Path:
    """Encode mono samples (samples,) with a codec of FFmpeg, optionally as a video."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, layout="mono")
        if video:
            mux_one_picture(container)
        data = (samples * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(data, format="s16", layout="mono")
        frame.rate = RATE
        resampler = av.AudioResampler(
            format=stream.format, layout="mono", rate=RATE, frame_size=stream.frame_size
        )
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path
