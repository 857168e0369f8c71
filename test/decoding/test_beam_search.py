"""Beam search and sampling, compared with transformers and exhaustive search.

Greedy outputs and n-gram blocking must equal those of transformers. A wide beam must
find the best of all outputs, which are scored by a forward pass of transformers and
torch's CTC loss. Outputs must not depend on the batch.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import five_token_llm, write_tokenizer

from speechllm.decoding import joint_ctc_scorer
from speechllm.decoding.beam_search import beam_search
from speechllm.decoding.ctc_prefix_scorer import CTCPrefixScorer
from speechllm.decoding.hypothesis import (
    BeamState,
    Candidate,
    Hypothesis,
    SearchRequest,
)
from speechllm.decoding.joint_ctc_scorer import JointCTCScorer
from speechllm.decoding.kv_cache import assign_rows
from speechllm.decoding.llm_scorer import LLMScorer
from speechllm.decoding.options import SearchOptions
from speechllm.models.llm import LanguageModel
from speechllm.text.answer_codec import AnswerCodec
from speechllm.text.ctc_labels import PENDING, CTCTokenizer
from speechllm.text.normalization import ctc_text
from speechllm.text.t5_tokenizer import load_tokenizer
from speechllm.text.tasks import Task

EOS = 4  # of the five-token model


@pytest.fixture(scope="module")
def five_tokens() -> LanguageModel:
    # each token has as many letters as CTC labels in `to_ctc_labels`
    return five_token_llm(11, ["a", "b", "ca", ",", ""])


@pytest.fixture(scope="module")
def llm(tiny_llm) -> LanguageModel:
    return LanguageModel(str(tiny_llm), tuning="frozen", dtype="float32").eval()


@torch.inference_mode()
def log_prob(llm: LanguageModel, prompt: torch.Tensor, output: list[int]) -> float:
    """Return the log probability of an output and its end, by transformers."""
    inputs = torch.cat([prompt, llm.embed(torch.tensor(output, dtype=torch.long))])
    logits = llm.causal_lm(inputs_embeds=inputs[None]).logits[0]
    positions = torch.arange(len(prompt) - 1, len(inputs))
    targets = torch.tensor([*output, llm.eos_id])
    return logits.log_softmax(1)[positions, targets].sum().item()


def random_prompt(llm: LanguageModel, size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, llm.hidden_size, generator=generator)


def search(
    llm, prompts, max_tokens, options, ctc=None, label_fns=None, seeds=None, **keywords
) -> list[list[Hypothesis]]:
    label_fns = label_fns or [None] * len(prompts)
    seeds = seeds or [0] * len(prompts)
    requests = [
        SearchRequest(prompt, limit, label_fn, sampling_seed=seed)
        for prompt, limit, label_fn, seed in zip(prompts, max_tokens, label_fns, seeds)
    ]
    return beam_search(llm, requests, options, ctc, **keywords)


def all_outputs(max_tokens: int):
    """Yield all outputs of at most ``max_tokens`` tokens."""
    for size in range(max_tokens + 1):
        for output in itertools.product(range(4), repeat=size):
            yield list(output)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("penalty", [0.0, -0.7, 0.3, 0.7, 2.0])
def test_wide_beam_equals_exhaustive_search(five_tokens, seed, penalty):
    prompt = random_prompt(five_tokens, 1 + seed, seed)
    options = SearchOptions(beam_size=64, nbest=5, penalty=penalty)
    (found,) = search(five_tokens, [prompt], [3], options)
    ranked = sorted(
        (log_prob(five_tokens, prompt, output) + penalty * (len(output) + 1), output)
        for output in all_outputs(3)
    )[::-1]
    assert [h.tokens for h in found] == [output for _, output in ranked[:5]]
    for hypothesis, (score, output) in zip(found, ranked):
        assert hypothesis.score == pytest.approx(score, abs=1e-4)
        expected = log_prob(five_tokens, prompt, output)
        assert hypothesis.llm_score == pytest.approx(expected, abs=1e-4)
        assert hypothesis.ctc_score is None


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_ngram_is_repeated(five_tokens, size):
    prompt = random_prompt(five_tokens, 2, size)
    options = SearchOptions(beam_size=300, nbest=5, no_repeat_ngram_size=size)
    (found,) = search(five_tokens, [prompt], [4], options)

    def has_no_repetition(output: list[int]) -> bool:
        ngrams = [tuple(output[i : i + size]) for i in range(len(output) - size + 1)]
        return len(set(ngrams)) == len(ngrams)

    ranked = sorted(
        (log_prob(five_tokens, prompt, output), output)
        for output in all_outputs(4)
        if has_no_repetition(output)
    )[::-1]
    assert [h.tokens for h in found] == [output for _, output in ranked[:5]]


def test_greedy_ngram_blocking_equals_transformers(five_tokens):
    prompt = random_prompt(five_tokens, 5, 8)
    expected = five_tokens.causal_lm.generate(
        inputs_embeds=prompt[None],
        max_new_tokens=15,
        min_new_tokens=12,
        do_sample=False,
        no_repeat_ngram_size=3,
        pad_token_id=0,
    )[0].tolist()
    plain = SearchOptions(min_tokens=12)
    options = SearchOptions(min_tokens=12, no_repeat_ngram_size=3)
    ((found,),) = search(five_tokens, [prompt], [15], options)
    assert found.tokens == [t for t in expected if t != EOS]
    assert found.tokens != search(five_tokens, [prompt], [15], plain)[0][0].tokens


def to_ctc_labels(tokens: list[int]) -> list[int]:
    """Return label k + 1 for token k, two labels for token 2, none for token 3."""
    return [label for t in tokens for label in {2: [3, 1], 3: []}.get(t, [t + 1])]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("weight", [0.3, 0.9])
def test_joint_search_equals_exhaustive_search(five_tokens, seed, weight):
    prompt = random_prompt(five_tokens, 2, seed)
    logits = 2 * torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(seed))
    frames = torch.tensor([9])
    options = SearchOptions(beam_size=128, nbest=4, ctc_weight=weight, pre_beam_size=5)
    (found,) = search(
        five_tokens,
        [prompt],
        [3],
        options,
        CTCPrefixScorer(logits, frames),
        [to_ctc_labels],
    )

    def ctc_log_prob(output: list[int]) -> float:
        labels = torch.tensor([to_ctc_labels(output)], dtype=torch.long)
        return -torch.nn.functional.ctc_loss(
            logits.double().log_softmax(2).transpose(0, 1),
            labels,
            frames,
            torch.tensor([labels.shape[1]]),
            reduction="sum",
        ).item()

    ranked = sorted(
        (
            (1 - weight) * log_prob(five_tokens, prompt, a) + weight * ctc_log_prob(a),
            a,
        )
        for a in all_outputs(3)
    )[::-1]
    assert [h.tokens for h in found] == [output for _, output in ranked[:4]]
    for hypothesis, (score, output) in zip(found, ranked):
        assert hypothesis.score == pytest.approx(score, abs=1e-4)
        assert hypothesis.ctc_score == pytest.approx(ctc_log_prob(output), abs=1e-4)


def certain_search(tokenizer, text: str, beam_size: int, **options) -> Hypothesis:
    """Decode jointly where LLM and CTC are certain of a text.

    The LLM is a table: each token of the text gives the next one, the last one the end.
    """
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    eos = tokenizer.eos_token_id
    assert len(set(tokens)) == len(tokens), "the table needs distinct tokens"
    following = dict(zip([eos, *tokens], [*tokens, eos]))  # eos is the prompt

    class TableLLM:
        eos_id = eos
        step_graphs = False
        causal_lm = SimpleNamespace(
            get_input_embeddings=lambda: SimpleNamespace(weight=torch.empty(0))
        )

        def embed(self, ids):
            return ids[..., None].float()

        def body(self, embeddings, mask, cache):
            cache.update(embeddings[:, None], embeddings[:, None], 0)  # rows in step
            return embeddings

        def head(self, hidden):
            logits = torch.full((len(hidden), len(tokenizer)), -20.0)
            for row, token in zip(logits, hidden[:, 0].long().tolist()):
                row[following.get(token, eos)] = 20.0
            return logits

        def token_length(self, token):
            return len(tokenizer.decode([token]))

    spoken = ctc_text(text, "ko")
    labels = ["<blank>", "<unk>", "<space>", *sorted(set(spoken) - {" "}), "<sos/eos>"]
    codec = AnswerCodec(tokenizer, CTCTokenizer(labels))
    path = [k for label in codec.ctc_tokenizer(spoken) for k in (label, 0)]
    logits = torch.full((1, len(path), len(labels)), -20.0)
    logits[0, torch.arange(len(path)), path] = 20.0
    task = Task("asr", "ko", "ko")
    request = SearchRequest(torch.tensor([[float(eos)]]), 30, codec.label_fn(task))
    ((found, *_),) = beam_search(
        TableLLM(),
        [request],
        SearchOptions(beam_size=beam_size, ctc_weight=0.5, **options),
        CTCPrefixScorer(logits, torch.tensor([len(path)])),
    )
    assert found.tokens == tokens, tokenizer.decode(found.tokens)
    return found


@pytest.mark.parametrize("beam_size", [1, 4])
@pytest.mark.parametrize(
    "text", ["鵺", "你好吗", "한국어", " press «one».", '鵺"), a...']
)
def test_joint_search_writes_any_text(smollm2, text, beam_size):
    """Characters of several byte tokens, and consecutive tokens without labels."""
    found = certain_search(load_tokenizer(smollm2), text, beam_size)
    assert found.ctc_score == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_joint_search_writes_bytes_of_sentencepiece(tmp_path, beam_size):
    """Byte fallback as in rinna's tokenizers."""
    write_tokenizer(tmp_path)
    found = certain_search(load_tokenizer(tmp_path), "今日は鵺", beam_size)
    assert found.score == pytest.approx(0, abs=1e-3)


def test_consecutive_tokens_without_labels_cost_more_and_more(five_tokens, monkeypatch):
    """The first of a sequence is free, then 2, 4, 6; scores do not contain the cost."""
    prompt = random_prompt(five_tokens, 2, 1)
    logits = torch.zeros(1, 9, 4)
    logits[:, :, 0] = 30.0  # CTC is certain of an empty transcript
    costs = {}
    advance = BeamState.advance

    def recorded(self, *others):
        chosen = advance(self, *others)
        costs.update({tuple(h.tokens): h.unlabelled_cost for h in self.hypotheses})
        return chosen

    monkeypatch.setattr(BeamState, "advance", recorded)
    options = SearchOptions(beam_size=700, nbest=700, ctc_weight=0.5, pre_beam_size=5)
    scorer = CTCPrefixScorer(logits, torch.tensor([9]))
    (found,) = search(five_tokens, [prompt], [4], options, scorer, [to_ctc_labels])
    assert [costs[(3,) * size] for size in (1, 2, 3, 4)] == [0, 2, 6, 12]
    assert costs[3, 0, 3] == 0 and costs[3, 3, 0, 3] == 2
    scores = {tuple(h.tokens): h.score for h in found}
    for size in range(5):
        expected = 0.5 * log_prob(five_tokens, prompt, [3] * size)
        assert scores[(3,) * size] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("most", [1, 2])
def test_search_is_exhaustive_over_texts_with_few_unlabelled_tokens(
    five_tokens, monkeypatch, seed, most
):
    """Token 3 has no label; an output has at most ``most`` of them in a row."""
    monkeypatch.setattr(joint_ctc_scorer, "MOST_UNLABELLED", most)
    prompt = random_prompt(five_tokens, 2, seed)
    logits = 2 * torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(seed))
    options = SearchOptions(beam_size=700, nbest=700, ctc_weight=0.5, pre_beam_size=5)
    scorer = CTCPrefixScorer(logits, torch.tensor([9]))
    (found,) = search(five_tokens, [prompt], [4], options, scorer, [to_ctc_labels])
    monkeypatch.setattr(joint_ctc_scorer, "MOST_UNLABELLED", 9)
    scorer = CTCPrefixScorer(logits, torch.tensor([9]))
    (every,) = search(five_tokens, [prompt], [4], options, scorer, [to_ctc_labels])
    run = [3] * (most + 1)
    kept = [
        h for h in every if not any(h.tokens[i:][: len(run)] == run for i in range(4))
    ]
    assert [h.tokens for h in found] == [h.tokens for h in kept]
    assert [h.score for h in found] == pytest.approx([h.score for h in kept], abs=1e-5)
    assert len(kept) < len(every)


def looping_search(
    max_tokens: int, label_fn=to_ctc_labels, **options
) -> tuple[Hypothesis, int]:
    """Decode jointly where the LLM writes 1 and then 3, which has no label, for ever.

    The longer the output, the more it prefers the end: at 100 tokens to all else. CTC
    is certain of token 1. Returns the best output and the number of steps.
    """
    steps = []

    class LoopingLLM:
        eos_id = EOS
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
            logits = torch.full((len(hidden), 5), -30.0)
            logits[:, EOS] = -8.0 + 0.05 * len(steps)
            for row, token in zip(logits, hidden[:, 0].long().tolist()):
                row[1 if token == EOS else 3] = 0.0
            steps.append(len(hidden))
            return logits

        def token_length(self, token):
            return 1

    logits = torch.full((1, 4, 4), -20.0)
    logits[0, :, 0] = 20.0
    logits[0, 1, :3] = torch.tensor([-20.0, -20.0, 20.0])  # label 2: token 1
    ((found, *_),) = beam_search(
        LoopingLLM(),
        [SearchRequest(torch.tensor([[float(EOS)]]), max_tokens, label_fn)],
        SearchOptions(ctc_weight=0.5, pre_beam_size=5, **options),
        CTCPrefixScorer(logits, torch.tensor([4])),
    )
    return found, len(steps)


@pytest.mark.parametrize("beam_size", [1, 4])
def test_loops_in_tokens_without_labels_end(monkeypatch, beam_size):
    found, steps = looping_search(120, beam_size=beam_size)
    assert found.tokens[0] == 1 and set(found.tokens[1:]) <= {3}
    assert len(found.tokens) <= 9 and not found.truncated
    assert steps < 30
    monkeypatch.setattr(joint_ctc_scorer, "MOST_UNLABELLED", 10**6)
    found, steps = looping_search(120, beam_size=beam_size)
    assert len(found.tokens) >= 100 and steps >= 100  # without the end


@pytest.mark.parametrize("beam_size", [1, 4])
def test_loops_in_bytes_of_no_character_end(beam_size):
    """Each token 3 leaves a character incomplete; three may begin a character."""

    def label_fn(tokens):
        return to_ctc_labels(tokens) + [PENDING] * (tokens[-1] == 3)

    found, steps = looping_search(120, label_fn, beam_size=beam_size)
    assert found.tokens[0] == 1 and set(found.tokens[1:]) <= {3}
    assert len(found.tokens) <= 1 + 3 + 8 and steps < 30


def test_symbols_in_broken_bytes_stay_incomplete(smollm2):
    """☦, a stray byte and the first byte of the next one: a loop that a model wrote."""
    tokenizer = load_tokenizer(smollm2)
    codec = AnswerCodec(tokenizer, CTCTokenizer(["<blank>", "<unk>", "a", "<sos/eos>"]))
    label_fn = codec.label_fn(Task("asr", "en", "en"))
    cycle = tokenizer.convert_tokens_to_ids(["Ġâ", "ĺ", "¦Ĥ"])
    assert all(
        label_fn((cycle * 4)[:size]) == [PENDING] for size in range(1, 3 * 4 + 1)
    )


def test_a_minimum_length_takes_precedence_over_the_end_of_loops():
    found, _ = looping_search(40, beam_size=2, min_tokens=20)
    assert len(found.tokens) == 20


def test_ctc_does_not_score_translations(five_tokens):
    """Decode a transcript and a translation in one batch."""
    prompts = [random_prompt(five_tokens, 3, seed) for seed in (1, 2)]
    logits = 5 * torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(1))
    scorer = CTCPrefixScorer(logits, torch.tensor([9, 7]))
    joint = SearchOptions(beam_size=3, ctc_weight=0.8, pre_beam_size=5)
    found = search(five_tokens, prompts, [3, 3], joint, scorer, [to_ctc_labels, None])
    plain = SearchOptions(beam_size=3)
    (alone,) = search(five_tokens, prompts[1:], [3], plain)
    assert found[1][0].tokens == alone[0].tokens
    assert found[1][0].score == pytest.approx(alone[0].score, abs=1e-5)
    assert found[1][0].ctc_score is None
    assert found[0][0].ctc_score is not None


TEXTS = (
    "The capital of France is",
    "One, two, three,",
    "Please enter your password followed by the pound",
)


def greedy_by_transformers(folder, texts, count: int) -> list[list[int]]:
    """Return the greedy outputs of transformers, one text at a time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    outputs = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")
        generated = model.generate(**ids, max_new_tokens=count, do_sample=False)
        tokens = generated[0, ids["input_ids"].shape[1] :].tolist()
        outputs.append(
            list(itertools.takewhile(lambda t: t != tokenizer.eos_token_id, tokens))
        )
    return outputs


def check_greedy(folder, count: int) -> None:
    """Compare greedy search over a batch with transformers."""
    llm = LanguageModel(str(folder), tuning="frozen", dtype="float32").eval()
    ids = [llm.tokenizer(text)["input_ids"] for text in TEXTS]
    with torch.inference_mode():
        prompts = llm.embed_lists(ids)
    found = search(llm, prompts, [count] * len(ids), SearchOptions())
    assert [nbest[0].tokens for nbest in found] == greedy_by_transformers(
        folder, TEXTS, count
    )


def test_greedy_equals_transformers(tiny_llm):
    check_greedy(tiny_llm, 12)


@pytest.mark.slow
def test_greedy_of_smollm2_equals_transformers(smollm2):
    check_greedy(smollm2, 12)


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 24), min_size=2, max_size=9),
    batch=st.integers(1, 9),
    beam=st.sampled_from([1, 1, 3]),
    weight=st.sampled_from([0.0, 0.4]),
    order=st.randoms(use_true_random=False),
    seed=st.integers(0, 1000),
)
def test_outputs_do_not_depend_on_the_batch(
    llm, sizes, batch, beam, weight, order, seed
):
    prompts = [random_prompt(llm, n, seed + i) for i, n in enumerate(sizes)]
    limits = [3 + n % 5 for n in sizes]
    frames = torch.tensor([8 + n for n in sizes])
    logits = 2 * torch.randn(
        len(sizes), 40, 29, generator=torch.Generator().manual_seed(seed)
    )
    options = SearchOptions(beam_size=beam, nbest=2, ctc_weight=weight, pre_beam_size=6)

    def label_fn(tokens: list[int]) -> list[int]:
        return [1 + t % 28 for t in tokens]

    def decode(selected: list[int]) -> list:
        scorer = CTCPrefixScorer(logits[selected], frames[selected]) if weight else None
        label_fns = [label_fn if i % 3 else None for i in selected]
        return search(
            llm,
            [prompts[i] for i in selected],
            [limits[i] for i in selected],
            options,
            scorer,
            label_fns,
        )

    indices = list(range(len(sizes)))
    alone = [decode([i])[0] for i in indices]
    order.shuffle(indices)
    for begin in range(0, len(indices), batch):
        selected = indices[begin : begin + batch]
        for index, nbest in zip(selected, decode(selected)):
            assert [h.tokens for h in nbest] == [h.tokens for h in alone[index]]
            for one, expected in zip(nbest, alone[index]):
                assert one.score == pytest.approx(expected.score, abs=1e-3)


def test_minimum_and_maximum_number_of_tokens(five_tokens):
    prompts = [random_prompt(five_tokens, 2, seed) for seed in range(8)]
    for beam in (1, 4):
        for lower, upper in ((0, 0), (0, 2), (3, 3), (2, 5), (4, 2)):
            options = SearchOptions(beam_size=beam, min_tokens=lower)
            found = search(five_tokens, prompts, [upper] * 8, options)
            for nbest in found:
                assert min(lower, upper) <= len(nbest[0].tokens) <= upper


def test_each_utterance_has_its_own_limit(five_tokens):
    prompt = random_prompt(five_tokens, 2, 1)
    options = SearchOptions(min_tokens=9)
    found = search(five_tokens, [prompt] * 3, [1, 4, 2], options)
    assert [len(nbest[0].tokens) for nbest in found] == [1, 4, 2]


def test_maximum_number_of_tokens_grows_with_duration():
    options = SearchOptions(tokens_per_second=4.0)
    assert [options.max_tokens(s) for s in (0.1, 1.0, 10.0)] == [20, 24, 60]
    default = SearchOptions()
    assert [default.max_tokens(s) for s in (0.1, 1.0, 10.0)] == [21, 32, 140]


def test_nbest_hypotheses_are_distinct_and_sorted(five_tokens):
    options = SearchOptions(beam_size=8, nbest=8)
    prompt = random_prompt(five_tokens, 2, 3)
    (found,) = search(five_tokens, [prompt], [3], options)
    assert len(found) == 8
    assert len({tuple(h.tokens) for h in found}) == 8
    scores = [h.score for h in found]
    assert scores == sorted(scores, reverse=True)


def test_wider_beam_is_not_worse(five_tokens):
    for seed in range(10):
        prompt = random_prompt(five_tokens, 2, seed)
        best = [
            search(five_tokens, [prompt], [5], SearchOptions(beam_size=b))[0][0]
            for b in (1, 256)
        ]
        assert best[0].score <= best[1].score + 1e-5


# Queue of waiting utterances


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=3, max_size=12),
    batch_size=st.integers(1, 5),
    search_options=st.sampled_from(
        [
            {},
            {"beam_size": 3, "nbest": 2},
            {"beam_size": 2, "ctc_weight": 0.4, "pre_beam_size": 6},
            {"no_repeat_ngram_size": 2},
            {"sampling": True, "temperature": 1.3, "top_k": 9, "top_p": 0.9},
        ]
    ),
    seed=st.integers(0, 1000),
)
def test_late_joining_utterances_do_not_affect_others(
    llm, sizes, batch_size, search_options, seed
):
    """Decode prompts of very different lengths and limits in a nbest and one by one."""
    prompts = [random_prompt(llm, n, seed + i) for i, n in enumerate(sizes)]
    limits = [1 + 3 * n % 7 for n in sizes]
    logits = 2 * torch.randn(
        len(sizes), 50, 29, generator=torch.Generator().manual_seed(seed)
    )
    frames = torch.tensor([10 + n for n in sizes])
    options = SearchOptions(**search_options)

    def decode(selected: list[int], batch_size: int | None) -> list:
        return search(
            llm,
            [prompts[i] for i in selected],
            [limits[i] for i in selected],
            options,
            CTCPrefixScorer(logits[selected], frames[selected]),
            [lambda tokens: [1 + t % 28 for t in tokens]] * len(selected),
            batch_size=batch_size,
            seeds=[100 + i for i in selected],
        )

    indices = list(range(len(sizes)))
    alone = [decode([i], None)[0] for i in indices]
    for nbest, expected in zip(decode(indices, batch_size), alone):
        assert [h.tokens for h in nbest] == [h.tokens for h in expected]
        for one, other in zip(nbest, expected):
            assert one.score == pytest.approx(other.score, abs=1e-3)
    reverse = decode(indices[::-1], batch_size)[::-1]
    assert [[h.tokens for h in nbest] for nbest in reverse] == [
        [h.tokens for h in nbest] for nbest in alone
    ]


@pytest.mark.parametrize(
    "name, replacement",
    [
        # rows are copied as a whole
        (
            "llm_scorer.LLMScorer.changed",
            lambda scorer, row, source: scorer.cache.get_seq_length(),
        ),
        # the least promising candidates are scored first
        (
            "joint_ctc_scorer.JointCTCScorer.by_promise",
            lambda scorer, candidates, beam, old=JointCTCScorer.by_promise: old(
                scorer, candidates, beam
            )[::-1],
        ),
    ],
)
def test_shortcuts_do_not_change_the_result(llm, monkeypatch, name, replacement):
    """Compare with a search that copies and scores everything."""
    prompts = [random_prompt(llm, 3 + 2 * seed, seed) for seed in range(7)]
    logits = 2 * torch.randn(7, 30, 29, generator=torch.Generator().manual_seed(1))
    frames = torch.arange(12, 26, 2)
    options = SearchOptions(beam_size=4, nbest=3, ctc_weight=0.4, pre_beam_size=25)

    def decode() -> list[tuple[list[int], float]]:
        found = search(
            llm,
            prompts,
            [9] * 7,
            options,
            CTCPrefixScorer(logits, frames),
            [lambda tokens: [1 + t % 28 for t in tokens]] * 7,
            batch_size=3,
        )
        return [(h.tokens, h.score) for nbest in found for h in nbest]

    expected = decode()
    monkeypatch.setattr(f"speechllm.decoding.{name}", replacement)
    assert decode() == expected


def test_finished_utterances_are_replaced_from_the_queue(llm, monkeypatch):
    """Count the rows of the LLM at each step."""
    rows = []
    body = LanguageModel.body

    def counted(self, embeddings, *others):
        if embeddings.shape[1] == 1:
            rows.append(len(embeddings))
        return body(self, embeddings, *others)

    monkeypatch.setattr(LanguageModel, "body", counted)
    prompts = [random_prompt(llm, 5, seed) for seed in range(12)]
    limits = [2, 6, 3, 5] * 3
    options = SearchOptions(min_tokens=9)  # each output has its maximum length
    found = search(llm, prompts, limits, options, batch_size=4)
    assert [len(nbest[0].tokens) for nbest in found] == limits
    assert max(rows) == 4
    assert sum(rows) == sum(limits)
    without_queue = sum(max(limits[i : i + 4]) for i in (0, 4, 8))
    assert len(rows) < without_queue


# Rows of the KV cache


def test_scorer_with_changing_rows_equals_transformers(llm):
    """Compare each step with a forward pass over the whole text."""
    prompts = [random_prompt(llm, n, n) for n in (9, 3, 30, 50, 2, 4)]
    scorer = LLMScorer(llm, prompts, SearchOptions())
    texts: list[torch.Tensor] = []

    def check():
        assert len(scorer.log_probs) == len(texts)
        for row, text in enumerate(texts):
            logits = llm.causal_lm(inputs_embeds=text[None]).logits[0, -1]
            expected = logits.log_softmax(0)
            assert torch.allclose(scorer.log_probs[row], expected, atol=1e-4)

    def add(*utterances):
        texts.extend(prompts[i] for i in scorer.prefill(utterances))
        check()

    def step(parents, tokens):
        survivors = [
            Candidate(Hypothesis(row=parent), token, 0.0, 0.0, 0.0, [], parent)
            for parent, token in zip(parents, tokens)
        ]
        scorer.select(survivors, [])
        embedded = llm.embed(torch.tensor(tokens, dtype=torch.long))
        texts[:] = [
            torch.cat([texts[parent], embedding[None]])
            for parent, embedding in zip(parents, embedded)
        ]
        check()

    with torch.inference_mode():
        add(0, 1, 2)
        step([0, 1, 2], [5, 6, 7])
        step([1, 1, 0, 2], [8, 9, 10, 11])  # two rows continue the same one
        step([0, 2], [12, 13])  # the longest row is dropped
        width = scorer.cache.get_seq_length()
        assert width == max(len(text) for text in texts)
        add(3, 4)  # one prompt is longer than all rows
        for count in range(40):  # beyond the initial buffer size
            step([3, 1, 2, 0], [count, 3, 2, 1])
        step([2], [4])
        step([], [])
        add(5)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(parents=st.lists(st.integers(0, 9), max_size=10))
def test_as_many_rows_as_possible_are_not_moved(parents):
    order = assign_rows(parents)
    assert sorted(order) == list(range(len(parents)))
    staying = sum(parents[new] == row for row, new in enumerate(order))
    assert staying == len({p for p in parents if p < len(parents)})


# Sampling


def test_sampled_tokens_follow_the_distribution(five_tokens):
    """Draw outputs of one token with 4000 sampling seeds."""
    prompt = random_prompt(five_tokens, 2, 3)
    with torch.inference_mode():
        logits = five_tokens.causal_lm(inputs_embeds=prompt[None]).logits[0, -1]
    expected = (logits / 0.8).softmax(0)
    options = SearchOptions(sampling=True, temperature=0.8)
    found = search(five_tokens, [prompt] * 4000, [1] * 4000, options, seeds=range(4000))
    first = torch.tensor([[*nbest[0].tokens, EOS][0] for nbest in found])
    shares = torch.bincount(first, minlength=5) / 4000
    assert torch.allclose(shares, expected, atol=0.03)
    for (hypothesis,) in found[:20]:
        score = log_prob(five_tokens, prompt, hypothesis.tokens)
        assert hypothesis.llm_score == pytest.approx(score, abs=1e-4)


def test_samples_depend_on_the_seeds_only(five_tokens):
    prompts = [random_prompt(five_tokens, 3, 1)] * 6

    def draw(seed: int, sampling_seeds: list[int]) -> list:
        options = SearchOptions(sampling=True, temperature=2.0, seed=seed)
        found = search(five_tokens, prompts, [8] * 6, options, seeds=sampling_seeds)
        return [nbest[0].tokens for nbest in found]

    first = draw(1, [0, 1, 2, 3, 4, 5])
    assert first == draw(1, [0, 1, 2, 3, 4, 5])
    assert first[::-1] == draw(1, [5, 4, 3, 2, 1, 0])
    assert len({tuple(tokens) for tokens in first}) > 2
    assert first != draw(2, [0, 1, 2, 3, 4, 5])


def test_sampling_respects_minimum_and_maximum_tokens(five_tokens):
    prompts = [random_prompt(five_tokens, 2, seed) for seed in range(8)]
    for lower, upper in ((0, 0), (3, 3), (2, 5), (4, 2)):
        options = SearchOptions(sampling=True, min_tokens=lower)
        found = search(five_tokens, prompts, [upper] * 8, options, seeds=range(8))
        for nbest in found:
            assert min(lower, upper) <= len(nbest[0].tokens) <= upper
