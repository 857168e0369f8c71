"""Audio files in FFmpeg's formats, for tests."""

from __future__ import annotations

from fractions import Fraction
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


def mux(
    path: Path,
    codec: str,
    tracks: list[list[tuple[float, np.ndarray]]],
    rate: int = 48000,
    layout: str = "mono",
    video_seconds: float = 0.0,
    form: str | None = None,
    **options: str,
) -> Path:
    """Write audio tracks whose parts begin at given times.

    Args:
        path: file to write.
        codec: FFmpeg's name of the audio codec.
        tracks: for each track its parts: seconds at which they begin, and mono samples
            (samples,); only whole frames of the codec are written.
        rate: in Hz.
        layout: of the channels, which are all alike.
        video_seconds: length of a black video from second 0 on.
        form: FFmpeg's name of the container; None: by the suffix.
        **options: of the container.
    """
    import av

    channels = av.AudioLayout(layout).nb_channels
    with av.open(str(path), "w", format=form, options=options) as container:
        video = None
        if video_seconds:
            video_codec = "flv" if path.suffix == ".flv" else "mpeg4"
            video = container.add_stream(video_codec, rate=10)
            video.width = video.height = 64
            video.pix_fmt = "yuv420p"
        streams = [container.add_stream(codec, rate=rate) for _ in tracks]
        packets = []
        for stream, parts in zip(streams, tracks):
            stream.layout = layout
            size = stream.codec_context.frame_size or 960
            sample_format = stream.codec_context.format.name
            for begin, samples in parts:
                for first in range(0, len(samples) - size + 1, size):
                    piece = samples[first : first + size]
                    frame = _audio_frame(piece, channels, sample_format, layout)
                    frame.sample_rate = rate
                    frame.pts = round(begin * rate) + first
                    frame.time_base = Fraction(1, rate)
                    packets += stream.encode(frame)
            packets += stream.encode(None)
        if video is not None:
            for number in range(int(video_seconds * 10)):
                picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
                picture.pts = number
                packets += video.encode(picture)
            packets += video.encode(None)
        packets.sort(key=lambda p: float((p.dts or p.pts or 0) * p.time_base))
        for packet in packets:
            container.mux(packet)
    return path


def _audio_frame(samples: np.ndarray, channels: int, form: str, layout: str):
    import av

    if form.startswith("s"):
        dtype = {"s16": np.int16, "s32": np.int32}[form[:3]]
        samples = (samples * float(np.iinfo(dtype).max)).astype(dtype)
    if form.endswith("p"):
        data = np.repeat(samples[None], channels, 0)
    else:
        data = np.repeat(samples, channels)[None]
    return av.AudioFrame.from_ndarray(
        np.ascontiguousarray(data), format=form, layout=layout
    )
