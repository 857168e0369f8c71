"""Long-form transcription: segmentation, batching, merging and joining of recordings.

The texts are compared with those of decoding each segment alone.
"""

from __future__ import annotations

import subprocess
import sys
from itertools import chain, pairwise, product

import numpy as np
import pytest
import soundfile
from audio_files import encode_with_ffmpeg
from hypothesis import given
from hypothesis import strategies as st

from speechllm import SpeechToText
from speechllm.audio.io import load_audio, stream_audio
from speechllm.audio.segmentation import Cutting, SpeechSegment, speech_segments
from speechllm.decoding.result import Result, Segment, Word
from speechllm.inference import long_form
from speechllm.inference.joining import join, merge_texts, remove_overlaps
from speechllm.inference.long_form import (
    Piece,
    Transcription,
    choose_most_probable,
    merge_with_previous,
    transcribe_long,
)
from speechllm.inference.subtitles import make_cues
from speechllm.utils.errors import UserError

RATE = 16000
# a random model does not stop by itself
SHORT = {"tokens_per_second": 0.5, "extra_tokens": 2}


@pytest.fixture(scope="module")
def model(tiny_model) -> SpeechToText:
    return SpeechToText.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def speech(speech_file) -> np.ndarray:
    return load_audio(speech_file)


@pytest.fixture(scope="module")
def lecture(speech) -> np.ndarray:
    """Return about forty seconds: nine prompts, each after a second of silence."""
    return np.concatenate([np.zeros(RATE, np.float32), speech] * 9)


def collapse_spaces(text: str) -> str:
    return " ".join(text.split())


def test_segments_equal_decoding_one_by_one(model, speech, lecture):
    segments = list(speech_segments([lecture], Cutting()))
    pieces: list[Piece] = []
    for number, (segment, samples) in enumerate(segments):
        pieces.append(Piece(segment, samples))
        if number:
            pieces[-1].merged = merge_with_previous(
                *segments[number - 1], segment, samples, 15.0
            )
    for item in [*pieces, *(p.merged for p in pieces if p.merged)]:
        item.result = model.transcribe([item.samples], **SHORT)[0]
    chosen = choose_most_probable(pieces)
    alone = [item.result for item in chosen]
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
        assert result.text == " ".join(collapse_spaces(r.text) for r in alone)
        assert result.tokens == [token for r in alone for token in r.tokens]
        assert result.passages == [
            Segment(p.segment.start, p.segment.end, p.result.text) for p in chosen
        ]
    assert found[1].result.text == short.text
    assert found[1].result.passages == [Segment(0.0, len(speech) / RATE, short.text)]
    assert sum(seconds) == pytest.approx((2 * len(lecture) + len(speech)) / RATE)


def piece(score: float, merged: float | None = None, flags: tuple = ()) -> Piece:
    result = Result("a", [], score, flags=list(flags))
    other = None if merged is None else piece(merged)
    return Piece(SpeechSegment(0, 1), None, result, merged=other)


def chosen_indices(pieces: list[Piece]) -> list[str]:
    """Return the indices of the chosen pieces; ``12`` for 1 and 2 merged."""
    names = {id(p): str(n) for n, p in enumerate(pieces)}
    names |= {id(p.merged): f"{n - 1}{n}" for n, p in enumerate(pieces) if p.merged}
    return [names[id(p)] for p in choose_most_probable(pieces)]


def test_segments_are_merged_where_more_probable():
    assert chosen_indices([]) == []
    assert chosen_indices([piece(-1.0)]) == ["0"]
    assert chosen_indices([piece(-1.0), piece(-2.0, merged=-3.5)]) == ["0", "1"]
    assert chosen_indices([piece(-1.0), piece(-2.0, merged=-2.5)]) == ["01"]
    # merging 0 and 1 gains 1, 1 and 2 gains 3, 2 and 3 gains 1.5
    chain = [piece(-1.0), piece(-3.0, -3.0), piece(-3.0, -3.0), piece(-2.0, -3.5)]
    assert chosen_indices(chain) == ["0", "12", "3"]
    # merging the first two and the last two gains more
    chain = [piece(-1.0), piece(-3.0, -1.0), piece(-3.0, -3.0), piece(-2.0, -3.0)]
    assert chosen_indices(chain) == ["01", "23"]
    # scores of flagged results are not comparable
    flagged = piece(-9.0, flags=("too long",))
    assert chosen_indices([flagged, piece(-2.0, merged=-1.0)]) == ["0", "1"]
    failed = piece(-2.0, merged=-1.0)
    failed.merged.result, failed.merged.error = None, "too long"
    assert chosen_indices([piece(-1.0), failed]) == ["0", "1"]


def test_merged_segments_keep_their_times():
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


def test_no_segment_exceeds_the_limit_of_the_encoder(model, speech):
    continuous = np.concatenate([speech[8000:40000]] * 20)  # 40 s, Whisper takes 30
    [found] = transcribe_long(model, [[continuous]], max_seconds=1000, **SHORT)
    assert found.error is None
    assert all(p.end - p.start <= 30 for p in found.result.passages)


def test_silence_gives_an_empty_text(model):
    silent, short = np.zeros(40 * RATE, np.float32), np.zeros(800, np.float32)
    for found in transcribe_long(model, [[silent], [short], []]):
        assert (found.result.text, found.result.passages) == ("", [])
        assert found.result.flags == ["no speech"]


def test_results_are_yielded_as_they_complete(model, speech, monkeypatch):
    read, returned = [], []
    monkeypatch.setattr(long_form, "return_free_memory", lambda: returned.append(1))

    def streams():
        for number in range(20):
            read.append(number)
            yield [speech[:16000]]

    found = transcribe_long(model, streams(), batch_size=2, **SHORT)
    assert isinstance(next(found), Transcription)
    assert len(read) == 8  # 4 batches are read ahead
    assert len(list(found)) == 19
    assert len(returned) >= 3  # after every group, not only at the end


def test_audio_before_an_error_is_transcribed(model, lecture):
    def truncated():
        yield lecture[: 20 * RATE]
        raise UserError("a.wav: cut off")

    def unreadable():
        raise UserError("b.wav: empty")
        yield

    broken, empty, whole = transcribe_long(
        model, [truncated(), unreadable(), [lecture[: 20 * RATE]]], **SHORT
    )
    assert (broken.error, broken.seconds) == ("a.wav: cut off", 20.0)
    assert broken.result.passages == whole.result.passages
    assert broken.result.text == whole.result.text
    assert broken.result.score == pytest.approx(whole.result.score)
    assert (empty.result, empty.error) == (None, "b.wav: empty")


def test_video_telephone_and_studio_recordings(model, lecture, tmp_path):
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
        starts = [segment.start for segment in found.result.passages]
        assert 9 <= len(starts) <= len(expected) + 2  # adjacent segments may be merged
        for prompt in range(9):  # a segment begins at each prompt
            begin = 1 + prompt * len(lecture) / RATE / 9
            assert min(abs(start - begin) for start in starts) < 0.4


def test_invalid_requests_fail_before_reading(model):
    def unread():
        raise AssertionError
        yield

    for request in ({"task": "sing"}, {"language": "xx"}, {"max_seconds": 0.1}):
        with pytest.raises(UserError):
            list(transcribe_long(model, unread(), **request))


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
def test_memory_does_not_grow_with_the_recording(tiny_model, speech, tmp_path):
    """Transcribe a telephone call of two hours, 460 MB as float32 samples."""
    minute = np.resize(np.concatenate([speech[::2], np.zeros(4000)]), 60 * 8000)
    path = tmp_path / "call.wav"
    with soundfile.SoundFile(path, "w", 8000, 1, "ULAW") as call:
        for _ in range(120):
            call.write(minute)
    command = [sys.executable, "-c", TWO_HOURS, tiny_model, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, segments, early, peak = map(float, done.stdout.split())
    assert seconds == 7200
    assert segments > 1000
    assert peak - early < 30  # MB


def test_join_shifts_words_and_concatenates_texts():
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
        (  # the cut word differs between the two windows
            "we went to the river and saw a pig",
            "River and saw, a big old bear there",
            "en",
            ("we went to the river and saw a", "big old bear there"),
        ),
        (  # nothing in common: half of the overlap from each
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
def test_overlapping_texts_are_merged(left, right, language, expected):
    share = 0.5 if "river" in left or language == "ja" else 0.2
    assert merge_texts(left, right, (share, share), language) == expected


def test_overlapping_words_are_kept_once():
    names = ["one", "two", "three", "four", "five", "six"]
    words = [Word(n, i, i + 0.8, 1.0) for i, n in enumerate(names)]

    def window(begin: int, end: int, delay: float) -> tuple[SpeechSegment, Result]:
        inner = [
            Word(w.text, w.start - begin + delay, w.end - begin + delay, 1.0)
            for w in words[begin:end]
        ]
        text = " ".join(names[begin:end])
        return SpeechSegment(begin, end), Result(text, [], 0.0, words=inner)

    for delay in (-0.2, -0.05, 0.0, 0.05, 0.2):
        found = join([window(0, 4, delay), window(2, 6, -delay)], "en", "en")
        assert found.text == " ".join(names)
        assert [w.text for w in found.words] == names
        assert [(p.start, p.end) for p in found.passages] == [(0, 3.0), (3.0, 6)]


@pytest.mark.parametrize("text", ["not", "must"])  # also a word said twice
@pytest.mark.parametrize("delay", [-0.02, 0.0, 0.02])
def test_word_at_the_middle_of_an_overlap_is_kept_once(text, delay):
    """The middle is 13.5 s; the word's centre is after it, before it, or both."""
    names = ["must", text, "press", "it"]
    times = [(13.1, 13.38), (13.38, 13.64 + delay), (13.64 + delay, 14.0), (14.0, 14.2)]

    def window(begin: int, shift: float) -> tuple[SpeechSegment, Result]:
        words = [
            Word(name, start + shift - begin, end + shift - begin, 1.0)
            for name, (start, end) in zip(names, times)
        ]
        return SpeechSegment(begin, begin + 15), Result("", [], 0.0, words=words)

    for left, right in product((-0.02, 0.0, 0.02), repeat=2):
        found = join([window(0, left), window(12, right)], "en", "en")
        assert found.text == " ".join(names)


def edges(words: list[Word]) -> list[float]:
    return list(chain.from_iterable((w.start, w.end) for w in words))


def test_words_of_windows_that_were_cut_hard_do_not_overlap():
    # both windows have a word across the middle of their overlap, 10 s, and differ
    left = [Word("a", 8.0, 9.0, 1.0), Word("river", 9.2, 10.6, 1.0)]
    right = [Word("bear", 1.3, 2.1, 1.0), Word("there", 2.1, 3.0, 1.0)]
    found = join(
        [
            (SpeechSegment(0.0, 11.5), Result("a river", [], 0.0, words=left)),
            (SpeechSegment(8.5, 20.0), Result("bear there", [], 0.0, words=right)),
        ],
        "en",
        "en",
    )
    assert found.text == "a river bear there"
    # 9.2–10.6 and 9.8–10.6 overlap in 9.8–10.6
    assert edges(found.words) == pytest.approx(
        [8.0, 9.0, 9.2, 10.2, 10.2, 10.6, 10.6, 11.5]
    )
    # the word dropped from the right was shorter than the one kept of the left
    left = [Word("bear", 9.0, 10.9, 1.0)]
    right = [Word("bear", 1.0, 2.2, 1.0), Word("there", 2.2, 3.0, 1.0)]
    found = join(
        [
            (SpeechSegment(0.0, 11.5), Result("bear", [], 0.0, words=left)),
            (SpeechSegment(8.5, 20.0), Result("bear there", [], 0.0, words=right)),
        ],
        "en",
        "en",
    )
    assert found.text == "bear there"
    assert edges(found.words) == pytest.approx([9.0, 10.8, 10.8, 11.5])


@given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 3)), max_size=8))
def test_word_times_never_go_backwards(times):
    words = [Word("a", start, start + length, 1.0) for start, length in times]
    found = edges(remove_overlaps(words))
    assert all(a <= b for a, b in pairwise(found))
    ordered = [w for w in words if edges(words) == sorted(edges(words))]
    assert not ordered or remove_overlaps(words) == words


def test_joint_task_keeps_its_translation_with_word_times():
    def window(start, end, transcript, translation) -> tuple[SpeechSegment, Result]:
        words = [
            Word(text, at - start, at + 0.8 - start, 1.0)
            for text, at in transcript.items()
        ]
        return SpeechSegment(start, end), Result(
            translation, [], 0.0, transcript=" ".join(transcript), words=words
        )

    found = join(
        [
            window(0, 4, {"one": 0, "two": 1, "three": 2, "four": 3},
                   "un deux trois quatre"),
            window(2, 6, {"three": 2, "four": 3, "five": 4, "six": 5},
                   "trois quatre cinq six"),
        ],
        "en",
        "fr",
    )  # fmt: skip
    assert found.text == "un deux trois quatre cinq six"
    assert found.transcript == "one two three four five six"
    assert [w.text for w in found.words] == found.transcript.split()
    assert " ".join(p.text for p in found.passages) == found.text
    cues = make_cues(found, "fr")
    assert " ".join(" ".join(cue.lines) for cue in cues) == found.text
    assert (cues[0].start, cues[-1].end) == pytest.approx((0.0, 5.8))


def test_joint_task_in_japanese_and_english():
    def window(start, end, characters, translation) -> tuple[SpeechSegment, Result]:
        words = [Word(c, at - start, at + 1 - start, 1.0) for c, at in characters]
        transcript = "".join(c for c, _ in characters)
        return SpeechSegment(start, end), Result(
            translation, [], 0.0, transcript=transcript, words=words
        )

    characters = list(zip("昨日は川へ行", range(6)))
    found = join(
        [
            window(0, 4, characters[:4], "yesterday to the"),
            window(2, 6, characters[2:], "to the river"),
        ],
        "ja",
        "en",
    )
    assert found.transcript == "昨日は川へ行"
    assert found.text == "yesterday to the river"


def test_any_error_of_a_stream_or_segment_is_stored(model, lecture, monkeypatch):
    def broken():
        yield lecture[: 20 * RATE]
        raise ZeroDivisionError("division by zero")

    whole = [lecture[: 20 * RATE]]
    first, second = transcribe_long(model, [broken(), whole], **SHORT)
    assert first.error.startswith("unexpected ZeroDivisionError: division by zero")
    assert first.result.text == second.result.text
    assert second.error is None
    with pytest.raises(ZeroDivisionError):
        list(transcribe_long(model, [broken(), whole], debug=True, **SHORT))
    monkeypatch.setattr("speechllm.inference.long_form.join", lambda *_: {}["key"])
    [found] = transcribe_long(model, [whole], **SHORT)
    assert found.error.startswith("unexpected KeyError: 'key'")
    with pytest.raises(KeyError):
        list(transcribe_long(model, [whole], debug=True, **SHORT))


def test_full_memory_of_a_gpu_is_raised(model, speech, monkeypatch):
    import torch

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "transcribe", full)
    with pytest.raises(torch.OutOfMemoryError):
        list(transcribe_long(model, [[speech]]))
