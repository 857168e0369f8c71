"""Voice activity detection as Silero's, and segmentation at pauses."""

from __future__ import annotations

from importlib import metadata
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechllm.audio.io import SAMPLING_RATE as RATE
from speechllm.audio.io import load_audio
from speechllm.audio.segmentation import (
    CERTAIN,
    SILENCE,
    SPEECH,
    Cutter,
    Cutting,
    speech_segments,
)
from speechllm.audio.vad import SECONDS_PER_WINDOW, WINDOW, speech_probabilities
from speechllm.utils.errors import UserError


@pytest.fixture(scope="module")
def speech(speech_file) -> np.ndarray:
    return load_audio(speech_file)


def blocks_of(samples: np.ndarray, size: int) -> list[np.ndarray]:
    return [samples[i : i + size] for i in range(0, len(samples), size)]


def probabilities(blocks) -> np.ndarray:
    """Return both speech probabilities of each window: (2, windows)."""
    return np.concatenate([found for _, found in speech_probabilities(blocks)], axis=1)


def test_probabilities_match_silero(speech):
    file = next(f for f in metadata.files("silero-vad") if f.name == "silero_vad.jit")
    silero = torch.jit.load(str(file.locate()))
    samples = np.concatenate([speech, np.zeros(RATE, np.float32), speech[::-1]])
    padded = np.pad(samples, (0, -len(samples) % WINDOW))
    with torch.inference_mode():
        expected = [
            silero(torch.from_numpy(window)[None], RATE).item()
            for window in padded.reshape(-1, WINDOW)
        ]
    for size in (len(samples), 10_000, 700, 100):
        found = probabilities(blocks_of(samples, size))
        np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_second_probability_depends_on_the_last_half_second_only(speech):
    noise = np.random.default_rng(0).normal(0, 0.1, 40 * WINDOW).astype(np.float32)
    found = probabilities([speech])
    assert found[1, 15] == pytest.approx(found[0, 15], abs=1e-6)  # same context
    before = probabilities(blocks_of(np.concatenate([noise, speech]), 7000))[:, 40:]
    np.testing.assert_allclose(before[1, 16:], found[1, 16:], atol=1e-5)
    assert np.abs(before[0, 16:] - found[0, 16:]).max() > 1e-3


def test_segment_begins_at_speech_of_the_second_probability():
    cutter = Cutter(Cutting(margin=0.1))  # 3 windows
    for probability, recent in [(0.0, 0.0)] * 30 + [(0.2, 0.9)] * 5 + [(0.9, 0.9)] * 20:
        assert list(cutter.push(probability, recent)) == []
    assert list(cutter.close()) == [(27, 55)]


def test_every_sample_is_returned_once(speech):
    samples = np.concatenate(
        [s for s, _ in speech_probabilities(blocks_of(speech, 999))]
    )
    np.testing.assert_array_equal(samples, speech)


def test_prompts_between_pauses_are_found(speech):
    silence = np.zeros(RATE, np.float32)
    recording = np.concatenate([silence, *[speech, silence] * 6])
    found = list(speech_segments(blocks_of(recording, 5000), Cutting()))
    first, last = np.flatnonzero(probabilities([speech])[0] >= SPEECH)[[0, -1]]
    for number in range(6):
        begin = 1 + number * (1 + len(speech) / RATE)
        speaks = (begin + first * 0.032, begin + (last + 1) * 0.032)
        mine = [s for s, _ in found if s.start < speaks[1] and speaks[0] < s.end]
        assert mine[0].start == pytest.approx(speaks[0], abs=0.4)
        assert mine[-1].end == pytest.approx(speaks[1], abs=0.4)
    for segment, samples in found:
        begin = round(segment.start * RATE)
        np.testing.assert_array_equal(samples, recording[begin : begin + len(samples)])
        assert len(samples) == round((segment.end - segment.start) * RATE)


def test_short_recording_is_one_segment(speech):
    [(segment, samples)] = speech_segments(blocks_of(speech, 3000), Cutting())
    assert (segment.start, segment.end) == (0.0, len(speech) / RATE)
    np.testing.assert_array_equal(samples, speech)


@pytest.mark.parametrize("seconds", [0, 0.01, 3, 40])
def test_digital_silence_has_no_segment(seconds):
    silence = np.zeros(int(seconds * RATE), np.float32)
    assert list(speech_segments(blocks_of(silence, 8000), Cutting())) == []


def windows_of(found: list[float], cutting: Cutting) -> list[tuple[int, int]]:
    cutter = Cutter(cutting)
    segments = [s for p in found for s in cutter.push(p)]
    return segments + list(cutter.close())


def test_long_segment_is_cut_at_the_longest_pause_within_reach():
    found = [1.0] * 1000
    for begin, length in [(200, 3), (300, 8), (420, 2)]:
        found[begin : begin + length] = [0.1] * length
    (first, *_) = windows_of(found, Cutting(15.0, pause=0.5))  # 468 windows
    assert first == (0, 304)  # the middle of the pause of 8 windows
    found[300:308] = [1.0] * 8
    found[420:422] = [1.0] * 2  # now the only pause is early
    assert windows_of(found, Cutting(15.0, pause=0.5))[:2][0] == (0, 202)


def test_speech_without_pauses_is_cut_into_overlapping_windows():
    segments = windows_of([1.0] * 1500, Cutting(longest=15.0, overlap=3.0))
    assert segments[0] == (0, 468)
    assert segments[1] == (468 - 93, 468 - 93 + 468)
    assert segments[-1][1] == 1500


def test_margins_are_kept_and_never_overlap():
    found = [0.0] * 40 + [1.0] * 20 + [0.0] * 40 + [1.0] * 20 + [0.0] * 40
    cutting = Cutting(pause=0.32, margin=0.2)  # 10 and 6 windows
    assert windows_of(found, cutting) == [(34, 66), (94, 126)]
    assert windows_of([1.0, *[0.0] * 60], cutting) == []  # a click


def test_music_around_speech_is_left_out():
    music, speech = [0.7] * 60, [1.0] * 20
    cutting = Cutting(margin=0.2)  # 6 windows, and 16 to begin
    assert windows_of(music, cutting) == [(0, 60)]  # could be a letter
    assert windows_of(music + speech + music, cutting) == [(60 - 22, 80 + 6)]
    assert windows_of(speech + music[:30] + speech, cutting) == [(0, 70)]


def test_segments_say_whether_speech_continues(monkeypatch):
    """A window that music before the speech has shortened continues, too."""

    def stream(found: list[float]):
        for part in np.array_split(np.array(found), 40):
            samples = np.zeros(len(part) * WINDOW, np.float32)
            yield samples, np.stack([part, np.zeros_like(part)])

    monkeypatch.setattr("speechllm.audio.segmentation.speech_probabilities", stream)
    pause, music, speech = [0.0] * 40, [0.7] * 60, [1.0] * 900
    found = [s for s, _ in speech_segments([*music, *speech, *pause], Cutting(15, 0.5))]
    assert found[0].end - found[0].start < 14  # not the maximum
    assert [s.continues for s in found] == [True, True, False]
    for segment, following in pairwise(found):
        assert following.start < segment.end
    at_pauses = [*speech[:300], 0.1, 0.1, *speech[:300], *pause, *speech[:100]]
    found = [s for s, _ in speech_segments(at_pauses, Cutting(15, 0.5), whole=False)]
    assert [s.continues for s in found] == [False] * 3


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.2, 0.4, 0.6, 1.0]), st.integers(1, 60)),
        max_size=30,
    ),
    st.floats(1, 15),
    st.floats(0.03, 1.0),
)
def test_segments_of_any_probabilities_cover_speech_within_limits(runs, longest, pause):
    found = [p for p, length in runs for _ in range(length)]
    cutting = Cutting(longest, pause, shortest_speech=0.0)
    segments = windows_of(found, cutting)
    covered = np.zeros(len(found), bool)
    for begin, end in segments:
        assert 0 <= begin < end <= len(found)
        assert (end - begin) * SECONDS_PER_WINDOW <= longest + 1e-9
        covered[begin:end] = True
    assert [s for s, p in enumerate(found) if p >= CERTAIN and not covered[s]] == []
    for (_, end), (begin, _) in pairwise(segments):
        if begin < end:  # only where no pause was within reach
            assert min(found[begin:end]) >= SILENCE
    assert segments == sorted(segments)


def test_too_short_and_infinite_limits_are_rejected():
    for seconds in (0.0, 0.5, float("nan"), float("inf")):
        with pytest.raises(UserError, match="max_seconds .*at least 1"):
            Cutting(longest=seconds)
    with pytest.raises(UserError, match="pause_seconds inf: expected a finite number"):
        Cutting(pause=float("inf"))
    with pytest.raises(UserError, match="pause_seconds 0: above 0"):
        Cutting(pause=0)
