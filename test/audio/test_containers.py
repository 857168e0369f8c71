"""Cut-off files are refused; joined files and wrong headers are read whole."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_files import RATE, encode_with_ffmpeg, mux

from speechllm.audio import load_audio, stream_audio
from speechllm.audio import sources as audio_sources
from speechllm.audio.containers import Container, check_container
from speechllm.audio.io import audio_info, can_seek
from speechllm.utils.errors import UserError

SNDFILE = {
    "wav": {},
    "flac": {},
    "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III"},
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "aiff": {"format": "AIFF"},
    "au": {"format": "AU"},
    "caf": {"format": "CAF"},
    "w64": {"format": "W64"},
    "rf64": {"format": "RF64"},
}
FFMPEG = {
    "m4a": "aac", "mp4": "aac", "mov": "pcm_s16le", "webm": "libopus", "mkv": "aac",
    "mka": "aac", "avi": "mp2", "flv": "aac", "aac": "aac",
    "mp2": "mp2", "ts": "mp2",
}  # fmt: skip


def tone(frequency: float, seconds: float, rate: int = RATE) -> np.ndarray:
    times = np.arange(int(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * frequency * times)).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    suffix = path.suffix[1:]
    if suffix in FFMPEG:
        return encode_with_ffmpeg(path, samples, FFMPEG[suffix])
    soundfile.write(path, samples, rate, **SNDFILE[suffix])
    return path


def pitch(samples: np.ndarray, second: float) -> float:
    """Return the frequency of the strongest component in half a second of samples."""
    part = samples[int(second * RATE) : int((second + 0.5) * RATE)]
    return float(np.abs(np.fft.rfft(part)).argmax() * RATE / len(part))


def read_both(path) -> np.ndarray:
    """Read a file with both functions, which give the same samples."""
    whole = load_audio(path)
    streamed = np.concatenate(list(stream_audio(path)))
    np.testing.assert_allclose(streamed, whole, atol=2e-5)
    return whole


@pytest.mark.parametrize("suffix", [*SNDFILE, *FFMPEG])
def test_whole_files_pass_and_cut_ones_are_refused(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", tone(300, 3))
    assert len(read_both(path)) == pytest.approx(3 * RATE, abs=0.2 * RATE)
    content = path.read_bytes()
    shares = np.random.default_rng(0).uniform(0.1, 0.98, 8)
    for share in shares:
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(UserError, match=r"cut off|damaged|not a readable"):
            load_audio(path)
        with pytest.raises(UserError, match=r"cut off|damaged|not a readable"):
            list(stream_audio(path))


def test_cut_off_files_of_other_encoders(tmp_path):
    """Containers and headers as other programs write them."""
    wave = tone(300, 3, 48000)
    kinds = {
        "constant.mp3": ("libmp3lame", {"form": "mp3", "write_xing": "0"}),
        "tagged.mp3": ("libmp3lame", {"form": "mp3", "write_id3v1": "1"}),
        "browser.webm": ("libopus", {"form": "webm", "live": "1"}),
        "fragments.mp4": ("aac", {"movflags": "frag_keyframe+empty_moov"}),
        "front.m4a": ("aac", {"movflags": "faststart"}),
        "media.wma": ("mp2", {}),
    }
    for name, (codec, options) in kinds.items():
        path = mux(tmp_path / name, codec, [[(0.0, wave)]], **options)
        assert check_container(str(path)).cut_off is None, name
        assert len(read_both(path)) == pytest.approx(3 * RATE, abs=0.2 * RATE)
        content = path.read_bytes()
        for share in (0.3, 0.5, 0.9):
            path.write_bytes(content[: int(share * len(content))])
            with pytest.raises(UserError, match="cut off"):
                load_audio(path)


@pytest.mark.parametrize("suffix", ["ogg", "opus", "mp3", "flac", "aac", "mp2"])
def test_joined_files_are_read_whole(tmp_path, suffix):
    one = write(tmp_path / f"1.{suffix}", tone(300, 2)).read_bytes()
    two = write(tmp_path / f"2.{suffix}", tone(600, 2)).read_bytes()
    path = tmp_path / f"joined.{suffix}"
    path.write_bytes(one + two)
    found = read_both(path)  # AAC and MP2 keep the delay of their encoder
    assert len(found) == pytest.approx(4 * RATE, abs=0.25 * RATE)
    assert [pitch(found, second) for second in (0.5, 1.3)] == [300, 300]
    assert [pitch(found, second) for second in (2.5, 3.3)] == [600, 600]
    assert audio_info(path).seconds == pytest.approx(len(found) / RATE, abs=1e-3)
    assert not can_seek(path) or suffix not in ("ogg", "opus", "mp3", "flac")
    segment = load_audio(path, 2.2, 3.2)
    assert len(segment) == RATE
    assert pitch(segment, 0.3) == 600
    path.write_bytes((one + two)[:-20])
    with pytest.raises(UserError, match="cut off"):
        load_audio(path)


def test_joined_mp3_files_with_tags(tmp_path):
    parts = []
    for name, hertz in (("1.mp3", 300), ("2.mp3", 600)):
        wave = tone(hertz, 2, 48000)
        path = mux(tmp_path / name, "libmp3lame", [[(0.0, wave)]])
        parts.append(path.read_bytes() + b"TAG" + b"title".ljust(125, b"\0"))
    assert parts[1].startswith(b"ID3")
    path = tmp_path / "joined.mp3"
    path.write_bytes(b"".join(parts))
    found = read_both(path)
    assert len(found) == pytest.approx(4 * RATE, abs=0.2 * RATE)
    assert [pitch(found, second) for second in (1, 3)] == [300, 600]


@pytest.mark.parametrize("suffix", ["wav", "aiff", "au", "m4a", "webm", "flv"])
def test_joined_files_that_cannot_be_read_whole_are_refused(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", tone(300, 1))
    path.write_bytes(2 * path.read_bytes())
    with pytest.raises(UserError, match="another recording follows"):
        load_audio(path)
    with pytest.raises(UserError, match="another recording follows"):
        list(stream_audio(path))


def edit_sizes(path: Path, riff: int, data: int) -> None:
    """Write the two sizes of a WAV file with a header of 44 bytes."""
    content = bytearray(path.read_bytes())
    assert content[36:40] == b"data"
    struct.pack_into("<I", content, 4, riff)
    struct.pack_into("<I", content, 40, data)
    path.write_bytes(content)


@pytest.mark.parametrize("extra", [None, 8, 36, 44])
def test_wav_headers_of_recorders(tmp_path, extra):
    """The length is 0, or includes the header."""
    wave = tone(300, 2)
    path = write(tmp_path / "a.wav", wave)
    size = 2 * len(wave)
    if extra is None:
        edit_sizes(path, 36, 0)
    else:
        edit_sizes(path, size + 36 + extra, size + extra)
    np.testing.assert_allclose(read_both(path), wave, atol=1e-4)
    assert audio_info(path).seconds == pytest.approx(2, abs=1e-3)


def test_wav_header_that_was_not_updated_is_refused(tmp_path):
    path = write(tmp_path / "a.wav", tone(300, 3))
    edit_sizes(path, 36 + 2 * RATE, 2 * RATE)
    with pytest.raises(UserError, match=r"64000 bytes follow the 1.00 s"):
        load_audio(path)


def test_wav_with_chunks_after_the_sound(tmp_path):
    path = write(tmp_path / "a.wav", tone(300, 1))
    expected = load_audio(path)
    chunk = b"LIST" + struct.pack("<I", 100000) + bytes(range(100)) * 1000
    path.write_bytes(path.read_bytes() + chunk)
    np.testing.assert_array_equal(read_both(path), expected)


def test_opus_without_its_end_mark(tmp_path):
    """The last page of a live stream has no end mark."""
    path = write(tmp_path / "a.opus", tone(300, 2))
    content = path.read_bytes()
    last = content.rindex(b"OggS")
    path.write_bytes(content[:last])  # ends between two pages
    assert check_container(str(path)) == Container()
    whole = len(read_both(path))
    assert RATE // 2 < whole <= 2 * RATE


def test_layout_changes_in_mid_file(tmp_path):
    parts = [
        mux(tmp_path / f"{layout}.ts", "aac", [[(0.0, tone(hertz, 2, 48000))]],
            layout=layout, form="mpegts").read_bytes()
        for layout, hertz in (("mono", 300), ("stereo", 600))
    ]  # fmt: skip
    path = tmp_path / "a.ts"
    path.write_bytes(b"".join(parts))
    found = read_both(path)
    assert len(found) == pytest.approx(4 * RATE, abs=0.1 * RATE)
    assert [pitch(found, second) for second in (0.5, 1.3)] == [300, 300]
    assert [pitch(found, second) for second in (2.5, 3.3)] == [600, 600]
    assert audio_info(path).channels == 1


def test_rate_changes_in_mid_file(tmp_path):
    parts = [
        mux(tmp_path / f"{rate}.aac", "aac", [[(0.0, tone(hertz, 2, rate))]], rate)
        for rate, hertz in ((48000, 300), (16000, 600), (22050, 900))
    ]
    path = tmp_path / "a.aac"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    found = read_both(path)
    assert len(found) == pytest.approx(6 * RATE, abs=0.2 * RATE)
    assert [pitch(found, second) for second in (1, 3, 5)] == [300, 600, 900]
    segment = load_audio(path, 2.5, 3.5)
    assert (len(segment), pitch(segment, 0.2)) == (RATE, 600)


@pytest.mark.parametrize("seconds", [1, 30])
def test_blocks_and_segments_of_mp3_equal_the_whole(tmp_path, seconds):
    """After a seek libsndfile silences frames that use bits of earlier ones."""
    times = np.arange(seconds * RATE) / RATE
    wave = tone(300, seconds) * (1 + np.sin(6 * np.pi * times)) / 2
    path = write(tmp_path / "a.mp3", wave)
    expected = soundfile.read(path, dtype="float32")[0]  # at once, without a seek
    np.testing.assert_allclose(read_both(path), expected, atol=1e-5)
    segment = load_audio(path, seconds / 3, seconds / 2)
    first, last = round(seconds / 3 * RATE), round(seconds / 2 * RATE)
    np.testing.assert_allclose(segment, expected[first:last], atol=1e-5)


def test_codecs_without_a_decoder(tmp_path):
    path = write(tmp_path / "a.wav", tone(300, 1))
    content = bytearray(path.read_bytes())
    struct.pack_into("<H", content, 20, 0x7FFF)  # codec tag
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.wav: no decoder for the codec"):
        load_audio(path)


def test_headers_with_impossible_rates(tmp_path):
    for rate in (1, 2_000_000_000):
        soundfile.write(tmp_path / "a.wav", tone(300, 1), rate)
        with pytest.raises(UserError, match=f"a sampling rate of {rate} Hz"):
            load_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("name", ["a.au", "a.snd", "a.raw", "a.wav"])
def test_bytes_that_are_no_audio(tmp_path, name):
    (tmp_path / name).write_bytes(np.random.default_rng(0).bytes(20000))
    with pytest.raises(UserError, match=r"not a readable audio file|no audio stream"):
        load_audio(tmp_path / name)


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "m4a", "webm", "aac", "ts"])
def test_pipes_read_the_formats_of_files(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", tone(300, 2))
    piped = load_audio(f"cat {path} |", allow_pipes=True)
    np.testing.assert_array_equal(piped, load_audio(path))
    segment = load_audio(f"cat {path} |", 0.5, 1.5, allow_pipes=True)
    np.testing.assert_array_equal(segment, load_audio(path, 0.5, 1.5))
    half = int(0.53 * path.stat().st_size) | 1
    with pytest.raises(UserError, match=r"head .* \|: (cut off|not a readable)"):
        load_audio(f"head -c {half} {path} |", allow_pipes=True)


def test_hanging_pipe_is_ended_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(audio_sources, "PIPE_SECONDS", 0.3)
    for command in ("sleep 60; true", "exec >&-; sleep 60; true"):
        begin = time.monotonic()
        with pytest.raises(UserError, match=r"printed nothing for 0\.3 s"):
            load_audio(f"echo $$ > {tmp_path}/pid; {command} |", allow_pipes=True)
        assert time.monotonic() - begin < 10
        group = (tmp_path / "pid").read_text().strip()
        while running := processes_of(group):  # a killed process takes a moment to end
            assert time.monotonic() - begin < 20, running


def processes_of(group: str) -> list[str]:
    """Return the states of the running processes of a group."""
    listed = subprocess.run(
        ["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True
    )
    rows = [line.split() for line in listed.stdout.splitlines()]
    return [state for number, state in rows if number == group and state[0] != "Z"]


def test_slow_pipe_is_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(audio_sources, "PIPE_SECONDS", 2.0)
    path = write(tmp_path / "a.wav", tone(300, 1))
    slow = f"head -c 1000 {path}; sleep 0.5; tail -c +1001 {path} |"
    np.testing.assert_array_equal(load_audio(slow, allow_pipes=True), load_audio(path))


def test_pipe_does_not_read_standard_input():
    with pytest.raises(UserError, match="printed nothing"):
        load_audio("cat |", allow_pipes=True)


def test_named_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(UserError, match="a pipe or device, not an audio file"):
        load_audio(tmp_path / "a.wav")


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_file_names_of_any_bytes(tmp_path):
    for suffix in ("wav", "m4a"):
        path = write(tmp_path / f"a.{suffix}", tone(300, 1))
        odd = os.fsdecode(os.fsencode(tmp_path) + b"/\x83A." + suffix.encode())
        os.rename(path, odd)
        assert len(read_both(odd)) == pytest.approx(RATE, abs=0.1 * RATE)
