"""Live transcription: blocks of a pipe, segments as their pauses come."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from audio_files import encode_with_ffmpeg

from speechllm import SpeechToText, cli
from speechllm.audio.io import load_audio
from speechllm.audio.live import live_blocks
from speechllm.audio.segmentation import Cutting, speech_segments
from speechllm.audio.vad import SECONDS_PER_WINDOW, WINDOW
from speechllm.decoding.result import Result
from speechllm.inference.joining import join
from speechllm.inference.live import transcribe_live
from speechllm.text.tasks import Task
from speechllm.utils.errors import UserError

RATE = 16000
SHORT = {"tokens_per_second": 0.5, "extra_tokens": 2}


@pytest.fixture(scope="module")
def model(tiny_model) -> SpeechToText:
    return SpeechToText.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def talk(speech_file) -> np.ndarray:
    """Return 13 s: three prompts, each after a second of silence."""
    speech = load_audio(speech_file)
    return np.concatenate([np.zeros(RATE, np.float32), speech] * 3)


def pipe_of(content: bytes, step: int = 5000):
    """Return a pipe into which a thread writes."""
    out, into = os.pipe()

    def write() -> None:
        with os.fdopen(into, "wb", buffering=0) as stream:
            for begin in range(0, len(content), step):
                stream.write(content[begin : begin + step])

    threading.Thread(target=write, daemon=True).start()
    return os.fdopen(out, "rb", buffering=0)


def test_raw_samples_arrive_unchanged(talk):
    integers = (talk * 32767).astype("<i2")
    with pipe_of(integers.tobytes(), 4999) as pipe:  # odd: samples are split
        found = np.concatenate(list(live_blocks("raw", pipe)))
    assert np.array_equal(found, integers / np.float32(2**15))


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "mka"])
def test_containers_are_read_from_a_pipe(tmp_path, talk, suffix):
    path = tmp_path / f"talk.{suffix}"
    stereo = np.stack([talk, talk], axis=1)
    if suffix == "mka":
        encode_with_ffmpeg(path, talk, "aac")
    else:
        soundfile.write(path, stereo, RATE)
    with pipe_of(path.read_bytes()) as pipe:
        found = np.concatenate(list(live_blocks("-", pipe)))
    expected = load_audio(path)
    assert abs(len(found) - len(expected)) < 0.1 * RATE
    size = min(len(found), len(expected))
    assert np.abs(found[:size] - expected[:size]).max() < 1e-3


def test_other_rates_are_resampled(tmp_path, talk):
    path = tmp_path / "talk.wav"
    soundfile.write(path, np.repeat(talk, 3), 3 * RATE)
    with pipe_of(path.read_bytes()) as pipe:
        found = np.concatenate(list(live_blocks("-", pipe)))
    expected = load_audio(path)
    assert len(found) == len(expected)
    assert np.abs(found - expected).max() < 1e-3


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "standard input: not a container"),
        (b"hello " * 999, "--stream raw"),
        (b"#EXTM3U\n#EXTINF:9,\nhttp://127.0.0.1:9/a\n", "standard input: "),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "standard input: "),
        (bytes(99_999), "standard input: not a container"),
    ],
)
def test_other_content_is_refused(content, message):
    with pipe_of(content) as pipe, pytest.raises(UserError, match=message):
        list(live_blocks("-", pipe))


def test_segments_come_with_their_pauses(talk):
    """The first segment is there before the second prompt begins."""
    sent: list[float] = []

    def blocks():
        for begin in range(0, len(talk), 1600):
            sent.append(begin / RATE)
            yield talk[begin : begin + 1600]

    ends = []
    for segment, _ in speech_segments(blocks(), Cutting(15.0, 0.5), whole=False):
        ends.append((segment.end, sent[-1]))
    assert len(ends) == 3
    assert all(now - end < 0.8 for end, now in ends)


def test_results_equal_decoding_segment_by_segment(model, talk):
    options, task = model.options(SHORT), Task("asr", "en", "en")
    cutting = Cutting(15.0, 0.5)
    segments = list(speech_segments([talk], cutting, whole=False))
    expected = [model.transcribe([s], **SHORT)[0].text for _, s in segments]
    found = list(transcribe_live(model, [talk], task, options, cutting))
    assert [r.passages[0].text for r in found] == [
        " ".join(t.split()) for t in expected
    ]
    assert [(r.passages[0].start, r.passages[0].end) for r in found] == [
        (s.start, s.end) for s, _ in segments
    ]


def test_overlapping_segments_repeat_nothing(model, speech_file):
    """Without pauses the texts are those of the whole recording."""
    speech = load_audio(speech_file)[RATE // 2 : 3 * RATE // 2]
    talk = np.concatenate([speech] * 6)
    options, task = model.options(SHORT), Task("asr", "en", "en")
    cutting = Cutting(2.0, 5.0)
    segments = list(speech_segments([talk], cutting, whole=False))
    assert any(b.start < a.end for (a, _), (b, _) in zip(segments, segments[1:]))
    alone = [(s, model.transcribe([x], **SHORT)[0]) for s, x in segments]
    found = list(transcribe_live(model, [talk], task, options, cutting))
    assert " ".join(r.passages[0].text for r in found) == join(alone, "en", "en").text


def test_window_that_music_has_shortened_is_merged(monkeypatch):
    """The VAD is not certain of the first two seconds, which are cut off."""
    found = [0.7] * 60 + [1.0] * 900 + [0.0] * 40

    def stream(blocks):
        for index, probability in enumerate(found):
            samples = np.full(WINDOW, index, np.float32)
            yield samples, np.array([[probability], [0.0]])

    def decode(waves, *args, **options):  # a word of half a second for each number
        begin, end = (int(waves[0][i] * SECONDS_PER_WINDOW * 2) for i in (0, -1))
        return [Result(" ".join(map(str, range(begin, end))), [], 0.0)]

    monkeypatch.setattr("speechllm.audio.segmentation.speech_probabilities", stream)
    model, task = SimpleNamespace(decode=decode), Task("asr", "en", "en")
    results = transcribe_live(model, [], task, None, Cutting(15.0, 0.5))
    words = [int(word) for r in results for word in r.text.split()]
    assert words == list(range(words[0], 61))


def test_command_prints_lines_at_once(tiny_model, talk, monkeypatch):
    """The lines of two prompts come while the third one is not there yet."""
    (stdin, audio), (lines, stdout) = os.pipe(), os.pipe()
    arguments = ["--model", str(tiny_model), "--stream", "raw", "--format", "json"]
    arguments += ["--tokens_per_second", "0.5", "--extra_tokens", "2"]
    with (
        os.fdopen(stdin) as given,
        os.fdopen(stdout, "w") as printed,
        os.fdopen(lines) as read,
    ):
        monkeypatch.setattr(sys, "stdin", given)
        monkeypatch.setattr(sys, "stdout", printed)
        thread = threading.Thread(target=run, args=(arguments,))
        thread.start()
        with os.fdopen(audio, "wb", buffering=0) as pipe:
            samples = (talk * 32767).astype("<i2").tobytes()
            pipe.write(samples[: 2 * RATE * 10])
            found = [json.loads(read.readline()) for _ in range(2)]
            pipe.write(samples[2 * RATE * 10 :])
        found.append(json.loads(read.readline()))
        thread.join(60)
    assert [line["id"] for line in found] == [0, 1, 2]
    assert all(line["text"] and line["end"] - line["start"] > 2 for line in found)


def run(arguments: list[str]) -> None:
    cli.main(["transcribe", *arguments])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["a.wav"], "takes no INPUT"),
        (["--output", "x"], "takes no INPUT"),
        (["--track", "1"], "takes no INPUT"),
        (["--format", "srt"], "prints text or json"),
        (["--language", "auto"], "--language auto"),
        (["--language", "xx"], "'xx'"),
        (["--max_seconds", "0"], "max_seconds"),
        (["--pause_seconds", "nan"], "pause_seconds"),
        (["--beam_size", "0"], "beam_size"),
    ],
)
def test_bad_options(tiny_model, arguments, message):
    with pytest.raises(UserError, match=re.escape(message)):
        run(["--model", str(tiny_model), "--stream", "raw", *arguments])


def test_microphone_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(UserError, match="pip install sounddevice"):
        next(live_blocks("mic"))


def test_microphone_is_checked_before_the_model_is_loaded(monkeypatch, tiny_model):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    monkeypatch.setattr(SpeechToText, "from_pretrained", None)
    with pytest.raises(UserError, match="pip install sounddevice"):
        run(["--model", str(tiny_model), "--stream", "mic"])


def test_microphone(monkeypatch, talk):
    class Stream:
        def __init__(self, rate, block, channels):
            assert (rate, channels) == (RATE, 1)
            self.rest = io.BytesIO(talk[: 10 * block].tobytes())

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def read(self, size):
            samples = np.frombuffer(self.rest.read(4 * size), np.float32)
            if not len(samples):
                raise OverflowError("unplugged")
            return samples[:, None], False

    fake = SimpleNamespace(InputStream=Stream, PortAudioError=OverflowError)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    found = []
    with pytest.raises(UserError, match="microphone cannot be used: unplugged"):
        for block in live_blocks("mic"):
            found.append(block)
    assert np.array_equal(np.concatenate(found), talk[:16000])
