"""Scale of the samples, channels that cancel each other, silence."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import soundfile
import torch
from audio_files import RATE

from speechllm.audio import load_audio, stream_audio
from speechllm.audio.io import check_waveform
from speechllm.audio.segmentation import Cutting, speech_segments
from speechllm.audio.signal_checks import PeakMeter
from speechllm.utils.errors import UserError

WAVE = (0.3 * np.sin(np.arange(2 * RATE) / 7)).astype(np.float32)


def read_both(path) -> tuple[np.ndarray, list[str]]:
    """Return the samples and the messages, the same from both functions."""
    messages: list[str] = []
    streamed: list[str] = []
    whole = load_audio(path, report=messages.append)
    parts = list(stream_audio(path, report=streamed.append))
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=2e-5)
    assert messages == streamed
    return whole, messages


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint8", "uint16"])
def test_integers_are_scaled_as_libsndfile_scales_them(tmp_path, dtype):
    bits = np.iinfo(dtype).bits
    integers = np.round(WAVE * 2.0 ** (bits - 1))
    if dtype.startswith("u"):
        integers += 2 ** (bits - 1)
    integers = integers.astype(dtype)
    found = check_waveform(integers, report=pytest.fail)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, WAVE, atol=1.0 / 2 ** (bits - 1))
    subtype = {"uint8": "PCM_U8", "int16": "PCM_16", "int32": "PCM_32"}.get(dtype)
    if subtype is not None:
        path = tmp_path / "a.wav"
        soundfile.write(path, WAVE, RATE, subtype=subtype)
        raw = np.frombuffer(path.read_bytes()[-integers.nbytes :], dtype)
        np.testing.assert_array_equal(check_waveform(raw), load_audio(path))


@pytest.mark.parametrize(
    ("make", "scale"),
    [
        (lambda wave: wave, 1),
        (lambda wave: wave.astype(np.float64), 1),
        (lambda wave: wave.astype(np.float16), 1),
        (lambda wave: wave.astype(">f4"), 1),
        (lambda wave: wave[::-1][::-1], 1),
        (lambda wave: wave.tolist(), 1),
        (torch.from_numpy, 1),
        (lambda wave: torch.from_numpy(wave).requires_grad_(), 1),
        (lambda wave: torch.from_numpy(wave).bfloat16(), 1),
        (lambda wave: (torch.from_numpy(wave) * 32768).short(), 32768),
        (lambda wave: np.round(wave * 32768).astype(np.int64), 32768),
        (lambda wave: np.round(wave * 32768), 32768),
        (lambda wave: wave * 32768, 32768),
        (lambda wave: wave * 50000, 32768),
    ],
)
def test_arrays_of_any_dtype(make, scale):
    messages: list[str] = []
    found = check_waveform(make(WAVE), report=messages.append)
    expected = np.asarray(
        WAVE * (50000 / 32768 if messages and found.max() > 0.4 else 1)
    )
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert found.dtype == np.float32
    wide = not isinstance(make(WAVE), torch.Tensor)
    assert bool(messages) == (scale != 1 and wide)
    if messages:
        assert messages[0].endswith("they are divided by 32768")


@pytest.mark.parametrize(
    "bad",
    [
        WAVE > 0, WAVE.astype(np.complex64), WAVE.astype(object), b"abc", None, 5,
        {"array": WAVE}, np.array(["a"]), np.stack([WAVE, WAVE]), WAVE[:0],
        np.float32(1), WAVE * np.float32(1e30), np.full(9, np.nan), [[1.0], [1.0, 2.0]],
        torch.zeros(9, device="meta"),
    ],
)  # fmt: skip
def test_other_inputs_are_refused(bad):
    with pytest.raises(UserError):
        check_waveform(bad)


def test_blocks_of_streams_are_scaled_or_refused(speech_file):
    speech = load_audio(speech_file)
    integers = np.round(speech * 32768).astype(np.int16)
    expected = list(speech_segments([integers / np.float32(32768)], Cutting()))
    found = list(speech_segments([integers[:30000], integers[30000:]], Cutting()))
    assert [segment for segment, _ in found] == [segment for segment, _ in expected]
    np.testing.assert_array_equal(found[0][1], expected[0][1])
    with pytest.raises(UserError, match="divide samples in the scale of int16"):
        list(speech_segments([speech * 32768], Cutting()))
    for value in (np.nan, np.inf):
        with pytest.raises(UserError, match="NaN or infinite"):
            list(speech_segments([np.full(9, value, np.float32)], Cutting()))


@pytest.mark.parametrize(
    ("peak", "whole", "scale"),
    [
        (0.5, False, 1), (1.0, True, 1), (3.9, False, 1), (8.0, False, 8.0),
        (100.5, False, 2**15), (40000.5, False, 40000.5), (2.0, True, 2**15),
        (32768.0, True, 2**15), (32769.0, True, 2**23), (2.0**31, True, 2**31),
    ],
)  # fmt: skip
def test_full_scale_by_the_peak(peak, whole, scale):
    meter = PeakMeter()
    meter.add(np.array([0.0, -peak, np.nan]))
    meter.whole_numbers = whole
    assert meter.full_scale() == scale


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("container", ["WAV", "AIFF", "MKV"])
def test_float_files_in_the_scale_of_int16(tmp_path, subtype, container):
    path = tmp_path / f"a.{container.lower()}"
    if container == "MKV":
        import av

        with av.open(str(path), "w") as output:
            codec = {"FLOAT": "pcm_f32le", "DOUBLE": "pcm_f64le"}[subtype]
            stream = output.add_stream(codec, rate=RATE, layout="mono")
            form = {"FLOAT": "flt", "DOUBLE": "dbl"}[subtype]
            data = (WAVE * 32768).astype({"flt": "f4", "dbl": "f8"}[form])
            frame = av.AudioFrame.from_ndarray(data[None], format=form, layout="mono")
            frame.sample_rate = RATE
            output.mux([*stream.encode(frame), *stream.encode(None)])
    else:
        soundfile.write(path, WAVE * 32768, RATE, subtype=subtype, format=container)
    found, messages = read_both(path)
    np.testing.assert_allclose(found, WAVE, atol=1e-6)
    assert len(messages) == 1
    assert "samples up to 9830.4, far above full scale; they are" in messages[0]
    # the whole recording decides, also for a quiet segment
    quiet = WAVE * 32768
    quiet[: RATE // 2] /= 10000
    if container != "MKV":
        soundfile.write(path, quiet, RATE, subtype=subtype, format=container)
        segment = load_audio(path, 0.0, 0.25, report=lambda _: None)
        np.testing.assert_allclose(segment, WAVE[: RATE // 4] / 10000, atol=1e-7)


def test_slight_overload_is_kept(tmp_path):
    soundfile.write(tmp_path / "a.wav", WAVE * 6, RATE, subtype="FLOAT")
    found, messages = read_both(tmp_path / "a.wav")
    np.testing.assert_allclose(found, WAVE * 6, atol=1e-6)
    assert messages == []


def test_unknown_scales_are_refused(tmp_path):
    for factor in (1e6, 1e30):
        soundfile.write(tmp_path / "a.wav", WAVE * factor, RATE, subtype="FLOAT")
        with pytest.raises(UserError, match=r"a\.wav: samples up to .*e\+"):
            load_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("seconds", [2, 25])
@pytest.mark.parametrize("rate", [RATE, 8000])
def test_louder_channel_is_read_where_channels_cancel(tmp_path, seconds, rate):
    rng = np.random.default_rng(0)
    wave = 0.2 * rng.standard_normal(seconds * rate)
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([-0.9 * wave, wave], 1), rate)
    found, messages = read_both(path)
    soundfile.write(tmp_path / "b.wav", wave, rate)
    np.testing.assert_allclose(found, load_audio(tmp_path / "b.wav"), atol=1e-3)
    assert messages == [
        f"{path}: the channels cancel each other; channel 2 is read there instead of "
        "their mean"
    ]


def test_other_stereo_is_averaged(tmp_path):
    rng = np.random.default_rng(0)
    one, two = 0.2 * rng.standard_normal((2, 3 * RATE))
    path = tmp_path / "a.wav"
    for left, right in ((one, two), (one, 0 * two), (one, one), (one, -0.3 * one)):
        channels = np.stack([left, right], 1)
        soundfile.write(path, channels, RATE, subtype="FLOAT")
        found, messages = read_both(path)
        np.testing.assert_allclose(found, channels.mean(1), atol=1e-6)
        assert messages == []
    eight = np.stack([one, *[0 * two] * 7], 1)
    soundfile.write(path, eight, RATE, subtype="FLOAT")
    np.testing.assert_allclose(read_both(path)[0], one / 8, atol=1e-6)


def test_silence_is_reported(tmp_path, caplog):
    soundfile.write(tmp_path / "a.wav", 0 * WAVE, RATE)
    found, messages = read_both(tmp_path / "a.wav")
    assert len(found) == len(WAVE)
    assert "silence" in messages[0]
    with caplog.at_level(logging.WARNING):
        load_audio(tmp_path / "a.wav")
    assert "a.wav: silence, no sample is above -80 dB of full scale" in caplog.text
