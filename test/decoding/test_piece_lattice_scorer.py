"""CTC scores of texts over BPE pieces, compared with the sum over all paths.

Joint search with them, word times and the guard, with a sentencepiece model of a few
sentences.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import five_token_llm

from speechllm.data.ctc_vocabulary import build_bpe_vocabulary
from speechllm.decoding.beam_search import beam_search
from speechllm.decoding.ctc_prefix_scorer import CTCPrefixScorer
from speechllm.decoding.encoded_batch import EncodedBatch
from speechllm.decoding.forced_alignment import (
    align_texts,
    pieces_of_characters,
    split_words,
    word_times,
)
from speechllm.decoding.hypothesis import SearchRequest
from speechllm.decoding.options import SearchOptions
from speechllm.decoding.piece_lattice_scorer import PieceLatticeScorer
from speechllm.text.answer_codec import AnswerCodec
from speechllm.text.ctc_labels import CTCTokenizer
from speechllm.text.tasks import Task
from speechllm.utils.errors import UserError

ENGLISH = (
    "please enter your password followed by the pound key",
    "the person at extension one is not here",
    "press one for the menu and two for the next message",
    "thank you for calling please hold the line",
    "there is no one here and the line is busy",
)
JAPANESE = (
    "今日は良い天気です",
    "今日は天気が良いです",
    "明日の天気は良いです",
    "明日は今日より良い天気です",
)
#: Pieces that overlap: "▁ab" has four segmentations, "a" can follow itself.
TOY = ["<blank>", "<unk>", "▁", "a", "b", "▁a", "ab", "<sos/eos>"]


def vocabulary(folder: Path, sentences: Sequence[str], size: int) -> CTCTokenizer:
    """Train a BPE model of sentences as stage 5 does."""
    lines = [f"u{i} {text}" for i, text in enumerate(sentences)]
    folder.mkdir()
    (folder / "text").write_text("\n".join(lines) + "\n", "utf-8")
    tokens = build_bpe_vocabulary([folder / "text"], folder / "bpe", size)
    return CTCTokenizer(tokens, folder / "bpe" / "bpe.model")


@pytest.fixture(scope="module")
def english(tmp_path_factory) -> CTCTokenizer:
    return vocabulary(tmp_path_factory.mktemp("bpe") / "en", ENGLISH, 60)


@pytest.fixture(scope="module")
def japanese(tmp_path_factory) -> CTCTokenizer:
    return vocabulary(tmp_path_factory.mktemp("bpe") / "ja", JAPANESE, 24)


def random_logits(batch: int, frames: int, labels: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(batch, frames, labels, generator=generator)


def text_probabilities(log_probs: torch.Tensor, labels: Sequence[str]):
    """Return the probability of each text: the sum over all paths and segmentations."""
    paths = {("", 0): 1.0}  # (text, last label): probability
    for frame in log_probs.exp().tolist():
        longer: dict[tuple[str, int], float] = defaultdict(float)
        for ((text, last), so_far), label in itertools.product(
            paths.items(), range(len(labels))
        ):
            emits = label != 0 and label != last
            key = (text + labels[label] if emits else text, label)
            longer[key] += so_far * frame[label]
        paths = longer
    found: dict[str, float] = defaultdict(float)
    for (text, _), probability in paths.items():
        found[text] += probability
    return found


@pytest.mark.parametrize("seed", range(2))
def test_scores_equal_the_sum_over_all_paths(seed):
    """Compare every text of up to four characters, as a prefix and as a whole."""
    logits = random_logits(1, 5, len(TOY), seed)
    log_probs = logits[0].double().log_softmax(1)
    names = {1: "?", 7: "#"}  # the special labels have no text of their own
    texts = text_probabilities(
        log_probs, [names.get(k, label) for k, label in enumerate(TOY)]
    )
    scorer = PieceLatticeScorer(logits, torch.tensor([5]), TOY)
    states = {"": scorer.start(torch.tensor([0]))}
    for size in range(1, 5):
        for characters in itertools.product("▁ab?", repeat=size):
            text = "".join(characters)
            label = torch.tensor([ord(text[-1])])
            states[text] = scorer.extend(states[text[:-1]], label)
    for text, state in states.items():
        begins = math.fsum(p for t, p in texts.items() if t.startswith(text))
        assert math.exp(state.score.item()) == pytest.approx(begins, abs=1e-12)
        whole = texts.get(text, 0.0)
        assert math.exp(scorer.finish(state).item()) == pytest.approx(whole, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    texts=st.lists(st.text("▁ab", max_size=6), min_size=1, max_size=5),
    seed=st.integers(0, 10**6),
)
def test_scores_do_not_depend_on_the_batch(texts, seed):
    """Extend, select, pad and join as the search does, against one text alone."""
    logits = random_logits(2, 14, len(TOY), seed)
    lengths = torch.tensor([14, 9])
    scorer = PieceLatticeScorer(logits, lengths, TOY)
    start = scorer.start(torch.tensor([0, 1])).cut(17).cut(14)
    suffixes = [(row, [*map(ord, text)]) for row in (0, 1) for text in texts]
    kept, states = scorer.extend_many(start, suffixes)
    kept_again, states = scorer.extend_many(
        states.join([states, start])[torch.arange(len(kept)).flip(0)],
        [(len(kept) - 1 - i, [ord("a")]) for i in range(len(kept))],
    )
    ends = scorer.finish(states)
    for place, again in enumerate(kept_again):
        row, text = suffixes[kept[again]]
        length = int(lengths[row])
        alone = PieceLatticeScorer(logits[row, None, :length], lengths[row, None], TOY)
        state = alone.start(torch.tensor([0]))
        for character in [*text, ord("a")]:
            state = alone.extend(state, torch.tensor([character]))
        assert states.score[place].item() == pytest.approx(state.score.item(), abs=1e-9)
        expected = alone.finish(state).item()
        assert max(ends[place].item(), -1e9) == pytest.approx(max(expected, -1e9))


def test_pieces_of_one_character_equal_character_ctc():
    """Compare with the scorer of character labels, where both have the same labels."""
    labels = ["<blank>", "<unk>", "▁", "a", "b", "<sos/eos>"]
    logits = random_logits(1, 40, 6, 4)
    plain = CTCPrefixScorer(logits, torch.tensor([40]))
    lattice = PieceLatticeScorer(logits, torch.tensor([40]), labels)
    one, other = plain.start(torch.tensor([0])), lattice.start(torch.tensor([0]))
    for character in "▁aab▁bb▁a":
        one = plain.extend(one, torch.tensor([labels.index(character)]))
        other = lattice.extend(other, torch.tensor([ord(character)]))
        assert other.score.item() == pytest.approx(one.score.item(), abs=1e-9)
    expected = plain.finish(one).item()
    assert lattice.finish(other).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("weight", [0.3, 0.9])
def test_joint_search_equals_exhaustive_search(seed, weight):
    """Compare the n-best list over all outputs of three tokens."""
    pieces = ["a", "b", " ab", ",", ""]
    llm = five_token_llm(11, pieces)
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randn(2, llm.hidden_size, generator=generator)
    logits = random_logits(1, 5, len(TOY), seed)

    def characters(tokens: list[int]) -> list[int]:
        text = " ".join("".join(pieces[t] for t in tokens).replace(",", "").split())
        return [*map(ord, "▁" + text.replace(" ", "▁"))] if text else []

    scorer = PieceLatticeScorer(logits, torch.tensor([5]), TOY)
    options = SearchOptions(beam_size=128, nbest=6, ctc_weight=weight, pre_beam_size=5)
    request = SearchRequest(prompt, 3, characters)
    (found,) = beam_search(llm, [request], options, scorer)
    texts = text_probabilities(logits[0].double().log_softmax(1), TOY)

    def score(output: list[int]) -> float:
        inputs = torch.cat([prompt, llm.embed(torch.tensor(output).long())])
        rows = llm.causal_lm(inputs_embeds=inputs[None]).logits[0].log_softmax(1)
        targets = torch.tensor([*output, llm.eos_id])
        by_llm = rows[torch.arange(1, len(inputs)), targets].sum().item()
        probability = texts.get("".join(map(chr, characters(output))), 0.0)
        by_ctc = math.log(probability) if probability else -1e30
        return (1 - weight) * by_llm + weight * by_ctc

    with torch.inference_mode():
        ranked = sorted(
            (
                (score([*output]), [*output])
                for size in range(4)
                for output in itertools.product(range(4), repeat=size)
            ),
            reverse=True,
        )
    assert [h.tokens for h in found] == [output for _, output in ranked[:6]]
    for hypothesis, (expected, _) in zip(found, ranked):
        assert hypothesis.score == pytest.approx(expected, abs=1e-4)


# With a sentencepiece model


def certain_logits(path: Sequence[int], labels: int) -> torch.Tensor:
    """Return CTC logits (frames, labels) that are certain of a path."""
    logits = torch.full((len(path), labels), -10.0)
    logits[torch.arange(len(path)), list(path)] = 10.0
    return logits


def spoken_by(tokenizer: CTCTokenizer, text: str) -> torch.Tensor:
    """Return CTC logits that are certain of a text."""
    path = [k for label in tokenizer(text) for k in (0, label, 0)]
    return certain_logits(path, len(tokenizer.token_list))


def test_scoring_units_are_the_characters_of_the_pieces(english):
    text = "press one for the menu"
    found = "".join(map(chr, english.scoring_units(text)))
    assert found == "▁press▁one▁for▁the▁menu"
    # an unknown character keeps its place
    assert "".join(map(chr, english.scoring_units("the é"))) == "▁the▁é"


def test_text_probability_is_at_least_that_of_its_canonical_pieces(english):
    """Compare with the CTC loss of sentencepiece's own segmentation."""
    text = "the line is busy"
    labels = english(text)
    logits = spoken_by(english, text)
    batch = make_batch(english, logits)
    (score,) = batch.ctc_scores(0, [english.scoring_units(text)])
    loss = torch.nn.functional.ctc_loss(
        logits.double().log_softmax(1)[:, None],
        torch.tensor([labels]),
        torch.tensor([len(logits)]),
        torch.tensor([len(labels)]),
        reduction="sum",
    )
    assert -loss.item() - 1e-9 <= score < 0.01
    (other,) = batch.ctc_scores(0, [english.scoring_units("the line is here")])
    assert other < score - 10


def make_batch(tokenizer: CTCTokenizer, logits: torch.Tensor, **fields) -> EncodedBatch:
    return EncodedBatch(
        [Task("asr", "en", "en")],
        [np.zeros(320 * len(logits), np.float32)],
        [torch.zeros(0, 0)],
        logits[None],
        torch.tensor([len(logits)]),
        fields.pop("ctc_texts", [None]),
        [0],
        pieces=tokenizer.token_list if tokenizer.bpe else None,
        **fields,
    )


def test_word_times_of_pieces_and_of_characters_agree(english):
    """Two branches emit the same characters in the same frames: within two frames."""
    text = "please enter your password followed by the pound key"
    letters = sorted(set(text) - {" "})
    plain = CTCTokenizer(["<blank>", "<unk>", "<space>", *letters, "<sos/eos>"])
    assert len(english(text)) < len(plain(text)) / 1.5  # really pieces
    words = split_words(text, "en")
    by_character, by_piece, begins = [0] * 6, [0] * 6, []
    space, boundary = plain.token_list.index("<space>"), english.token_list.index("▁")
    for word in words:
        pieces = english.tokens(word)
        by_character += [space if begins else 0, 0, 0, 0]
        by_piece += [boundary if pieces[0] == "▁" else 0, 0, 0, 0]
        begins.append(len(by_character))
        for piece in pieces:
            label = english.label(piece)
            for place, character in enumerate(piece.replace("▁", "")):
                by_character += [plain.token_list.index(character), 0, 0]
                # a piece is emitted from its first to its last character
                by_piece += [label] * (3 if place + 1 < len(piece.strip("▁")) else 1)
                by_piece += [0] * (len(by_character) - len(by_piece))
    both = []
    for tokenizer, path in ((plain, by_character), (english, by_piece)):
        logits = certain_logits([*path, *[0] * 6], len(tokenizer.token_list))
        spans = align_texts(words, "en", logits.log_softmax(1), tokenizer)
        assert all(span.aligned for span in spans)
        both.append((spans, word_times(spans, len(logits), 0.02)))
    (plain_spans, plain_times), (piece_spans, piece_times) = both
    assert [span.begin for span in plain_spans] == begins
    for one, other in zip(plain_spans, piece_spans, strict=True):
        assert abs(one.begin - other.begin) <= 2 and abs(one.end - other.end) <= 2
    for one, other in zip(plain_times, piece_times, strict=True):
        assert one == pytest.approx(other, abs=0.04 + 1e-9)


def test_words_in_a_piece_share_its_frames(japanese):
    """Japanese words are characters, of which a piece has several."""
    text = "今日は良い天気です"
    words = split_words(text, "ja")
    units = pieces_of_characters(words, "ja", japanese)
    assert sum(size for _, size in units) == len(words)
    labels = [label for found, _ in units for label in found]
    assert labels == japanese(text)
    assert max(size for _, size in units) > 1
    path = [0, 0]
    starts = []
    for found, size in units:
        starts.append(len(path))
        path += [*found, *[0] * (6 * size - len(found))]
    logits = certain_logits(path, len(japanese.token_list))
    spans = align_texts(words, "ja", logits.log_softmax(1), japanese)
    expected = [
        start + (6 * i if place + 1 < len(units) else i)
        for place, (start, (_, size)) in enumerate(zip(starts, units))
        for i in range(size)
    ]
    assert [span.begin for span in spans] == expected
    for one, other in itertools.pairwise(spans):
        assert one.end <= other.begin


def test_a_word_without_labels_is_a_wildcard(english):
    words = ["the", "über", "line"]
    path = [0, 0, *english("the"), 0]
    path += [*english("is"), 0, *english("is"), 0]
    begin = len(path)
    path += [*english("line"), 0, 0]
    logits = certain_logits(path, len(english.token_list))
    spans = align_texts(words, "en", logits.log_softmax(1), english)
    assert spans[0].begin == 2 and spans[2].begin == begin
    assert spans[0].end <= spans[1].begin <= spans[1].end <= spans[2].begin


def test_bpe_model_of_another_vocabulary_is_an_error(tmp_path):
    vocabulary(tmp_path / "en", ENGLISH, 60)
    with pytest.raises(UserError, match="is not in the token list"):
        CTCTokenizer(TOY, tmp_path / "en" / "bpe" / "bpe.model")
    (tmp_path / "bpe.model").write_bytes(b"no model")
    with pytest.raises(UserError, match="bpe.model: not a sentencepiece model"):
        CTCTokenizer(TOY, tmp_path / "bpe.model")


def test_codec_gives_characters_of_growing_words(smollm2, english):
    """The beginning of a word is the beginning of the word's characters."""
    from speechllm.text.t5_tokenizer import load_tokenizer

    codec = AnswerCodec(load_tokenizer(smollm2), english)
    task = Task("asr", "en", "en")
    label_fn = codec.label_fn(task)
    tokens = codec.encode("Please, enter your password")
    before: list[int] = []
    for size in range(1, len(tokens) + 1):
        labels = label_fn(tokens[:size])
        assert labels[: len(before)] == before
        before = labels
    assert "".join(map(chr, before)) == "▁please▁enter▁your▁password"
