"""Bridges: lengths, padding, compression and alignment against manual results."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import LABELS, write_tokenizer

from speechllm.models.bridge import (
    BRIDGES,
    ConvolutionBridge,
    CTCCompressionBridge,
    StackBridge,
    TranscriptBridge,
    align_tokens,
    mean_over_spans,
)
from speechllm.models.qformer import QFormerBridge
from speechllm.text.ctc_labels import label_runs, label_text
from speechllm.text.t5_tokenizer import load_tokenizer
from speechllm.utils.errors import UserError

DIM, OUT = 6, 5
A, B, SPACE = LABELS.index("a"), LABELS.index("b"), LABELS.index("<space>")


@pytest.fixture(scope="module")
def bridges(tokenizer):
    """One bridge of each kind, with random weights."""
    torch.manual_seed(1)
    transcript = TranscriptBridge(DIM, OUT)
    torch.nn.init.normal_(transcript.projection.weight)
    embed = torch.nn.Embedding(len(tokenizer), OUT)
    transcript.connect(LABELS, tokenizer, embed)
    made = {
        "stack": StackBridge(DIM, OUT, hidden_size=7),
        "qformer": QFormerBridge(DIM, OUT, window=7, queries=2, size=8, heads=2),
        "convolution": ConvolutionBridge(DIM, OUT),
        "average": CTCCompressionBridge(DIM, OUT, "average"),
        "remove": CTCCompressionBridge(DIM, OUT, "remove"),
        "transcript": transcript,
    }
    return {name: bridge.eval() for name, bridge in made.items()}


def logits_of(rows: list[list[int]]) -> torch.Tensor:
    """Return CTC logits (batch, frames, labels) whose best path is ``rows``."""
    longest = max(map(len, rows))
    logits = torch.zeros(len(rows), longest, len(LABELS))
    for row, labels in zip(logits, rows):
        row[torch.arange(len(labels)), torch.tensor(labels)] = 5.0
    return logits


@pytest.mark.parametrize(
    "name", ["stack", "convolution", "average", "remove", "qformer", "transcript"]
)
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    seed=st.integers(0, 10000),
)
@torch.inference_mode()
def test_embeddings_do_not_depend_on_the_batch(bridges, name, lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    frames = max(lengths)
    features = torch.randn(len(lengths), frames, DIM, generator=generator)
    logits = torch.randn(len(lengths), frames, len(LABELS), generator=generator)
    logits[..., 0] += 2.0
    for row, length in enumerate(lengths):
        features[row, length:] = 0.0  # as the encoder returns it
    found, sizes = bridges[name](features, torch.tensor(lengths), logits)
    assert found.shape[1] == sizes.max()
    for row, (length, size) in enumerate(zip(lengths, sizes.tolist())):
        expected, (alone,) = bridges[name](
            features[row : row + 1, :length],
            torch.tensor([length]),
            logits[row : row + 1, :length],
        )
        assert size == alone == expected.shape[1] >= 1
        torch.testing.assert_close(found[row, :size], expected[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("frames", "positions"), [(1, 1), (4, 1), (13, 1), (14, 2), (18, 3), (100, 23)]
)
def test_convolution_lengths(bridges, frames, positions):
    features = torch.randn(1, frames, DIM)
    found, lengths = bridges["convolution"](features, torch.tensor([frames]))
    assert found.shape == (1, positions, OUT)
    assert lengths.tolist() == [positions]


def test_convolution_by_hand():
    bridge = ConvolutionBridge(2, 3, kernel_sizes=[2], strides=[2])
    features = torch.randn(1, 6, 2)
    weight, bias = bridge.convolutions[0].weight, bridge.convolutions[0].bias
    steps = [
        torch.nn.functional.gelu(
            bias + sum(weight[:, :, k] @ features[0, t + k] for k in (0, 1))
        )
        for t in (0, 2, 4)
    ]
    expected = bridge.projection(torch.stack(steps))
    torch.testing.assert_close(bridge(features, torch.tensor([6]))[0][0], expected)
    with pytest.raises(ValueError):
        ConvolutionBridge(2, 3, kernel_sizes=[2, 2], strides=[2])


@pytest.mark.parametrize(("frames", "positions"), [(1, 1), (5, 1), (6, 2), (50, 10)])
def test_frame_stacking_by_hand(bridges, frames, positions):
    features = torch.randn(1, frames, DIM)
    found, lengths = bridges["stack"](features, torch.tensor([frames]))
    assert lengths.tolist() == [positions]
    rows = torch.zeros(positions, 5 * DIM)
    for frame in range(frames):
        rows[frame // 5, DIM * (frame % 5) : DIM * (frame % 5 + 1)] = features[0, frame]
    first, _, second = bridges["stack"].projection
    expected = second(torch.clamp(first(rows), min=0))
    torch.testing.assert_close(found[0], expected)
    with pytest.raises(ValueError, match="factor 0: at least 1"):
        StackBridge(DIM, OUT, factor=0)


@pytest.mark.parametrize(("frames", "windows"), [(1, 1), (7, 1), (8, 2), (50, 8)])
def test_queries_attend_to_their_window_only(bridges, frames, windows):
    bridge = bridges["qformer"]
    features = torch.randn(1, frames, DIM)
    found, lengths = bridge(features, torch.tensor([frames]))
    assert lengths.tolist() == [2 * windows]
    for index in range(windows):
        part = features[:, 7 * index : 7 * index + 7]
        alone, _ = bridge(part, torch.tensor([part.shape[1]]))
        pair = slice(2 * index, 2 * index + 2)
        torch.testing.assert_close(found[0, pair], alone[0], atol=1e-5, rtol=0)
    assert not torch.allclose(found[0, 0], found[0, 1])


def test_qformer_layer_by_hand():
    """Softmax of query times keys over the frames of the window."""
    torch.manual_seed(0)
    bridge = QFormerBridge(DIM, OUT, window=4, size=8, layers=1, heads=1).eval()
    features = torch.randn(1, 3, DIM)
    layer, memory = bridge.layers[0], bridge.input(features)[0]  # (frames, size)
    hidden = bridge.queries  # self-attention of one query: its own value
    inner = layer.norm1(hidden)
    weight, bias = layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias
    value = inner @ weight[16:].T + bias[16:]
    hidden = hidden + layer.self_attn.out_proj(value)
    weight, bias = (
        layer.multihead_attn.in_proj_weight,
        layer.multihead_attn.in_proj_bias,
    )
    query = layer.norm2(hidden) @ weight[:8].T + bias[:8]
    keys = memory @ weight[8:16].T + bias[8:16]
    values = memory @ weight[16:].T + bias[16:]
    attention = (query @ keys.T / 8**0.5).softmax(1)
    hidden = hidden + layer.multihead_attn.out_proj(attention @ values)
    inner = torch.nn.functional.gelu(layer.linear1(layer.norm3(hidden)))
    hidden = hidden + layer.linear2(inner)
    expected = bridge.projection(bridge.normalization(hidden))
    found, _ = bridge(features, torch.tensor([3]))
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("options", [{"window": 0}, {"size": 10, "heads": 4}])
def test_invalid_qformer_options(options):
    with pytest.raises(ValueError, match="qformer"):
        QFormerBridge(DIM, OUT, **options)


def test_gradients_are_finite_with_padded_windows(bridges):
    """Windows of padding only must not give NaN gradients."""
    features = torch.randn(2, 40, DIM, requires_grad=True)
    found, lengths = bridges["qformer"](features, torch.tensor([40, 3]))
    assert lengths.tolist() == [12, 2]
    sum(row[:n].square().sum() for row, n in zip(found, lengths)).backward()
    assert features.grad.isfinite().all()
    assert features.grad[1, 3:].abs().sum() == 0
    assert features.grad[1, :3].abs().sum() > 0


PATH = [0, A, A, 0, A, B, B, B, 0, 0]


def test_compression_averages_runs(bridges):
    bridge = bridges["average"]
    features = torch.randn(1, 12, DIM)
    found, sizes = bridge(features, torch.tensor([10]), logits_of([[*PATH, A, A]]))
    spans = [(0, 1), (1, 3), (3, 4), (4, 5), (5, 8), (8, 10)]
    means = torch.stack([features[0, b:e].mean(0) for b, e in spans])
    assert sizes.tolist() == [6]
    torch.testing.assert_close(found[0], bridge.projection(means))


def test_compression_removes_blanks(bridges):
    bridge = bridges["remove"]
    features = torch.randn(1, 12, DIM)
    found, sizes = bridge(features, torch.tensor([10]), logits_of([[*PATH, A, A]]))
    assert sizes.tolist() == [6]
    expected = bridge.projection(features[0, [1, 2, 4, 5, 6, 7]])
    torch.testing.assert_close(found[0], expected)


def test_compression_of_blanks_only_returns_their_mean(bridges):
    for name in ("remove", "average"):
        features = torch.randn(1, 4, DIM)
        found, sizes = bridges[name](features, torch.tensor([4]), logits_of([[0] * 4]))
        assert sizes.tolist() == [1]
        mean = bridges[name].projection(features[0].mean(0))
        torch.testing.assert_close(found[0, 0], mean)


def test_unknown_compression_mode():
    with pytest.raises(ValueError, match="'max': average or remove"):
        CTCCompressionBridge(2, 2, "max")


def test_runs_and_means():
    assert label_runs([3, 3, 0, 3]) == [(3, 0, 2), (0, 2, 3), (3, 3, 4)]
    assert label_runs([]) == []
    frames = torch.arange(8.0).reshape(4, 2)
    means = mean_over_spans(frames, [(0, 2), (1, 4), (3, 4)])
    assert means.tolist() == [[1.0, 2.0], [4.0, 5.0], [6.0, 7.0]]


@settings(max_examples=50, deadline=None)
@given(
    bounds=st.lists(
        st.tuples(st.integers(0, 19), st.integers(1, 6)), min_size=1, max_size=30
    ),
    seed=st.integers(0, 100),
)
def test_mean_over_spans_equals_a_loop(bounds, seed):
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(25, 3, generator=generator, requires_grad=True)
    spans = [(begin, begin + size) for begin, size in bounds]
    expected = torch.stack([frames[b:e].mean(0) for b, e in spans])
    found = mean_over_spans(frames, spans)
    torch.testing.assert_close(found, expected)
    weight = torch.randn(found.shape, generator=generator)
    one = torch.autograd.grad((found * weight).sum(), frames)
    other = torch.autograd.grad((expected * weight).sum(), frames)
    torch.testing.assert_close(one, other)
    half = mean_over_spans(frames.detach().bfloat16(), spans)
    assert half.dtype == torch.bfloat16


def test_label_text():
    assert [label_text(k) for k in ("<space>", "<unk>", "a", "▁ab", "▁")] == [
        " ",
        "",
        "a",
        " ab",
        " ",
    ]


def spell(text: str) -> list[tuple[str, int, int]]:
    """Return each character with a span of two frames and a blank in between."""
    return [(c, 3 * i, 3 * i + 2) for i, c in enumerate(text)]


def test_tokens_are_aligned_with_their_labels(tokenizer):
    text = "please wait"
    tokens, spans = align_tokens(spell(text), tokenizer, 40)
    assert tokens == tokenizer(" " + text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(tokens) == " please wait"
    assert len(tokens) == 2
    # the second token begins with the space at frame 18
    assert spans == [(0, 17), (18, 32)]


@pytest.mark.parametrize(
    "text", ["今日は良い鵺天気", "hello １２ 日本", "[SEP] です㌔"]
)
def test_slow_tokenizer_of_rinna(tmp_path, text):
    """sentencepiece with byte fallback: a character may be several tokens."""
    write_tokenizer(tmp_path)
    slow = load_tokenizer(tmp_path)
    assert not slow.is_fast
    tokens, spans = align_tokens(spell(text), slow, 60)
    assert tokens == slow(" " + text, add_special_tokens=False)["input_ids"]
    assert len(spans) == len(tokens)
    assert all(0 <= begin < end <= 60 for begin, end in spans)
    if text.startswith("今"):  # one character: three bytes, frames 15 to 17
        bytes_of = slow.convert_tokens_to_ids(["<0xE9>", "<0xB5>", "<0xBA>"])
        at = [spans[tokens.index(token)] for token in bytes_of]
        assert at == [(15, 17)] * 3


def test_slow_tokenizer_without_places():
    tokenizer = SimpleNamespace(is_fast=False)
    with pytest.raises(UserError, match="bridge transcript: .* fast tokenizer"):
        align_tokens(spell("a"), tokenizer, 4)


def test_extra_spaces_are_collapsed(tokenizer):
    tokens, spans = align_tokens(spell("  a  b "), tokenizer, 40)
    assert tokenizer.decode(tokens) == " a b"
    assert len(spans) == 2
    assert spans[0][1] == 8  # the first word ends where its letter ends
    assert spans[1] == (9, 17)


def test_empty_transcript_is_one_token_over_the_utterance(tokenizer):
    for pieces in ([], [("", 2, 3)], [(" ", 2, 3)]):
        tokens, spans = align_tokens(pieces, tokenizer, 7)
        assert len(tokens) == len(spans) == 1
        begin, end = spans[0]
        assert 0 <= begin < end <= 7
    assert align_tokens([], tokenizer, 7)[1] == [(0, 7)]


@settings(max_examples=60, deadline=None)
@given(text=st.text("abé ñж'日", max_size=12))
def test_alignment_of_any_text(tokenizer, text):
    pieces = spell(text)
    length = max(3 * len(text), 1)
    tokens, spans = align_tokens(pieces, tokenizer, length)
    assert len(tokens) == len(spans) >= 1
    assert tokenizer.decode(tokens).split() == text.split()
    assert all(0 <= begin < end <= length for begin, end in spans)
    begins = [begin for begin, _ in spans]
    assert begins == sorted(begins)


def test_transcript_bridge_is_initialised_to_the_transcript(tokenizer):
    torch.manual_seed(2)
    embed = torch.nn.Embedding(len(tokenizer), OUT)
    bridge = TranscriptBridge(DIM, OUT)
    bridge.connect(LABELS, tokenizer, embed)
    labels = [LABELS.index(c) if c != " " else SPACE for c in "hi you"]
    path = [k for label in labels for k in (label, label, 0)]
    features = torch.randn(1, len(path), DIM)
    found, sizes = bridge(features, torch.tensor([len(path)]), logits_of([path]))
    tokens = torch.tensor(tokenizer(" hi you", add_special_tokens=False)["input_ids"])
    assert sizes.tolist() == [len(tokens)]
    assert torch.equal(found[0], embed(tokens))


def test_double_letters_need_a_blank(tokenizer):
    bridge = TranscriptBridge(DIM, OUT)
    embed = torch.nn.Embedding(len(tokenizer), OUT)
    bridge.connect(LABELS, tokenizer, embed)
    for path, text in (([A, A, B], " ab"), ([A, 0, A, B], " aab")):
        found, _ = bridge(
            torch.randn(1, len(path), DIM), torch.tensor([len(path)]), logits_of([path])
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert torch.equal(found[0], embed(torch.tensor(ids)))


def test_noise_is_added_in_training_only(tokenizer):
    bridge = TranscriptBridge(DIM, OUT, noise=100.0)
    bridge.connect(LABELS, tokenizer, torch.nn.Embedding(len(tokenizer), OUT))
    features, logits = torch.randn(1, 30, DIM), logits_of([[A, 0, B] * 10])
    torch.manual_seed(0)
    call = (features, torch.tensor([30]), logits)
    bridge.eval()
    assert torch.equal(bridge(*call)[0], bridge(*call)[0])
    bridge.train()
    first, second = bridge(*call)[0], bridge(*call)[0]
    assert first.shape != second.shape or not torch.equal(first, second)


def test_state_dict_has_no_llm_weights(tokenizer):
    bridge = TranscriptBridge(DIM, OUT)
    bridge.connect(LABELS, tokenizer, torch.nn.Embedding(len(tokenizer), OUT))
    names = {name.split(".")[0] for name in bridge.state_dict()}
    assert names == {"normalization", "projection"}


def test_gradients_reach_the_features(bridges):
    for name in BRIDGES:
        name = {"ctc_compression": "average"}.get(name, name)
        features = torch.randn(1, 12, DIM, requires_grad=True)
        call = features, torch.tensor([12]), logits_of([[A, 0, B] * 4])
        bridges[name](*call)[0].square().sum().backward()
        assert features.grad is not None and features.grad.abs().sum() > 0


def test_transcript_bridge_reads_given_transcripts(smollm2, tiny_llm):
    """The best path's own labels change nothing; others give their tokens."""
    from tiny_models import LABELS

    from speechllm.models.llm import LanguageModel

    llm = LanguageModel(str(tiny_llm), tuning="frozen", dtype="float32")
    bridge = TranscriptBridge(8, llm.hidden_size).eval()
    bridge.connect(LABELS, llm.tokenizer, llm.embed)
    torch.manual_seed(0)
    features, lengths = torch.randn(2, 12, 8), torch.tensor([12, 9])
    spelt = [[LABELS.index(c) for c in word] for word in ("cat", "dog")]
    logits = torch.zeros(2, 12, len(LABELS))
    for row, labels in enumerate(spelt):
        for place, label in enumerate(labels):
            logits[row, 2 * place + 1, label] = 9.0
        logits[row, ::2, 0] = 9.0
        logits[row, 7:, 0] = 9.0
    embeds, sizes = bridge(features, lengths, logits)
    same, _ = bridge(features, lengths, logits, spelt)
    assert torch.equal(embeds, same)
    assert torch.equal(embeds, bridge(features, lengths, logits, [None, []])[0])
    cab = [LABELS.index(c) for c in "cab"]
    other, sizes = bridge(features, lengths, logits, [cab, None])
    tokens = llm.tokenizer.encode(" cab", add_special_tokens=False)
    expected = llm.embed(torch.tensor(tokens))
    assert torch.equal(other[0, : sizes[0]], expected)  # the projection is zero
    too_long = [3, 3] * 7  # 26 frames are needed
    assert torch.equal(bridge(features, lengths, logits, [too_long, None])[0], embeds)
