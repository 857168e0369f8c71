"""Forced alignment and word times.

Alignments are compared with the best of all paths and with torchaudio, word times with
constructed CTC output and with speech between known silences.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import LABELS

from speechllm.audio.io import load_audio
from speechllm.decoding.forced_alignment import (
    LEAD,
    TAIL,
    Span,
    align_spans,
    align_texts,
    loud_frames,
    split_words,
    word_labels,
    word_times,
)
from speechllm.models.ctc_alignment import (
    forced_align,
    frames_needed,
    torchaudio_forced_align,
    viterbi,
)
from speechllm.text.ctc_labels import CTCTokenizer, label_runs

UNKNOWN, SPACE = LABELS.index("<unk>"), LABELS.index("<space>")


def random_log_probs(frames: int, labels: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(frames, labels, generator=generator, dtype=torch.double)
    return logits.log_softmax(1)


def collapse(path) -> list[int]:
    """Return the labels of a CTC path: repetitions merged, blanks removed."""
    return [k for k, _ in itertools.groupby(path) if k != 0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "labels", [[1], [2, 1], [1, 1], [1, 1, 2], [2, 2, 2], [1, 2, 1, 2], [1, 2, 3, 3]]
)
def test_alignment_is_the_most_probable_path(labels, seed):
    log_probs = random_log_probs(6, 4, seed)
    paths = [
        path
        for path in itertools.product(range(4), repeat=6)
        if collapse(path) == labels
    ]
    assert paths
    scores = log_probs[torch.arange(6), torch.tensor(paths)].sum(1)
    found = viterbi(log_probs, torch.tensor(labels))
    assert tuple(found.tolist()) == paths[int(scores.argmax())]
    path, per_frame = forced_align(log_probs, labels)
    assert per_frame.sum().item() == pytest.approx(scores.max().item(), abs=1e-5)
    assert collapse(path.tolist()) == labels


@given(
    labels=st.lists(st.integers(1, 4), min_size=1, max_size=20),
    spare=st.integers(0, 60),
    seed=st.integers(0, 10**6),
)
def test_path_collapses_to_its_labels(labels, spare, seed):
    log_probs = random_log_probs(frames_needed(labels) + spare, 5, seed)
    assert collapse(viterbi(log_probs, torch.tensor(labels)).tolist()) == labels


def test_path_equals_torchaudio():
    """Compare both implementations; only ours if torchaudio does not load."""
    torchaudio_align = torchaudio_forced_align()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(1, 30, (25,), generator=generator)
        log_probs = random_log_probs(120, 30, seed).float()
        expected = viterbi(log_probs, labels)
        if torchaudio_align is not None:
            path, scores = torchaudio_align(log_probs[None], labels[None], blank=0)
            assert path[0].tolist() == expected.tolist()
            assert torch.equal(scores[0], log_probs.gather(1, path.mT.long())[:, 0])
        path, _ = forced_align(log_probs, labels)
        assert path.tolist() == expected.tolist()


def test_labels_that_cannot_be_aligned_are_an_error():
    log_probs = random_log_probs(4, 3, 0)
    path, scores = forced_align(log_probs, [])
    assert path.tolist() == [0, 0, 0, 0]
    assert torch.equal(scores, log_probs[:, 0])
    assert collapse(forced_align(log_probs, [1, 1, 2])[0].tolist()) == [1, 1, 2]
    with pytest.raises(ValueError, match="5 frames are needed, there are 4"):
        forced_align(log_probs, [1, 1, 1])
    with pytest.raises(ValueError, match="no blanks"):
        forced_align(log_probs, [1, 0])


# Words


@pytest.fixture(scope="module")
def tokenizer() -> CTCTokenizer:
    return CTCTokenizer(LABELS)


def log_probs_of(frames: str) -> torch.Tensor:
    """Return confident CTC output, a character per frame: ``.`` blank, ``_`` space."""
    names = {".": 0, "_": SPACE}
    path = torch.tensor(
        [names.get(c) or (c != "." and LABELS.index(c)) for c in frames]
    )
    logits = torch.zeros(len(frames), len(LABELS), dtype=torch.double)
    logits[torch.arange(len(frames)), path.long()] = 12.0
    return logits.log_softmax(1)


def spans_of(text: str, frames: str, tokenizer, language="en") -> list[tuple[int, int]]:
    labels = [word_labels(w, language, tokenizer) for w in split_words(text, language)]
    spans = align_spans(labels, log_probs_of(frames), UNKNOWN, SPACE)
    return [(span.begin, span.end) for span in spans]


@pytest.mark.parametrize(
    ("text", "frames", "expected"),
    [
        ("Go on.", "..g.oo._..o.n..", [(2, 6), (10, 13)]),
        ("a - b", ".a._.b.", [(1, 2), (2, 2), (5, 6)]),  # words without labels
        ("... a", ".a._.b.", [(0, 0), (1, 2)]),
        ("", "..", []),
        # a wrong letter in the CTC output: the frames between the others
        ("cat", ".c..x.t", [(1, 7)]),
        # digits are spelt out
        ("press 2", "pr.es.s_.t.wo..", [(0, 7), (9, 13)]),
        # letters outside the vocabulary: the CTC output in between
        ("go да on", "go_..d.a.._.on", [(0, 2), (5, 8), (12, 14)]),
        ("да on", "..d.a.._.on", [(2, 5), (9, 11)]),
        ("on да", "on_..d.a..", [(0, 2), (5, 8)]),
        ("naïve on", "na.s.ve_.on", [(0, 7), (9, 11)]),
    ],
)
def test_words_are_located(text, frames, expected, tokenizer):
    assert spans_of(text, frames, tokenizer) == expected


def test_characters_are_aligned_without_spaces_between_them():
    """The labels have a space for another language; CTC writes none here."""
    plain = ["<blank>", "<unk>", *"今日は晴"]
    found = []
    for labels in (plain, [*plain, "<space>"]):
        log_probs = torch.full((6, len(labels)), -12.0)
        log_probs[torch.arange(6), torch.tensor([0, 2, 3, 4, 0, 5])] = 0.0
        tokenizer = CTCTokenizer(labels)
        found.append(align_texts([*"今日は晴"], "ja", log_probs, tokenizer))
    assert found[0] == found[1]
    assert [(s.begin, s.end) for s in found[1]] == [(1, 2), (2, 3), (3, 4), (5, 6)]
    assert all(span.aligned for span in found[1])


def test_words_that_do_not_fit_share_the_frames(tokenizer):
    labels = [word_labels(w, "en", tokenizer) for w in ("abcdef", "gh")]
    spans = align_spans(labels, log_probs_of("a.b."), UNKNOWN, SPACE)
    assert [(s.begin, s.end, s.aligned) for s in spans] == [
        (0, 3, False),
        (3, 4, False),
    ]


def test_label_log_probabilities_follow_the_path(tokenizer):
    log_probs = log_probs_of(".c..x.t")
    (span,) = align_spans([tokenizer("cat")], log_probs, UNKNOWN, SPACE)
    high, low = log_probs.max().item(), log_probs.min().item()
    assert span.log_probs == pytest.approx((high, low, high))


def test_text_is_split_into_words_by_language():
    assert split_words("「はい、 そう。」", "ja") == [
        "「",
        "は",
        "い、",
        "そ",
        "う。」",
    ]
    assert split_words("Yes, it's so.", "en") == ["Yes,", "it's", "so."]


def test_adjacent_unknown_letters_are_one_label(tokenizer):
    assert word_labels("да", "en", tokenizer) == [UNKNOWN]
    a, b = tokenizer("ab")
    assert word_labels("aдаb", "en", tokenizer) == [a, UNKNOWN, b]
    assert word_labels("12", "en", tokenizer) == tokenizer("twelve")


def flat_times(spans, frames, loud=None) -> list[float]:
    """Return start and end of each word in one list, in seconds."""
    return list(itertools.chain(*word_times(spans, frames, 0.02, loud)))


def test_words_extend_beyond_their_ctc_peaks():
    spans = [Span(10, 20), Span(20, 20), Span(24, 30), Span(100, 110)]
    narrow = 0.48 - 0.08 * LEAD / (LEAD + TAIL)  # two words share a gap of 0.08 s
    expected = [0.2 - LEAD, 0.4, 0.4, 0.4, narrow, 0.6 + TAIL, 2 - LEAD, 2.2 + TAIL]
    assert flat_times(spans, 120) == pytest.approx(expected)
    assert flat_times(spans, 111)[-1] == pytest.approx(2.22)
    assert word_times([], 10, 0.02) == []


def test_words_extend_to_the_end_of_the_sound():
    spans = [Span(10, 12), Span(40, 42)]
    loud = [4 <= t < 20 or 34 <= t < 60 for t in range(70)]
    assert flat_times(spans, 70, loud) == pytest.approx([0.08, 0.4, 0.68, 1.2])
    # the closure of a "t" belongs to the word, a pause does not
    loud = [t not in (14, 15, 16, 22, 23, 24, 25, 26) for t in range(70)]
    expected = [0.2 - LEAD, 0.44, 0.54, 0.84 + TAIL]
    assert flat_times(spans, 70, loud) == pytest.approx(expected)


def test_outer_edges_end_at_a_short_silence_before_music():
    spans = [Span(20, 22), Span(40, 42)]
    loud = [t not in (14, 15, 28, 29, 36, 37, 50, 51) for t in range(80)]
    expected = [
        0.32,
        0.44 + TAIL,
        0.8 - LEAD,
        1.0,
    ]  # only before the first and after the last word
    assert flat_times(spans, 80, loud) == pytest.approx(expected)
    loud[70:] = [False] * 10  # a long silence, but beyond REACH
    assert flat_times(spans, 80, loud) == pytest.approx(expected)
    loud[58:] = [False] * 22  # within REACH: the short one was the closure of a "t"
    assert flat_times(spans, 80, loud)[-1] == pytest.approx(1.16)


def test_frames_far_below_the_peak_are_not_loud():
    wave = np.zeros(16000)
    wave[4000:8000] = np.sin(np.arange(4000))
    wave[8000:12000] = 0.03 * np.sin(np.arange(4000))  # 30 dB below
    wave[12000:] = 0.01 * np.sin(np.arange(4000))  # 40 dB below
    loud = loud_frames(wave, 50, 320)
    assert label_runs(loud) == [(False, 0, 12), (True, 12, 38), (False, 38, 50)]
    assert loud_frames(np.zeros(1000), 4, 320) == [False] * 4
    assert loud_frames(np.zeros(100), 1, 320) == [False]


def test_word_times_exclude_padded_silence(speech_file):
    """The first and last word begin and end with the speech."""
    speech = load_audio(speech_file)
    wave = np.concatenate([np.zeros(8000), speech, np.zeros(16000)])
    frames = len(wave) // 320
    active = np.flatnonzero(abs(wave) > 0.02 * abs(wave).max()) / 16000
    middle = int(50 * active.mean())
    spans = [
        Span(int(50 * active[0]) + 10, middle),
        Span(middle + 1, int(50 * active[-1]) - 10),
    ]
    found = flat_times(spans, frames, loud_frames(wave, frames, 320))
    assert found[0] == pytest.approx(active[0], abs=0.1)
    assert found[-1] == pytest.approx(active[-1], abs=0.1)


@given(
    sizes=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=9),
    noise=st.lists(st.booleans(), min_size=400, max_size=400),
)
def test_word_times_are_monotonic(sizes, noise):
    spans, frame = [], 0
    for gap, size in sizes:
        spans.append(Span(frame + gap, frame + gap + size))
        frame += gap + size
    for loud in (None, noise[:frame], [False] * frame):
        flat = flat_times(spans, frame, loud)
        assert all(b - a > -1e-9 for a, b in itertools.pairwise(flat))
        assert all(-1e-9 <= t <= frame * 0.02 + 1e-9 for t in flat)
        for span, start, end in zip(spans, flat[::2], flat[1::2]):
            assert start <= span.begin * 0.02 + 1e-9
            assert end >= span.end * 0.02 - 1e-9
