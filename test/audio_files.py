"""Write audio files in the formats of FFmpeg, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

RATE = 16000


def mux_one_picture(container) -> None:
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
