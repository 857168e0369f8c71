"""CTC prefix scores, compared with ESPnet's scorer and the sum over all paths."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechllm.decoding.ctc_prefix_scorer import CTCPrefixScorer, log_cumsum_exp
from speechllm.text.ctc_labels import NEVER, label_runs

try:
    from espnet2.legacy.nets.ctc_prefix_score import CTCPrefixScore
except ModuleNotFoundError:  # ESPnet 202511
    from espnet.nets.ctc_prefix_score import CTCPrefixScore

LABELS = 5  # blank, three labels, and ESPnet's end of sentence
EOS = 4


def random_logits(batch: int, frames: int, seed: int, labels: int = LABELS):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(batch, frames, labels, generator=generator)


def espnet_scores(log_probs: np.ndarray, text: list[int]) -> tuple[list[float], float]:
    """Return ESPnet's score of each prefix of a text, and that of the complete text."""
    scorer = CTCPrefixScore(log_probs, 0, EOS, np)
    state, prefix, scores = scorer.initial_state(), [EOS], []
    for label in text:
        score, states = scorer(prefix, np.array([label]), state)
        scores.append(float(score[0]))
        state, prefix = states[0], [*prefix, label]
    end, _ = scorer(prefix, np.array([EOS]), state)
    return scores, float(end[0])


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.lists(st.integers(1, 3), max_size=5), min_size=1, max_size=4),
    seed=st.integers(0, 10**6),
)
def test_scores_equal_espnets(texts, seed):
    """Compare a padded batch with ESPnet, one utterance at a time."""
    lengths = [12 + 3 * i for i in range(len(texts))]
    logits = random_logits(len(texts), max(lengths) + 4, seed)
    scorer = CTCPrefixScorer(logits, torch.tensor(lengths))
    for row, (text, length) in enumerate(zip(texts, lengths)):
        log_probs = logits[row, :length].log_softmax(1).numpy()
        expected, expected_end = espnet_scores(log_probs, text)
        state = scorer.start(torch.tensor([row]))
        for label, score in zip(text, expected):
            state = scorer.extend(state, torch.tensor([label]))
            assert state.score.item() == pytest.approx(score, abs=1e-4)
        assert scorer.finish(state).item() == pytest.approx(expected_end, abs=1e-4)


def enumerate_scores(log_probs: torch.Tensor, text: tuple[int, ...]):
    """Return the log probabilities of ``text`` as a prefix and as the complete text."""
    begins, equals = [], []
    frames, labels = log_probs.shape
    for path in itertools.product(range(labels), repeat=frames):
        collapsed = tuple(k for k, _, _ in label_runs(path) if k != 0)
        score = sum(log_probs[t, k].item() for t, k in enumerate(path))
        if collapsed[: len(text)] == text:
            begins.append(score)
        if collapsed == text:
            equals.append(score)
    total = [math.fsum(map(math.exp, scores)) for scores in (begins, equals)]
    return [math.log(t) if t else -math.inf for t in total]


@pytest.mark.parametrize(
    "text", [(), (1,), (2, 1), (1, 1), (1, 1, 2), (2, 2, 2), (1, 2, 1), (1, 1, 1, 1)]
)
def test_scores_equal_the_sum_over_all_paths(text):
    logits = random_logits(1, 6, seed=len(text) + sum(text), labels=3)
    scorer = CTCPrefixScorer(logits, torch.tensor([6]))
    state = scorer.start(torch.tensor([0]))
    for label in text:
        state = scorer.extend(state, torch.tensor([label]))
    begins, equals = enumerate_scores(logits[0].double().log_softmax(1), text)
    for found, expected in (
        (state.score.item(), begins),
        (scorer.finish(state).item(), equals),
    ):
        if expected == -math.inf:  # the same label four times needs seven frames
            assert found < -1e20
        else:
            assert found == pytest.approx(expected, abs=1e-9)


def test_two_labels_do_not_fit_into_one_frame():
    scorer = CTCPrefixScorer(random_logits(1, 1, 0), torch.tensor([1]))
    one = scorer.extend(scorer.start(torch.tensor([0])), torch.tensor([1]))
    assert one.score.item() == pytest.approx(
        scorer.logits[0, 0].double().log_softmax(0)[1].item()
    )
    two = scorer.extend(one, torch.tensor([2]))
    assert two.score.item() < -1e20
    assert scorer.finish(two).item() < -1e20


def test_long_text_equals_the_ctc_loss():
    """Sums in the log domain stay exact over 1500 frames of sharp posteriors."""
    generator = torch.Generator().manual_seed(3)
    logits = 20 * torch.randn(1, 1500, LABELS, generator=generator)
    text = torch.randint(1, 4, (300,), generator=generator).tolist()
    scorer = CTCPrefixScorer(logits, torch.tensor([1500]))
    state = scorer.start(torch.tensor([0]))
    for label in text:
        state = scorer.extend(state, torch.tensor([label]))
    loss = torch.nn.functional.ctc_loss(
        logits.double().log_softmax(2).transpose(0, 1),
        torch.tensor([text]),
        torch.tensor([1500]),
        torch.tensor([300]),
        reduction="sum",
    )
    assert scorer.finish(state).item() == pytest.approx(-loss.item(), rel=1e-10)


def test_longer_prefix_is_not_more_probable():
    scorer = CTCPrefixScorer(random_logits(1, 30, 5), torch.tensor([30]))
    state = scorer.start(torch.tensor([0]))
    for label in (1, 1, 2, 3):
        longer = scorer.extend(state, torch.tensor([label]))
        assert longer.score.item() <= state.score.item()
        assert scorer.finish(longer).item() <= longer.score.item()
        state = longer


def test_batched_suffixes_equal_one_by_one():
    lengths = torch.tensor([20, 15])
    scorer = CTCPrefixScorer(random_logits(2, 20, 7), lengths)
    states = scorer.start(torch.tensor([0, 1]))
    states = scorer.extend(states, torch.tensor([2, 1]))
    suffixes = [(0, []), (1, [1]), (0, [2, 3]), (0, [2]), (1, [1, 1, 3]), (0, [3])]
    kept, found = scorer.extend_many(states, suffixes)
    assert sorted(kept) == list(range(len(suffixes)))
    found = found[torch.tensor(kept).argsort()]
    for row, (index, labels) in enumerate(suffixes):
        expected = states[torch.tensor([index])]
        for label in labels:
            expected = scorer.extend(expected, torch.tensor([label]))
        state = found[torch.tensor([row])]
        for name in ("utterance", "last", "label", "blank", "score"):
            assert torch.equal(getattr(state, name), getattr(expected, name)), name


def test_empty_suffixes_keep_the_prefixes():
    scorer = CTCPrefixScorer(random_logits(1, 9, 7), torch.tensor([9]))
    states = scorer.start(torch.tensor([0]))
    kept, found = scorer.extend_many(states, [(0, []), (0, ())])
    assert kept == [0, 1]
    assert found.score.tolist() == [0.0, 0.0]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    suffixes=st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.integers(1, 3), max_size=4)),
        min_size=1,
        max_size=12,
    ),
    seed=st.integers(0, 1000),
    threshold=st.floats(-30, 0),
)
def test_suffixes_below_their_threshold_are_dropped(suffixes, seed, threshold):
    scorer = CTCPrefixScorer(random_logits(3, 14, seed), torch.tensor([14, 9, 11]))
    states = scorer.start(torch.tensor([0, 1, 2]))
    states = scorer.extend(states, torch.tensor([2, 1, 3]))
    thresholds = [threshold + index for index in range(len(suffixes))]
    all_kept, expected = scorer.extend_many(states, suffixes)
    kept, found = scorer.extend_many(states, suffixes, thresholds)
    scores = dict(zip(all_kept, expected.score.tolist()))
    for index, (_, labels) in enumerate(suffixes):
        if labels:  # empty suffixes are not scored again
            assert (index in kept) == (scores[index] > thresholds[index])
    for row, index in enumerate(kept):
        other = all_kept.index(index)
        for name in ("utterance", "last", "label", "blank", "score"):
            assert torch.equal(
                getattr(found, name)[row], getattr(expected, name)[other]
            )


def test_memory_does_not_grow_with_the_labels():
    """Besides the logits, two numbers for each frame."""
    logits = torch.zeros(3, 50, 3300)
    scorer = CTCPrefixScorer(logits, torch.tensor([50, 40, 30]))
    tensors = [v for v in vars(scorer).values() if isinstance(v, torch.Tensor)]
    own = sum(t.nbytes for t in tensors if t.data_ptr() != logits.data_ptr())
    assert own == 2 * 3 * 50 * 8 + 3 * 8


@settings(max_examples=60, deadline=None)
@given(
    frames=st.integers(1, 70),
    scale=st.sampled_from([1.0, 30.0, 400.0]),
    impossible=st.integers(0, 70),
    seed=st.integers(0, 10**6),
)
def test_sums_over_frames_equal_pytorchs(frames, scale, impossible, seed):
    """Compare with PyTorch, also where blocks underflow or nothing is possible yet."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(5, frames, dtype=torch.float64, generator=generator)
    values = scale * steps.cumsum(1)
    values[:3, :impossible] = NEVER
    values[0, impossible // 2 :: 7] = NEVER
    expected = torch.logcumsumexp(values, 1)
    found = log_cumsum_exp(values)
    possible = expected > NEVER / 2
    assert torch.allclose(found[possible], expected[possible], rtol=1e-12, atol=1e-9)
    assert (found[~possible] < NEVER / 2).all()
