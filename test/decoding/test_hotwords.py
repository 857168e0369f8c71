"""Hotwords: the automaton, compared with naive matching, and the biased search."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import five_token_llm

from speechllm import SpeechToText, cli
from speechllm.audio.io import load_audio
from speechllm.benchmarks.hotwords import (
    WordErrors,
    training_words,
    word_errors,
    word_list,
)
from speechllm.bin import decode, hotword_table
from speechllm.decoding.beam_search import beam_search
from speechllm.decoding.ctc_prefix_scorer import CTCPrefixScorer
from speechllm.decoding.first_pass import HotwordBias, make_first_pass
from speechllm.decoding.hypothesis import Hypothesis, SearchRequest
from speechllm.decoding.options import SearchOptions, search_options
from speechllm.decoding.rescoring import rescore
from speechllm.models.llm import LanguageModel
from speechllm.models.speech_decoder import SpeechDecoder
from speechllm.text.hotwords import (
    HotwordState,
    HotwordTrie,
    hotword_trie,
    read_hotwords,
)
from speechllm.text.t5_tokenizer import load_tokenizer
from speechllm.utils.errors import UserError

HOTWORDS = [([0, 1], False), ([1, 2, 1], True), ([2], True), ([0, 1, 0], False)]


def continues_word(token: int) -> bool:
    return token == 3


def rewarded_tokens(tokens, hotwords, ended: bool) -> int:
    """Count the tokens in hotwords and, unless ended, in the partial one at the end.

    Of the hotwords that end at a place the longest counts, each the first time.
    """
    found, covered = [], set()
    for stop in range(1, len(tokens) + 1):
        ends = []
        for words, whole_word in hotwords:
            if stop == len(tokens):
                continued = not ended
            else:
                continued = whole_word and continues_word(tokens[stop])
            if tokens[:stop][-len(words) :] == words and not continued:
                ends.append(words)
        longest = max(ends, key=len, default=[])
        if longest not in found:
            found.append(longest)
            covered |= set(range(stop - len(longest), stop))
    new = [words for words, _ in hotwords if words not in found]
    sizes = [n for words in new for n in range(len(words) + 1) if n <= len(tokens)]
    partial = [
        size
        for size in sizes
        if any(words[:size] == tokens[len(tokens) - size :] for words in new)
    ]
    if not ended:
        start = len(tokens) - max(partial, default=0)
        covered |= set(range(start, len(tokens)))
    return len(covered)


@settings(max_examples=300, deadline=None)
@given(
    hotwords=st.lists(
        st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.booleans()),
        max_size=5,
        unique_by=lambda entry: tuple(entry[0]),
    ),
    tokens=st.lists(st.integers(0, 4), max_size=12),
)
def test_automaton_equals_naive_matching(hotwords, tokens):
    trie = HotwordTrie(hotwords, continues_word)
    state = HotwordState()
    for size, token in enumerate(tokens, 1):
        before, state = state, trie.step(state, token)
        assert trie.rewarded(state) == rewarded_tokens(tokens[:size], hotwords, False)
        if not continues_word(token):
            gain = trie.rewarded(state) - trie.rewarded(trie.finish(before))
            assert trie.gains(before).get(token, 0) == gain
    assert trie.rewarded(trie.finish(state)) == trie.count(tokens)
    assert trie.count(tokens) == rewarded_tokens(tokens, hotwords, True)


@pytest.fixture(scope="module")
def five_tokens() -> LanguageModel:
    return five_token_llm(11, ["a", "b", "ca", ",", ""])


def random_prompt(llm: LanguageModel, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, llm.hidden_size, generator=generator)


def to_ctc_labels(tokens: list[int]) -> list[int]:
    return [label for t in tokens for label in {2: [3, 1], 3: []}.get(t, [t + 1])]


def search(llm, seed, options, trie, max_tokens=3, ctc=None) -> list[Hypothesis]:
    label_fn = to_ctc_labels if ctc is not None else None
    request = SearchRequest(
        random_prompt(llm, seed), max_tokens, label_fn, hotwords=trie
    )
    return beam_search(llm, [request], options, ctc)[0]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("penalty", [0.0, -0.7, 0.3])
@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_biased_search_equals_exhaustive_search(five_tokens, seed, penalty, weight):
    """Every output's score is the plain one and the bonus of its hotwords."""
    bonus = 1.5
    trie = HotwordTrie(HOTWORDS, continues_word)

    def ctc():
        generator = torch.Generator().manual_seed(seed)
        logits = 2 * torch.randn(1, 9, 4, generator=generator)
        return CTCPrefixScorer(logits, torch.tensor([9])) if weight else None

    common = {"penalty": penalty, "ctc_weight": weight, "pre_beam_size": 5}
    every = SearchOptions(beam_size=700, nbest=700, **common)
    plain = search(five_tokens, seed, every, None, ctc=ctc())
    assert len(plain) == 1 + 4 + 16 + 64
    ranked = sorted(
        (h.score + bonus * rewarded_tokens(h.tokens, HOTWORDS, True), h.tokens)
        for h in plain
    )[::-1]
    few = SearchOptions(beam_size=64, nbest=5, hotword_bonus=bonus, **common)
    found = search(five_tokens, seed, few, trie, ctc=ctc())
    assert [h.tokens for h in found] == [tokens for _, tokens in ranked[:5]]
    for hypothesis, (score, tokens) in zip(found, ranked):
        assert hypothesis.score == pytest.approx(score, abs=1e-4)
        assert hypothesis.bonus == bonus * rewarded_tokens(tokens, HOTWORDS, True)
    assert any(h.bonus for h in found)


def test_no_hotwords_give_the_same_scores(five_tokens):
    """An empty automaton changes no bit."""
    options = SearchOptions(beam_size=3, nbest=3)
    plain = search(five_tokens, 1, options, None, 6)
    found = search(five_tokens, 1, options, HotwordTrie([], continues_word), 6)
    assert [(h.tokens, h.score, h.bonus) for h in found] == [
        (h.tokens, h.score, 0.0) for h in plain
    ]


class UnwillingLLM:
    """An LLM of 60 tokens that writes tokens 0 and 1; 7 and 8 are the least likely."""

    eos_id = 59
    step_graphs = False
    causal_lm = SimpleNamespace(
        get_input_embeddings=lambda: SimpleNamespace(weight=torch.empty(0))
    )

    def embed(self, ids):
        return ids[..., None].float()

    def body(self, embeddings, mask, cache):
        cache.update(embeddings[:, None], embeddings[:, None], 0)
        return embeddings

    def head(self, hidden):
        logits = torch.linspace(0, -3, 60).repeat(len(hidden), 1)
        logits[:, [7, 8]] = -8.0
        for row, token in zip(logits, hidden[:, 0].long().tolist()):
            row[{59: 0, 0: 1}.get(token, 59)] = 5.0
        return logits


@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize(("bonus", "tokens"), [(4.0, [0, 1]), (15.0, [7, 8])])
def test_a_word_that_is_never_proposed_needs_a_large_bonus(beam_size, bonus, tokens):
    trie = HotwordTrie([([7, 8], True)], continues_word)
    request = SearchRequest(torch.tensor([[59.0]]), 4, hotwords=trie)
    options = SearchOptions(beam_size=beam_size, hotword_bonus=bonus)
    ((found, *_),) = beam_search(UnwillingLLM(), [request], options)
    assert found.tokens == tokens


def test_a_broken_match_leaves_no_bonus():
    trie = HotwordTrie([([7, 8], True)], continues_word)
    request = SearchRequest(torch.tensor([[59.0]]), 2, hotwords=trie)
    options = SearchOptions(beam_size=4000, nbest=4000, hotword_bonus=2.0)
    (biased,) = beam_search(UnwillingLLM(), [request], options)
    plain = SearchRequest(torch.tensor([[59.0]]), 2)
    (unbiased,) = beam_search(UnwillingLLM(), [plain], options)
    scores = {tuple(h.tokens): h.score for h in unbiased}
    assert len(biased) == len(scores) == 1 + 59 + 59**2
    for hypothesis in biased:
        bonus = 4.0 if hypothesis.tokens == [7, 8] else 0.0
        assert hypothesis.bonus == bonus
        expected = scores[tuple(hypothesis.tokens)] + bonus
        assert hypothesis.score == pytest.approx(expected, abs=1e-5)


def test_rescoring_keeps_the_bonus():
    nbest = [
        Hypothesis([1], llm_score=-1.0),
        Hypothesis([2], llm_score=-2.0, bonus=3.0),
    ]
    ranked = rescore(nbest, [-4.0, -4.0], 0.5)
    assert [(h.tokens, h.score) for h in ranked] == [([2], 0.0), ([1], -2.5)]


def test_special_tokens_are_no_hotwords(smollm2):
    """A request's hotwords must not reward the end of an output."""
    tokenizer = load_tokenizer(smollm2)
    end = tokenizer.eos_token
    assert hotword_trie(tokenizer, (end, f"a{end}b", "<|im_start|>")).paths == {}
    trie = hotword_trie(tokenizer, (end, "im_end"))
    assert trie.paths
    assert all(tokenizer.eos_token_id not in following for following in trie.children)


def test_words_end_at_the_end_of_a_word(smollm2):
    """Byte-level BPE; case, phrases, a script without spaces."""
    tokenizer = load_tokenizer(smollm2)
    trie = hotword_trie(tokenizer, ("weasels", "New York City", "art", "東京", "Ann"))

    def tokens(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def size(*texts: str) -> int:
        return sum(len(tokens(text)) for text in texts)

    assert trie.count(tokens(" Two weasels, three.")) == size(" weasels")
    assert trie.count(tokens(" Weasels")) == size(" Weasels")
    found = trie.count(tokens(" in New York City's art."))
    assert found == size(" New York City", " art")
    assert trie.count(tokens(" in New York")) == 0
    assert trie.count(tokens(" art") + tokens("ist")) == 0
    assert trie.count(tokens(" start")) == 0
    assert trie.count(tokens("東京都")) == size("東京")


def test_a_list_of_a_thousand_words_costs_few_steps(tiny_llm, monkeypatch):
    """The steps of the automaton per search do not grow with the list."""
    llm = LanguageModel(str(tiny_llm), tuning="frozen", dtype="float32").eval()
    tokenizer = llm.tokenizer
    words = [tokenizer.decode([i]).strip() for i in range(2000, 4000)]
    words = [w for w in words if w.isalpha()][:1000]
    assert len(words) == 1000
    counts = []
    step = HotwordTrie.step

    def counted(self, state, token):
        counts[-1] += 1
        return step(self, state, token)

    monkeypatch.setattr(HotwordTrie, "step", counted)
    options = SearchOptions(beam_size=4, hotword_bonus=1.0)
    for some in (words[:10], words):
        counts.append(0)
        search(llm, 1, options, hotword_trie(tokenizer, tuple(some)), 8)
    assert max(counts) <= 8 * 4 * 6  # tokens, hypotheses, candidates


def test_files_of_hotwords(tmp_path):
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeff# names\nAsterisk\n\n  New   York \nAsterisk\n".encode())
    assert read_hotwords(path) == ("Asterisk", "New York")
    path.write_text("# nothing\n\n")
    with pytest.raises(UserError, match=r"words\.txt: no hotwords; write one"):
        read_hotwords(path)
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"cannot read the hotwords \(not UTF-8 text\)"):
        read_hotwords(path)
    with pytest.raises(UserError, match=r"none\.txt: .*\(No such file"):
        read_hotwords(tmp_path / "none.txt")
    with pytest.raises(UserError, match="directory"):
        read_hotwords(tmp_path)


def test_hotwords_are_an_option_of_the_search():
    assert search_options({"hotwords": ["a", "b c"]}).hotwords == ("a", "b c")
    with pytest.raises(UserError, match="hotwords 'word': expected a list"):
        search_options({"hotwords": "word"})
    with pytest.raises(UserError, match=r"hotwords \[''\]: expected a text"):
        search_options({"hotwords": [""]})
    with pytest.raises(UserError, match="not with sampling"):
        search_options({"hotwords": ["word"], "sampling": True})


def test_the_first_pass_writes_a_hotword(whisper_base, speech_file):
    """Whisper's search takes words that are close to the speech, and no other one."""
    decoder, wave = SpeechDecoder(whisper_base), load_audio(speech_file)

    def first_pass(*hotwords: str) -> list[str]:
        bias = hotwords, 4.0
        return make_first_pass(decoder, [wave], ["en"], 3, None, *bias)[0].texts

    assert not any("keys" in text for text in first_pass("weasels"))
    found = first_pass("weasels", "pound keys")
    assert "pound keys" in found[0].lower()
    assert not any("weasel" in text.lower() for text in found)


def test_bias_of_the_first_pass_takes_broken_matches_back():
    bias = HotwordBias(HotwordTrie([([1, 2, 1], True)], continues_word), 2.0, start=1)
    found = bias(torch.tensor([[9, 0, 1], [9, 1, 2]]), torch.zeros(2, 4))
    assert found.tolist() == [[-2.0, 0.0, 2.0, -2.0], [-4.0, 2.0, -4.0, -4.0]]


def test_errors_in_words_of_the_list_and_in_others():
    references = [["the", "weasels", "have", "eaten"], ["press", "pound"], ["a"]]
    texts = [["the", "we", "have", "weasels"], ["press", "a", "eaten"], ["a"]]
    found = word_errors(references, texts, {"weasels", "eaten", "a"})
    # "weasels" and "eaten" are wrong; "a" or "eaten" in place of "pound", one inserted
    assert found == WordErrors(3, 4, 2, 2, 3)


def test_lists_have_rare_words_first(tmp_path):
    (tmp_path / "text").write_text("a1 press pound\na2 Press one\nb1 uno solo\n")
    (tmp_path / "utt2lang").write_text("a1 en\na2 en\nb1 it\n")
    (tmp_path / "text.fr").write_text("a1 appuyez\n")
    training = training_words(tmp_path, {"en"})
    assert training == {"press": 2, "pound": 1, "one": 1, "uno": 0} | dict.fromkeys(
        ["solo", "appuyez"], 0
    )
    words = word_list([["press", "weasels"], ["solo", "a"]], training)
    assert set(words[:2]) == {"weasels", "solo"}
    assert words[2:3] == ["pound"] and set(words[3:]) == {"appuyez"}
    with pytest.raises(UserError, match="no word of the test set is rare"):
        word_list([["press"]], training)


def test_the_table_of_the_benchmark(tiny_model, tmp_path, speech_file, capsys):
    examples, train = tmp_path / "examples", tmp_path / "train"
    for folder in (examples, train):
        folder.mkdir()
        (folder / "text").write_text("a enter your password\n")
    (examples / "wav.scp").write_text(f"a {speech_file}\n")
    (examples / "utt2task").write_text("a asr en en\n")
    (train / "utt2lang").write_text("a en\n")
    config = tmp_path / "decode.yaml"
    config.write_text("tokens_per_second: 0\nextra_tokens: 3\n")
    output = tmp_path / "table.md"
    arguments = ["--model", str(tiny_model), "--train", str(train)]
    arguments += ["--config", str(config), "--output", str(output)]
    arguments += ["--sizes", "1", "9", "--hotword_bonus", "0", "1"]
    hotword_table.main(["--examples", str(examples), *arguments])
    lines = output.read_text().splitlines()
    assert capsys.readouterr().out == output.read_text()
    assert all(line.count("|") == 11 for line in lines) and len(lines) == 2 + 4
    assert [line.split(" | ")[:3] for line in lines[2:]] == [
        ["| 1", "0", "1"],
        ["| 1", "1", "1"],
        ["| 3", "0", "3"],
        ["| 3", "1", "3"],
    ]
    (examples / "utt2task").write_text("a st en fr\n")
    with pytest.raises(UserError, match="no asr in a language with spaces"):
        hotword_table.main(["--examples", str(examples), *arguments])


@pytest.mark.parametrize("command", ["speechllm", "decode"])
def test_a_list_is_read_before_the_model(tmp_path, command):
    path = tmp_path / "words.txt"
    path.write_text("# none\n")
    arguments = ["--model", str(tmp_path / "none"), "--hotwords", str(path)]
    with pytest.raises(UserError, match=r"words\.txt: no hotwords"):
        if command == "speechllm":
            cli.main(["transcribe", *arguments, "a.wav"])
        else:
            decode.main([*arguments, "--examples", "a", "--output_dir", "b"])


def test_the_api_and_the_guard_take_hotwords(tiny_model, speech_file):
    model = SpeechToText.from_pretrained(tiny_model)
    waves = [load_audio(speech_file), load_audio(speech_file)[:20000]]
    limit = {"tokens_per_second": 0.0, "extra_tokens": 6.0, "beam_size": 2}
    plain = model.transcribe(waves, **limit)
    assert model.transcribe(waves, hotwords=[], **limit) == plain
    assert not any("weasel" in result.text.lower() for result in plain)
    large = {"hotwords": ["weasels"], "hotword_bonus": 50.0, **limit}
    for weight in (0.0, 0.3):
        found = model.transcribe(waves, ctc_weight=weight, **large)
        assert all("weasels" in result.text.lower() for result in found)
        alone = [model.transcribe([w], ctc_weight=weight, **large)[0] for w in waves]
        assert [r.text for r in alone] == [r.text for r in found]
