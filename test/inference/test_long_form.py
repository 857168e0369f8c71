"""Recordings of any length: read, cut, decoded and joined."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import soundfile
from audio_files import encode_with_ffmpeg

from speechllm import SpeechToText
from speechllm.audio.io import load_audio, stream_audio
from speechllm.audio.segmentation import Cutting, SpeechSegment, speech_segments
from speechllm.decoding.result import Result, Segment, Word
from speechllm.inference.long_form import (
    Transcription,
    _Piece,
    choose_most_probable,
    join,
    merge_texts,
    merge_with_previous,
    transcribe_long,
)
from speechllm.utils.errors import UserError

RATE = 16000
SHORT = {"tokens_per_second": 0.5, "extra_tokens": 2}  # a random model goes on and on


@pytest.fixture(scope="module")
def model(tiny_model) -> SpeechToText:
    return SpeechToText.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def speech(speech_file) -> np.ndarray:
    return load_audio(speech_file)


@pytest.fixture(scope="module")
def lecture(speech) -> np.ndarray:
    """Some forty seconds: eight prompts with a second of silence between them."""
    return np.concatenate([np.zeros(RATE, np.float32), speech] * 9)


def plain(text: str) -> str:
    return " ".join(text.split())


def test_segments_are_decoded_as_if_each_were_alone(model, speech, lecture):
    segments = list(speech_segments([lecture], Cutting()))
    pieces: list[_Piece] = []
    for number, (segment, samples) in enumerate(segments):
        pieces.append(_Piece(segment, samples))
        if number:
            pieces[-1].merged = merge_with_previous(
                *segments[number - 1], segment, samples, 15.0
            )
    for one in [*pieces, *(p.merged for p in pieces if p.merged)]:
        one.result = model.transcribe([one.samples], **SHORT)[0]
    chosen = choose_most_probable(pieces)
    alone = [one.result for one in chosen]
    short = model.transcribe([speech], **SHORT)[0]
    seconds: list[float] = []
    found = list(
        transcribe_long(
            model,
            [[lecture], [speech], [lecture]],
            batch_size=4,
            progress=seconds.append,
            **SHORT,
        )
    )
    assert len(segments) >= 9
    for transcription in (found[0], found[2]):
        result = transcription.result
        assert transcription.error is None
        assert transcription.seconds == len(lecture) / RATE
        assert result.text == " ".join(plain(r.text) for r in alone)
        assert result.tokens == [token for r in alone for token in r.tokens]
        assert result.passages == [
            Segment(p.segment.start, p.segment.end, p.result.text) for p in chosen
        ]
    assert found[1].result.text == short.text
    assert found[1].result.passages == [Segment(0.0, len(speech) / RATE, short.text)]
    assert sum(seconds) == pytest.approx((2 * len(lecture) + len(speech)) / RATE)


def piece(score: float, merged: float | None = None, flags: tuple = ()) -> _Piece:
    result = Result("a", [], score, flags=list(flags))
    other = None if merged is None else piece(merged)
    return _Piece(SpeechSegment(0, 1), None, result, merged=other)


def taken(pieces: list[_Piece]) -> list[str]:
    """The numbers of the pieces, and e.g. 12 where 1 and 2 are taken as one."""
    names = {id(p): str(n) for n, p in enumerate(pieces)}
    names |= {id(p.merged): f"{n - 1}{n}" for n, p in enumerate(pieces) if p.merged}
    return [names[id(p)] for p in choose_most_probable(pieces)]


def test_neighbours_are_one_where_that_is_likelier():
    assert taken([]) == []
    assert taken([piece(-1.0)]) == ["0"]
    assert taken([piece(-1.0), piece(-2.0, merged=-3.5)]) == ["0", "1"]
    assert taken([piece(-1.0), piece(-2.0, merged=-2.5)]) == ["01"]
    # 0 and 1 as one gain 1, 1 and 2 gain 3, 2 and 3 gain 1.5
    chain = [piece(-1.0), piece(-3.0, -3.0), piece(-3.0, -3.0), piece(-2.0, -3.5)]
    assert taken(chain) == ["0", "12", "3"]
    # but the first two and the last two gain more
    chain = [piece(-1.0), piece(-3.0, -1.0), piece(-3.0, -3.0), piece(-2.0, -3.0)]
    assert taken(chain) == ["01", "23"]
    # scores of what the guard changed are of another kind
    flagged = piece(-9.0, flags=("too long",))
    assert taken([flagged, piece(-2.0, merged=-1.0)]) == ["0", "1"]
    failed = piece(-2.0, merged=-1.0)
    failed.merged.result, failed.merged.error = None, "too long"
    assert taken([piece(-1.0), failed]) == ["0", "1"]


def test_close_neighbours_as_one_lie_where_they_lay():
    rng = np.random.default_rng(0)
    whole = rng.normal(size=3 * RATE).astype(np.float32)
    left, right = SpeechSegment(5.0, 6.0), SpeechSegment(6.05, 8.0)
    samples = whole[:RATE], whole[RATE + 800 :]
    merged = merge_with_previous(left, samples[0], right, samples[1], longest=15.0)
    assert merged.segment == SpeechSegment(5.0, 8.0)
    assert len(merged.samples) == len(whole)
    different = merged.samples != whole
    assert not different[:RATE].any() and not different[RATE + 800 :].any()
    assert not merged.samples[RATE : RATE + 800].any()
    assert merge_with_previous(left, samples[0], right, samples[1], longest=2.9) is None
    far = SpeechSegment(6.2, 8.15)
    assert merge_with_previous(left, samples[0], far, samples[1], longest=15.0) is None
    overlap = SpeechSegment(5.5, 7.45)
    assert (
        merge_with_previous(left, samples[0], overlap, samples[1], longest=15.0) is None
    )


def test_no_segment_is_longer_than_the_encoder_takes(model, speech):
    endless = np.concatenate([speech[8000:40000]] * 20)  # 40 s, Whisper takes 30
    [found] = transcribe_long(model, [[endless]], max_seconds=1000, **SHORT)
    assert found.error is None
    assert all(p.end - p.start <= 30 for p in found.result.passages)


def test_silence_has_no_text(model):
    silent, short = np.zeros(40 * RATE, np.float32), np.zeros(800, np.float32)
    for found in transcribe_long(model, [[silent], [short], []]):
        assert (found.result.text, found.result.passages) == ("", [])
        assert found.result.flags == ["no speech"]


def test_results_come_as_soon_as_they_are_there(model, speech):
    read = []

    def streams():
        for number in range(20):
            read.append(number)
            yield [speech[:16000]]

    found = transcribe_long(model, streams(), batch_size=2, **SHORT)
    assert isinstance(next(found), Transcription)
    assert len(read) == 16  # 8 batches are read ahead
    assert len(list(found)) == 19


def test_what_is_read_before_an_error_is_kept(model, lecture):
    def breaks_off():
        yield lecture[: 20 * RATE]
        raise UserError("a.wav: cut off")

    def nothing():
        raise UserError("b.wav: empty")
        yield

    broken, empty, whole = transcribe_long(
        model, [breaks_off(), nothing(), [lecture[: 20 * RATE]]], **SHORT
    )
    assert (broken.error, broken.seconds) == ("a.wav: cut off", 20.0)
    assert broken.result.passages == whole.result.passages
    assert broken.result.text == whole.result.text
    assert broken.result.score == pytest.approx(whole.result.score)
    assert (empty.result, empty.error) == (None, "b.wav: empty")


def test_a_video_a_telephone_call_and_a_studio_recording(model, lecture, tmp_path):
    import soxr

    video = encode_with_ffmpeg(tmp_path / "a.mkv", lecture, "aac", video=True)
    narrow = soxr.resample(lecture, RATE, 8000)
    soundfile.write(tmp_path / "a-law.wav", narrow, 8000, subtype="ALAW")
    soundfile.write(tmp_path / "mu-law.wav", narrow, 8000, subtype="ULAW")
    wide = soxr.resample(lecture, RATE, 48000)
    soundfile.write(tmp_path / "studio.wav", np.stack([wide, wide], 1), 48000)
    files = [video, *sorted(tmp_path.glob("*.wav"))]
    expected = [s for s, _ in speech_segments([lecture], Cutting())]
    for found in transcribe_long(
        model, [stream_audio(file) for file in files], **SHORT
    ):
        assert found.error is None
        assert found.seconds == pytest.approx(len(lecture) / RATE, abs=0.1)
        starts = [passage.start for passage in found.result.passages]
        assert 9 <= len(starts) <= len(expected) + 2  # neighbours may be one
        for prompt in range(9):  # each is found where it begins
            begin = 1 + prompt * len(lecture) / RATE / 9
            assert min(abs(start - begin) for start in starts) < 0.4


def test_unknown_requests_are_refused_before_anything_is_read(model):
    def untouched():
        raise AssertionError
        yield

    for request in ({"task": "sing"}, {"language": "xx"}, {"max_seconds": 0.1}):
        with pytest.raises(UserError):
            list(transcribe_long(model, untouched(), **request))


TWO_HOURS = """
import resource, sys
from speechllm import Result, SpeechToText, transcribe_long
from speechllm.audio import stream_audio

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def note(seconds):
    global done, early
    done += seconds
    if early is None and done > 600:
        early = peak()

done, early = 0.0, None
model = SpeechToText.from_pretrained(sys.argv[1])
model.transcribe = lambda waves, **_: [Result("word", [], 0.0) for _ in waves]
[found] = transcribe_long(model, [stream_audio(sys.argv[2])], progress=note)
print(found.seconds, len(found.result.passages), early, peak())
"""


@pytest.mark.slow
def test_two_hours_take_no_more_memory_than_ten_minutes(tiny_model, speech, tmp_path):
    """A telephone call of two hours; as float32 samples it would be 460 MB."""
    minute = np.resize(np.concatenate([speech[::2], np.zeros(4000)]), 60 * 8000)
    path = tmp_path / "call.wav"
    with soundfile.SoundFile(path, "w", 8000, 1, "ULAW") as call:
        for _ in range(120):
            call.write(minute)
    command = [sys.executable, "-c", TWO_HOURS, tiny_model, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, passages, early, peak = map(float, done.stdout.split())
    assert seconds == 7200
    assert passages > 1000
    assert peak - early < 30  # MB


def test_words_are_shifted_and_texts_joined():
    one = Result(
        "Hello there.", ["a"], -1.0, "hello there", flags=["odd"], confidence=0.5,
        words=[Word("Hello", 0.1, 0.4, 0.9), Word("there.", 0.5, 0.8, 0.8)],
    )  # fmt: skip
    two = Result(
        "Bye.", ["b"], -2.0, "bye", words=[Word("Bye.", 0.2, 0.5, 0.7)],
        unguarded="Bye bye bye.", confidence=1.0,
    )  # fmt: skip
    pieces = [(SpeechSegment(1.0, 2.0), one), (SpeechSegment(10.0, 11.0), two)]
    found = join(pieces, "en", "en")
    assert found.text == "Hello there. Bye."
    assert found.ctc_text == "hello there bye"
    assert found.unguarded == "Hello there. Bye bye bye."
    assert (found.score, found.tokens, found.flags) == (-3.0, ["a", "b"], ["odd"])
    assert [(w.text, w.start, w.end) for w in found.words] == [
        ("Hello", 1.1, 1.4), ("there.", 1.5, 1.8), ("Bye.", 10.2, 10.5),
    ]  # fmt: skip
    assert found.confidence == pytest.approx((0.5 * 12 + 1.0 * 4) / 16)
    assert [(p.start, p.end) for p in found.passages] == [(1.0, 2.0), (10.0, 11.0)]
    dogs = [(SpeechSegment(i, i + 1), Result("犬", [], 0.0)) for i in (0, 2)]
    assert join(dogs, "ja", "ja").text == "犬犬"


@pytest.mark.parametrize(
    ("left", "right", "language", "expected"),
    [
        (
            "we went to the river and saw a big",
            "and saw a big old bear there",
            "en",
            ("we went to the river and saw a big", "old bear there"),
        ),
        (  # the word that the window cut is another one on each side
            "we went to the river and saw a pig",
            "River and saw, a big old bear there",
            "en",
            ("we went to the river and saw a", "big old bear there"),
        ),
        (  # nothing in common: half of what the overlap holds from each
            "a b c d e f g h i j",
            "k l m n o p q r s t",
            "en",
            ("a b c d e f g h i", "l m n o p q r s t"),
        ),
        (
            "昨日は川へ行って熊",
            "へ行って熊を見た",
            "ja",
            ("昨日は川へ行って熊", "を見た"),
        ),
        ("", "one two", "en", ("", "one two")),
        ("one two", "", "en", ("one two", "")),
    ],
)
def test_texts_of_windows_that_overlap_are_merged(left, right, language, expected):
    share = 0.5 if "river" in left or language == "ja" else 0.2
    assert merge_texts(left, right, (share, share), language) == expected


def test_words_of_an_overlap_are_taken_once_by_their_times():
    names = ["one", "two", "three", "four", "five", "six"]
    words = [Word(n, i, i + 0.8, 1.0) for i, n in enumerate(names)]

    def heard(begin: int, end: int, delay: float) -> tuple[SpeechSegment, Result]:
        inner = [
            Word(w.text, w.start - begin + delay, w.end - begin + delay, 1.0)
            for w in words[begin:end]
        ]
        text = " ".join(names[begin:end])
        return SpeechSegment(begin, end), Result(text, [], 0.0, words=inner)

    for delay in (-0.2, -0.05, 0.0, 0.05, 0.2):
        found = join([heard(0, 4, delay), heard(2, 6, -delay)], "en", "en")
        assert found.text == " ".join(names)
        assert [w.text for w in found.words] == names
        assert [(p.start, p.end) for p in found.passages] == [(0, 3.0), (3.0, 6)]
