"""Audio reading: all formats give the same waveform, all defects a clear error."""

from __future__ import annotations

import re
from pathlib import Path

import kaldiio
import numpy as np
import pytest
import soundfile
from audio_files import RATE, encode_with_ffmpeg, mux_one_picture

from speechllm.audio.io import (
    audio_info,
    change_speed,
    encode_audio,
    load_audio,
    seconds_by_header,
    stream_audio,
)
from speechllm.utils.errors import UserError


@pytest.fixture(scope="module")
def speech(speech_file) -> np.ndarray:
    return load_audio(speech_file)


def write(path: Path, samples: np.ndarray, rate: int = RATE, **options) -> Path:
    soundfile.write(path, samples, rate, **options)
    return path


def tone(frequency: float, seconds: float, rate: int) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    length = min(len(one), len(other))
    return float(np.corrcoef(one[:length], other[:length])[0, 1])


def test_g722_is_mono_16_khz_speech(speech, speech_file):
    assert speech.dtype == np.float32
    assert speech.ndim == 1
    assert len(speech) == 2 * speech_file.stat().st_size
    assert 0.01 < np.sqrt(np.mean(speech**2)) < 0.5
    info = audio_info(speech_file)
    assert (info.rate, info.channels) == (RATE, 1)
    assert info.seconds == pytest.approx(len(speech) / RATE)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_formats_of_soundfile(tmp_path, speech, suffix):
    loaded = load_audio(write(tmp_path / f"a.{suffix}", speech))
    assert correlation(loaded, speech) > 0.98
    assert len(loaded) == pytest.approx(len(speech), abs=0.1 * RATE)


@pytest.mark.parametrize(
    ("name", "codec", "video"), [("a.m4a", "aac", False), ("a.mp4", "aac", True)]
)
def test_formats_of_ffmpeg(tmp_path, speech, name, codec, video):
    path = encode_with_ffmpeg(tmp_path / name, speech, codec, video)
    loaded = load_audio(path)
    assert abs(len(loaded) - len(speech)) < 0.2 * RATE
    assert max(correlation(loaded[lag:], speech) for lag in (0, 1024)) > 0.95
    assert audio_info(path).seconds == pytest.approx(len(speech) / RATE, abs=0.2)


def test_8_khz_is_resampled_to_16(tmp_path):
    loaded = load_audio(write(tmp_path / "a.wav", tone(440, 1, 8000), 8000))
    assert len(loaded) == RATE
    assert correlation(loaded, tone(440, 1, RATE)) > 0.999


def test_stereo_is_averaged_or_one_channel_selected(tmp_path):
    left, right = tone(440, 1, RATE), tone(1000, 1, RATE)
    path = write(tmp_path / "a.wav", np.stack([left, right], axis=1), subtype="FLOAT")
    assert audio_info(path).channels == 2
    np.testing.assert_allclose(load_audio(path), (left + right) / 2, atol=1e-6)
    np.testing.assert_allclose(load_audio(path, channel=1), right, atol=1e-6)
    with pytest.raises(UserError, match="no channel 2"):
        load_audio(path, channel=2)


@pytest.mark.parametrize("suffix", ["wav", "flac", "g722"])
def test_segments_are_the_same_in_every_format(tmp_path, speech, speech_file, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "g722":
        path.write_bytes(speech_file.read_bytes())
    else:
        write(path, speech)
    segment = load_audio(path, 0.5, 1.25)
    np.testing.assert_allclose(segment, speech[8000:20000], atol=1e-4)
    seconds = len(speech) / RATE
    assert len(load_audio(path, 0.5, seconds + 0.4)) == len(speech) - 8000
    with pytest.raises(UserError, match=f"ends at .* is {seconds:.2f} s long"):
        load_audio(path, 0.5, seconds + 0.6)
    with pytest.raises(UserError, match="begins at"):
        load_audio(path, seconds + 1, seconds + 2)
    with pytest.raises(UserError, match="empty or negative"):
        load_audio(path, 1, 1)


def test_kaldi_archives(tmp_path, speech):
    with kaldiio.WriteHelper(f"ark,scp:{tmp_path}/a.ark,{tmp_path}/a.scp") as writer:
        writer("one", (RATE, (speech * 32768).astype(np.int16)))
        writer("two", (RATE, (speech[::-1] * 32768).astype(np.int16)))
    for line, expected in zip(
        (tmp_path / "a.scp").read_text().splitlines(), (speech, speech[::-1])
    ):
        source = line.split()[1]
        np.testing.assert_allclose(load_audio(source), expected, atol=1e-4)
        assert audio_info(source).seconds == pytest.approx(len(speech) / RATE)


def test_pickled_archives_are_rejected(tmp_path):
    (tmp_path / "a.ark").write_bytes(b"one PKL\x80\x04N.")
    with pytest.raises(UserError, match="pickled archives are refused"):
        load_audio(f"{tmp_path}/a.ark:4")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0B",
        b"\0BFM \4\xff\xff\xff\x7f",
        b"RIFF\0\0\0\0WAVE",
        b"NPY",
        b"AUDIO",
        b"?",
    ],
)
def test_damaged_archives_are_named(tmp_path, content):
    (tmp_path / "a.ark").write_bytes(b"one " + content)
    with pytest.raises(UserError, match=r"a\.ark:4: "):
        load_audio(f"{tmp_path}/a.ark:4")


def test_pipes_run_only_if_allowed(tmp_path, speech):
    write(tmp_path / "a.wav", speech)
    command = f"cat {tmp_path}/a.wav |"
    with pytest.raises(UserError, match="only when pipes are allowed"):
        load_audio(command)
    np.testing.assert_allclose(load_audio(command, allow_pipes=True), speech, atol=1e-4)
    with pytest.raises(UserError, match="status 3: nothing here"):
        load_audio("echo nothing here >&2; exit 3 |", allow_pipes=True)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.wav: the audio file does not exist"):
        load_audio(tmp_path / "none.wav")
    with pytest.raises(UserError, match="a folder"):
        load_audio(tmp_path)


@pytest.mark.parametrize("suffix", ["wav", "flac", "g722", "mp3"])
def test_empty_file(tmp_path, suffix, capfd):
    (tmp_path / f"a.{suffix}").touch()
    with pytest.raises(UserError, match="empty"):
        load_audio(tmp_path / f"a.{suffix}")
    assert seconds_by_header(tmp_path / f"a.{suffix}") is None
    assert capfd.readouterr().err == ""  # PyAV prints tracebacks of its own


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, "a"])
def test_times_and_rates_that_are_no_numbers(speech_file, value):
    for start, end in ((value, None), (None, value)):
        with pytest.raises(UserError, match="is not a time in seconds"):
            load_audio(speech_file, start, end)
    for rate in (value, 0, -1):
        with pytest.raises(UserError, match="sampling_rate"):
            load_audio(speech_file, sampling_rate=rate)
        with pytest.raises(UserError, match="sampling_rate"):
            next(stream_audio(speech_file, rate))


def test_zero_samples(tmp_path):
    path = write(tmp_path / "a.wav", np.zeros(0))
    with pytest.raises(UserError, match=r"a\.wav: the recording has no samples"):
        load_audio(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_are_rejected(tmp_path, value):
    samples = tone(440, 1, RATE)
    samples[17] = value
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    with pytest.raises(UserError, match="1 samples are NaN or infinite.* sample 17"):
        load_audio(path)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_error_of_a_truncated_file_gives_both_lengths(tmp_path, speech, suffix):
    path = write(tmp_path / f"a.{suffix}", speech)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"(cut off|damaged)") as error:
        load_audio(path)
    if suffix == "wav":
        expected, found = map(float, re.findall(r"([\d.]+) s", str(error.value)))
        assert expected == pytest.approx(len(speech) / RATE, abs=0.01)
        assert found == pytest.approx(expected / 2, abs=0.01)


def test_truncated_m4a(tmp_path, speech):
    path = encode_with_ffmpeg(tmp_path / "a.m4a", speech, "aac")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="a.m4a"):
        load_audio(path)


def test_wav_from_a_pipe_may_have_an_unknown_length(tmp_path, speech):
    path = write(tmp_path / "a.wav", speech)
    content = bytearray(path.read_bytes())
    position = content.index(b"data") + 4
    content[position : position + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert len(load_audio(path)) == len(speech)


def test_text_file_is_not_audio(tmp_path):
    (tmp_path / "a.wav").write_text("this is no audio at all\n" * 100)
    with pytest.raises(UserError, match=r"a\.wav: not a readable audio file"):
        load_audio(tmp_path / "a.wav")


def test_video_without_audio(tmp_path):
    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        mux_one_picture(container)
    with pytest.raises(UserError, match="no audio stream"):
        load_audio(tmp_path / "a.mp4")


def test_speed_changes_tempo_and_pitch():
    slow = change_speed(tone(440, 2, RATE).astype(np.float32), 0.8)
    assert len(slow) == pytest.approx(2 * RATE / 0.8, abs=2)
    peak = np.argmax(np.abs(np.fft.rfft(slow))) * RATE / len(slow)
    assert peak == pytest.approx(440 * 0.8, abs=1)


def test_encoding_clips(tmp_path):
    path = tmp_path / "a.flac"
    path.write_bytes(encode_audio(np.full(100, 1.5, np.float32), "flac", RATE))
    assert load_audio(path).min() > 0.99


def streamed(source) -> tuple[np.ndarray, str | None]:
    """Return all samples of a stream and the message of its error, if any."""
    blocks, problem = [np.zeros(0, np.float32)], None
    try:
        for block in stream_audio(source):
            assert block.dtype == np.float32
            blocks.append(block)
    except UserError as error:
        problem = str(error)
    return np.concatenate(blocks), problem


@pytest.mark.parametrize(
    ("suffix", "rate"),
    [
        *((s, r) for s in ("wav", "flac", "ogg", "mp3") for r in (RATE, 8000, 48000)),
        ("g722", RATE),
        ("mp4", RATE),
    ],
)
def test_stream_equals_loaded_recording(tmp_path, speech, suffix, rate):
    path, samples = tmp_path / f"a.{suffix}", np.tile(speech, 9)  # several blocks
    if suffix in ("g722", "mp4"):
        codec, form = {"g722": ("g722", None), "mp4": ("aac", True)}[suffix]
        encode_with_ffmpeg(path, samples, codec, form)
    else:
        stereo = np.stack([samples, samples[::-1]], axis=1)
        write(path, stereo, rate)
    found, problem = streamed(path)
    assert problem is None
    np.testing.assert_allclose(found, load_audio(path), atol=2e-5)
    if suffix != "g722":
        assert seconds_by_header(path) == pytest.approx(len(found) / RATE, abs=0.2)


@pytest.mark.parametrize("quiet", ["first", "last"])
@pytest.mark.parametrize("xing", ["0", "1"])
def test_length_of_variable_bit_rates(tmp_path, quiet, xing):
    """FFmpeg estimates it by the bit rate of the first frames."""
    import av

    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 6 * RATE)
    noise[: 3 * RATE] = 0
    samples = noise if quiet == "first" else noise[::-1]
    options = {"bitrate_mode": "VARIABLE", "compression_level": 0.5}
    encoded = write(tmp_path / "whole.mp3", samples, **options)
    path = tmp_path / "a.mp3"
    with (
        av.open(encoded) as whole,
        av.open(path, "w", options={"write_xing": xing}) as copy,
    ):
        stream = copy.add_stream_from_template(whole.streams.audio[0])
        for packet in whole.demux():
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    assert seconds_by_header(path) == pytest.approx(6.0, abs=0.2)
    if xing == "0":
        assert abs(seconds_by_header(path, estimated=True) - 6.0) > 0.5
    aac = encode_with_ffmpeg(tmp_path / "a.aac", samples, "aac")
    assert seconds_by_header(aac) is None
    assert audio_info(aac).seconds == pytest.approx(6.0, abs=0.2)


def test_stream_of_a_kaldi_archive(tmp_path, speech):
    with kaldiio.WriteHelper(f"ark,scp:{tmp_path}/a.ark,{tmp_path}/a.scp") as writer:
        writer("one", (8000, (speech * 32768).astype(np.int16)))
    source = (tmp_path / "a.scp").read_text().split()[1]
    np.testing.assert_allclose(streamed(source)[0], load_audio(source), atol=2e-5)


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "m4a"])
def test_truncated_stream_yields_all_readable_samples(tmp_path, speech, suffix):
    path, samples = tmp_path / f"a.{suffix}", np.tile(speech, 9)
    if suffix == "m4a":
        encode_with_ffmpeg(path, samples, "aac")
    else:
        write(path, samples)
    whole = load_audio(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found, problem = streamed(path)
    if suffix == "m4a":  # its index is at the end of the file
        assert len(found) == 0
        assert "a.m4a: cut off, the header states" in problem
        return
    assert len(found) == pytest.approx(len(whole) / 2, rel=0.15)
    inner = slice(0, len(found) - RATE // 10)
    np.testing.assert_allclose(found[inner], whole[inner], atol=1e-4)
    assert "a." + suffix + ": cut off" in problem


@pytest.mark.parametrize("encoding", ["ALAW", "ULAW"])
def test_telephone_speech(tmp_path, speech, encoding):
    import soxr

    narrow = soxr.resample(speech, RATE, 8000)
    path = write(tmp_path / "a.wav", narrow, 8000, subtype=encoding)
    found, problem = streamed(path)
    assert problem is None
    assert correlation(found, soxr.resample(narrow, 8000, RATE)) > 0.99


@pytest.mark.parametrize("source", ["none.wav", "empty.wav", "text.wav", "nan.wav"])
def test_unreadable_stream_is_an_error(tmp_path, source):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("this is no audio at all\n" * 100)
    write(tmp_path / "nan.wav", np.full(100, np.nan), subtype="FLOAT")
    found, problem = streamed(tmp_path / source)
    assert len(found) == 0
    assert source in problem
    with pytest.raises(UserError) as error:
        load_audio(tmp_path / source)
    assert str(error.value) == problem
