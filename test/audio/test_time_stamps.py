"""Sound is placed by the time stamps of its container; silent tracks are skipped."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
from audio_files import RATE, mux

from speechllm.audio import load_audio, stream_audio
from speechllm.utils.errors import UserError

FRAME = 48000  # rate of the tracks


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.2 * rng.standard_normal(int(seconds * FRAME))).astype(np.float32)


def tone(hertz: float, seconds: float) -> np.ndarray:
    times = np.arange(int(seconds * FRAME)) / FRAME
    return (0.3 * np.sin(2 * np.pi * hertz * times)).astype(np.float32)


def sounding(samples: np.ndarray) -> list[tuple[float, float]]:
    """Return begin and end, in seconds, of the parts that are louder than -40 dB."""
    size = RATE // 100
    blocks = samples[: len(samples) // size * size].reshape(-1, size)
    loud = np.concatenate([[False], np.sqrt((blocks**2).mean(1)) > 0.01, [False]])
    edges = np.flatnonzero(loud[1:] != loud[:-1]) / 100
    return [(float(a), float(b)) for a, b in zip(edges[::2], edges[1::2])]


def read_both(path) -> np.ndarray:
    whole = load_audio(path)
    streamed = np.concatenate(list(stream_audio(path)))
    np.testing.assert_allclose(streamed, whole, atol=2e-5)
    return whole


CONTAINERS = [
    ("a.mp4", "aac"), ("a.mkv", "aac"), ("a.webm", "libopus"), ("a.mov", "aac"),
    ("a.ts", "aac"), ("a.flv", "aac"),
]  # fmt: skip


def test_sound_that_begins_after_the_picture(tmp_path):
    for name, codec in CONTAINERS:
        if name.endswith("webm"):
            continue  # holds no MPEG-4 video
        path = mux(tmp_path / name, codec, [[(3.0, noise(2))]], video_seconds=6)
        found = sounding(read_both(path))
        assert len(found) == 1, name
        assert found[0] == pytest.approx((3.0, 5.0), abs=0.06), name


@pytest.mark.parametrize(("name", "codec"), CONTAINERS)
def test_gaps_are_silence_of_the_right_length(tmp_path, name, codec):
    path = mux(
        tmp_path / name, codec, [[(0.0, noise(2)), (5.0, noise(2)), (7.6, noise(1))]]
    )
    found = sounding(read_both(path))
    assert len(found) == 3
    for place, expected in zip(found, [(0, 2), (5, 7), (7.6, 8.6)]):
        assert place == pytest.approx(expected, abs=0.06)
    segment = load_audio(path, 4.0, 6.0)
    assert sounding(segment)[0] == pytest.approx((1.0, 2.0), abs=0.06)


def test_audio_alone_begins_at_its_first_sample(tmp_path):
    """Without a picture the time stamp of the first sample is second 0."""
    path = mux(tmp_path / "a.mkv", "aac", [[(100.0, noise(2))]])
    assert sounding(read_both(path))[0] == pytest.approx((0, 2), abs=0.06)


def test_time_stamps_of_joined_files_begin_again(tmp_path):
    parts = [
        mux(
            tmp_path / f"{n}.ts",
            "aac",
            [[(0.0, tone(hertz, 2)), (3.0, tone(hertz, 1))]],
        )
        for n, hertz in ((1, 300), (2, 600))
    ]
    path = tmp_path / "a.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    found = sounding(read_both(path))
    assert len(found) in (3, 4)  # the second part follows the first at once
    assert found[0] == pytest.approx((0, 2), abs=0.06)
    assert found[-1] == pytest.approx((7, 8), abs=0.15)


def test_long_gaps_are_streamed_in_small_blocks(tmp_path):
    path = mux(tmp_path / "a.mkv", "aac", [[(0.0, noise(1)), (3600.0, noise(1))]])
    blocks = list(stream_audio(path))
    assert max(map(len, blocks)) < 12 * RATE
    assert sum(map(len, blocks)) == pytest.approx(3601 * RATE, abs=0.1 * RATE)


def test_impossible_gaps_are_left_out_and_reported(tmp_path):
    path = mux(tmp_path / "a.mkv", "aac", [[(0.0, noise(1)), (90000.0, noise(1))]])
    messages: list[str] = []
    assert len(load_audio(path, report=messages.append)) < 2.2 * RATE
    assert len(messages) == 1
    assert "the time stamps jump by 8999" in messages[0]


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.mov"])
def test_silent_first_track_is_skipped_and_reported(tmp_path, name):
    silence = np.zeros(2 * FRAME, np.float32)
    tracks = [[(0.0, silence)], [(0.0, silence)], [(0.0, tone(300, 2))]]
    path = mux(tmp_path / name, "aac", tracks)
    messages: list[str] = []
    found = load_audio(path, report=messages.append)
    assert np.abs(found).max() > 0.25
    assert messages == [f"{path}: the first audio track is silent; track 3 is read"]
    messages.clear()
    blocks = list(stream_audio(path, report=messages.append))
    np.testing.assert_allclose(np.concatenate(blocks), found, atol=2e-5)
    assert len(messages) == 1


def test_first_track_with_sound_is_read(tmp_path):
    tracks = [[(0.0, tone(300, 2))], [(0.0, tone(600, 2))]]
    messages: list[str] = []
    found = load_audio(mux(tmp_path / "a.mkv", "aac", tracks), report=messages.append)
    assert np.abs(np.fft.rfft(found[:RATE])).argmax() == 300
    assert messages == []
    silent = [[(0.0, np.zeros(FRAME, np.float32))]] * 2
    load_audio(mux(tmp_path / "b.mkv", "aac", silent), report=messages.append)
    assert len(messages) == 1
    assert "silence, no sample is above -80 dB" in messages[0]


def test_track_is_chosen_by_its_number(tmp_path):
    tracks = [[(0.0, tone(300, 2))], [(0.0, tone(600, 2))]]
    path = mux(tmp_path / "a.mkv", "aac", tracks)
    for track, hertz in ((1, 300), (2, 600), (None, 300)):
        samples = np.concatenate(list(stream_audio(path, track=track)))
        spectrum = np.abs(np.fft.rfft(samples))
        assert np.argmax(spectrum) / (len(samples) / RATE) == pytest.approx(
            hertz, abs=2
        )
    with pytest.raises(UserError, match="a.mkv: no audio track 3; it has 2"):
        next(stream_audio(path, track=3))
    wav = tmp_path / "a.wav"
    soundfile.write(wav, tone(300, 1), FRAME)
    whole = np.concatenate(list(stream_audio(wav)))
    np.testing.assert_allclose(
        np.concatenate(list(stream_audio(wav, track=1))), whole, atol=2e-5
    )
    with pytest.raises(UserError, match="a.wav: no audio track 2; it has 1"):
        next(stream_audio(wav, track=2))
