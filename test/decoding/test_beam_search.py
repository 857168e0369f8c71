"""Search: transformers' own greedy answers, exhaustive search, and batches."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import five_token_llm

from speechllm.decoding.beam_search import beam_search
from speechllm.decoding.ctc_prefix_scorer import CTCPrefixScorer
from speechllm.decoding.hypothesis import Candidate, Hypothesis, SearchRequest
from speechllm.decoding.kv_cache import assign_rows
from speechllm.decoding.llm_scorer import LLMScorer
from speechllm.decoding.options import SearchOptions
from speechllm.decoding.sampling import sampling_probabilities
from speechllm.models.llm import LanguageModel

EOS = 4  # of the model with five tokens


@pytest.fixture(scope="module")
def five_tokens() -> LanguageModel:
    # as many characters as `spell` has labels
    return five_token_llm(11, ["a", "b", "ca", ",", ""])


@pytest.fixture(scope="module")
def llm(tiny_llm) -> LanguageModel:
    return LanguageModel(str(tiny_llm), tuning="frozen", dtype="float32").eval()


@torch.inference_mode()
def log_prob(llm: LanguageModel, prompt: torch.Tensor, answer: list[int]) -> float:
    """Log probability of an answer and its end, straight from transformers."""
    inputs = torch.cat([prompt, llm.embed(torch.tensor(answer, dtype=torch.long))])
    logits = llm.causal_lm(inputs_embeds=inputs[None]).logits[0]
    places = torch.arange(len(prompt) - 1, len(inputs))
    targets = torch.tensor([*answer, llm.eos_id])
    return logits.log_softmax(1)[places, targets].sum().item()


def random_prompt(llm: LanguageModel, size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, llm.hidden_size, generator=generator)


def search(
    llm, prompts, max_tokens, options, ctc=None, label_fns=None, seeds=None, **how
) -> list[list[Hypothesis]]:
    label_fns = label_fns or [None] * len(prompts)
    seeds = seeds or [0] * len(prompts)
    requests = [
        SearchRequest(prompt, most, label_fn, sampling_seed=seed)
        for prompt, most, label_fn, seed in zip(prompts, max_tokens, label_fns, seeds)
    ]
    return beam_search(llm, requests, options, ctc, **how)


def all_answers(longest: int):
    for size in range(longest + 1):
        for answer in itertools.product(range(4), repeat=size):
            yield list(answer)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("penalty", [0.0, -0.7])
def test_a_wide_beam_finds_the_best_of_all_answers(five_tokens, seed, penalty):
    prompt = random_prompt(five_tokens, 1 + seed, seed)
    options = SearchOptions(beam_size=64, nbest=5, penalty=penalty)
    (found,) = search(five_tokens, [prompt], [3], options)
    ranked = sorted(
        (log_prob(five_tokens, prompt, answer) + penalty * (len(answer) + 1), answer)
        for answer in all_answers(3)
    )[::-1]
    assert [h.tokens for h in found] == [answer for _, answer in ranked[:5]]
    for hypothesis, (score, answer) in zip(found, ranked):
        assert hypothesis.score == pytest.approx(score, abs=1e-4)
        expected = log_prob(five_tokens, prompt, answer)
        assert hypothesis.llm_score == pytest.approx(expected, abs=1e-4)
        assert hypothesis.ctc_score is None


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_run_of_tokens_stands_twice(five_tokens, size):
    prompt = random_prompt(five_tokens, 2, size)
    options = SearchOptions(beam_size=300, nbest=5, no_repeat_ngram_size=size)
    (found,) = search(five_tokens, [prompt], [4], options)

    def once(answer: list[int]) -> bool:
        runs = [tuple(answer[i : i + size]) for i in range(len(answer) - size + 1)]
        return len(set(runs)) == len(runs)

    ranked = sorted(
        (log_prob(five_tokens, prompt, answer), answer)
        for answer in all_answers(4)
        if once(answer)
    )[::-1]
    assert [h.tokens for h in found] == [answer for _, answer in ranked[:5]]


def test_no_repetition_in_a_greedy_answer_as_in_transformers(five_tokens):
    prompt = random_prompt(five_tokens, 5, 8)
    expected = five_tokens.causal_lm.generate(
        inputs_embeds=prompt[None],
        max_new_tokens=15,
        min_new_tokens=12,
        do_sample=False,
        no_repeat_ngram_size=3,
        pad_token_id=0,
    )[0].tolist()
    free = SearchOptions(min_tokens=12)
    options = SearchOptions(min_tokens=12, no_repeat_ngram_size=3)
    ((found,),) = search(five_tokens, [prompt], [15], options)
    assert found.tokens == [t for t in expected if t != EOS]
    assert found.tokens != search(five_tokens, [prompt], [15], free)[0][0].tokens


def spell(tokens: list[int]) -> list[int]:
    """Token k is CTC label k + 1; token 3 says nothing; token 2 is two labels."""
    return [label for t in tokens for label in {2: [3, 1], 3: []}.get(t, [t + 1])]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("weight", [0.3, 0.9])
def test_joint_search_finds_the_best_of_all_answers(five_tokens, seed, weight):
    prompt = random_prompt(five_tokens, 2, seed)
    logits = 2 * torch.randn(1, 9, 4, generator=torch.Generator().manual_seed(seed))
    frames = torch.tensor([9])
    options = SearchOptions(beam_size=64, nbest=4, ctc_weight=weight, pre_beam_size=5)
    (found,) = search(
        five_tokens, [prompt], [3], options, CTCPrefixScorer(logits, frames), [spell]
    )

    def heard(answer: list[int]) -> float:
        labels = torch.tensor([spell(answer)], dtype=torch.long)
        return -torch.nn.functional.ctc_loss(
            logits.double().log_softmax(2).transpose(0, 1),
            labels,
            frames,
            torch.tensor([labels.shape[1]]),
            reduction="sum",
        ).item()

    ranked = sorted(
        (
            (1 - weight) * log_prob(five_tokens, prompt, a) + weight * heard(a),
            a,
        )
        for a in all_answers(3)
    )[::-1]
    assert [h.tokens for h in found] == [answer for _, answer in ranked[:4]]
    for hypothesis, (score, answer) in zip(found, ranked):
        assert hypothesis.score == pytest.approx(score, abs=1e-4)
        assert hypothesis.ctc_score == pytest.approx(heard(answer), abs=1e-4)


def test_ctc_has_no_say_in_a_translation(five_tokens):
    """Beside an utterance that it judges, one that it does not."""
    prompts = [random_prompt(five_tokens, 3, seed) for seed in (1, 2)]
    logits = 5 * torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(1))
    scorer = CTCPrefixScorer(logits, torch.tensor([9, 7]))
    joint = SearchOptions(beam_size=3, ctc_weight=0.8, pre_beam_size=5)
    found = search(five_tokens, prompts, [3, 3], joint, scorer, [spell, None])
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


def greedy_of_transformers(folder, texts, count: int) -> list[list[int]]:
    """transformers' own generate, each text on its own."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    answers = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")
        output = model.generate(**ids, max_new_tokens=count, do_sample=False)
        tokens = output[0, ids["input_ids"].shape[1] :].tolist()
        answers.append(
            list(itertools.takewhile(lambda t: t != tokenizer.eos_token_id, tokens))
        )
    return answers


def check_greedy(folder, count: int) -> None:
    llm = LanguageModel(str(folder), tuning="frozen", dtype="float32").eval()
    ids = [llm.tokenizer(text)["input_ids"] for text in TEXTS]
    with torch.inference_mode():
        prompts = llm.embed_lists(ids)
    found = search(llm, prompts, [count] * len(ids), SearchOptions())
    assert [nbest[0].tokens for nbest in found] == greedy_of_transformers(
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
def test_the_batch_changes_no_token(llm, sizes, batch, beam, weight, order, seed):
    prompts = [random_prompt(llm, n, seed + i) for i, n in enumerate(sizes)]
    limits = [3 + n % 5 for n in sizes]
    frames = torch.tensor([8 + n for n in sizes])
    logits = 2 * torch.randn(
        len(sizes), 40, 29, generator=torch.Generator().manual_seed(seed)
    )
    options = SearchOptions(beam_size=beam, nbest=2, ctc_weight=weight, pre_beam_size=6)

    def speller(tokens: list[int]) -> list[int]:
        return [1 + t % 28 for t in tokens]

    def found(chosen: list[int]) -> list:
        scorer = CTCPrefixScorer(logits[chosen], frames[chosen]) if weight else None
        spellers = [speller if i % 3 else None for i in chosen]
        return search(
            llm,
            [prompts[i] for i in chosen],
            [limits[i] for i in chosen],
            options,
            scorer,
            spellers,
        )

    places = list(range(len(sizes)))
    alone = [found([i])[0] for i in places]
    order.shuffle(places)
    for begin in range(0, len(places), batch):
        chosen = places[begin : begin + batch]
        for index, nbest in zip(chosen, found(chosen)):
            assert [h.tokens for h in nbest] == [h.tokens for h in alone[index]]
            for one, expected in zip(nbest, alone[index]):
                assert one.score == pytest.approx(expected.score, abs=1e-3)


def test_fewest_and_most_tokens(five_tokens):
    prompts = [random_prompt(five_tokens, 2, seed) for seed in range(8)]
    for beam in (1, 4):
        for least, most in ((0, 0), (0, 2), (3, 3), (2, 5), (4, 2)):
            options = SearchOptions(beam_size=beam, min_tokens=least)
            found = search(five_tokens, prompts, [most] * 8, options)
            for nbest in found:
                assert min(least, most) <= len(nbest[0].tokens) <= most


def test_limits_are_each_utterances_own(five_tokens):
    prompt = random_prompt(five_tokens, 2, 1)
    options = SearchOptions(min_tokens=9)
    found = search(five_tokens, [prompt] * 3, [1, 4, 2], options)
    assert [len(nbest[0].tokens) for nbest in found] == [1, 4, 2]


def test_most_tokens_grow_with_the_speech():
    options = SearchOptions()
    assert [options.max_tokens(s) for s in (0.1, 1.0, 10.0)] == [20, 24, 60]


def test_nbest_are_distinct_and_in_order(five_tokens):
    options = SearchOptions(beam_size=8, nbest=8)
    prompt = random_prompt(five_tokens, 2, 3)
    (found,) = search(five_tokens, [prompt], [3], options)
    assert len(found) == 8
    assert len({tuple(h.tokens) for h in found}) == 8
    scores = [h.score for h in found]
    assert scores == sorted(scores, reverse=True)


def test_a_wider_beam_is_never_worse(five_tokens):
    for seed in range(10):
        prompt = random_prompt(five_tokens, 2, seed)
        best = [
            search(five_tokens, [prompt], [5], SearchOptions(beam_size=b))[0][0]
            for b in (1, 256)
        ]
        assert best[0].score <= best[1].score + 1e-5


# The queue


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=3, max_size=12),
    batch_size=st.integers(1, 5),
    how=st.sampled_from(
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
def test_who_joins_later_notices_nothing(llm, sizes, batch_size, how, seed):
    """A queue of prompts of very different lengths and limits, against one by one."""
    prompts = [random_prompt(llm, n, seed + i) for i, n in enumerate(sizes)]
    limits = [1 + 3 * n % 7 for n in sizes]
    logits = 2 * torch.randn(
        len(sizes), 50, 29, generator=torch.Generator().manual_seed(seed)
    )
    frames = torch.tensor([10 + n for n in sizes])
    options = SearchOptions(**how)

    def found(chosen: list[int], batch_size: int | None) -> list:
        return search(
            llm,
            [prompts[i] for i in chosen],
            [limits[i] for i in chosen],
            options,
            CTCPrefixScorer(logits[chosen], frames[chosen]),
            [lambda tokens: [1 + t % 28 for t in tokens]] * len(chosen),
            batch_size=batch_size,
            seeds=[100 + i for i in chosen],
        )

    everyone = list(range(len(sizes)))
    alone = [found([i], None)[0] for i in everyone]
    for queue, expected in zip(found(everyone, batch_size), alone):
        assert [h.tokens for h in queue] == [h.tokens for h in expected]
        for one, other in zip(queue, expected):
            assert one.score == pytest.approx(other.score, abs=1e-3)
    backwards = found(everyone[::-1], batch_size)[::-1]
    assert [[h.tokens for h in nbest] for nbest in backwards] == [
        [h.tokens for h in nbest] for nbest in alone
    ]


def test_the_batch_stays_full(llm, monkeypatch):
    """Rows that the LLM reads at each step: what leaves is replaced from the queue."""
    rows = []
    body = LanguageModel.body

    def counted(self, embeddings, *others):
        if embeddings.shape[1] == 1:
            rows.append(len(embeddings))
        return body(self, embeddings, *others)

    monkeypatch.setattr(LanguageModel, "body", counted)
    prompts = [random_prompt(llm, 5, seed) for seed in range(12)]
    limits = [2, 6, 3, 5] * 3
    options = SearchOptions(min_tokens=9)  # each answer is as long as it may be
    found = search(llm, prompts, limits, options, batch_size=4)
    assert [len(nbest[0].tokens) for nbest in found] == limits
    assert max(rows) == 4
    assert sum(rows) == sum(limits)
    in_turns = sum(max(limits[i : i + 4]) for i in (0, 4, 8))
    assert len(rows) < in_turns


# The LLM's rows


def test_rows_come_and_go(llm):
    """Compare the scorer with the LLM on the whole text at each step."""
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
            torch.cat([texts[parent], own[None]])
            for parent, own in zip(parents, embedded)
        ]
        check()

    with torch.inference_mode():
        add(0, 1, 2)
        step([0, 1, 2], [5, 6, 7])
        step([1, 1, 0, 2], [8, 9, 10, 11])  # two continue one
        step([0, 2], [12, 13])  # the longest is dropped
        width = scorer.cache.get_seq_length()
        assert width == max(len(text) for text in texts)
        add(3, 4)  # one is longer than all that was there
        for count in range(40):  # past the initial size of a buffer
            step([3, 1, 2, 0], [count, 3, 2, 1])
        step([2], [4])
        step([], [])
        add(5)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(parents=st.lists(st.integers(0, 9), max_size=10))
def test_most_rows_stay_where_they_are(parents):
    order = assign_rows(parents)
    assert sorted(order) == list(range(len(parents)))
    staying = sum(parents[new] == place for place, new in enumerate(order))
    assert staying == len({p for p in parents if p < len(parents)})


# Sampling


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.6), (3, 0.7)])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_what_is_drawn_from_is_transformers_distribution(top_k, top_p, temperature):
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    logits = 3 * torch.randn(6, 11, generator=torch.Generator().manual_seed(top_k))
    model = LlamaForCausalLM(LlamaConfig(vocab_size=11, hidden_size=8,
        intermediate_size=8, num_hidden_layers=1, num_attention_heads=1))  # fmt: skip
    config = GenerationConfig(
        do_sample=True, temperature=temperature, top_k=top_k, top_p=top_p
    )
    warpers = model._get_logits_processor(config)
    ids = torch.zeros(6, 1, dtype=torch.long)
    expected = warpers(ids, logits.log_softmax(1)).softmax(1)
    options = SearchOptions(temperature=temperature, top_k=top_k, top_p=top_p)
    found = sampling_probabilities(logits.log_softmax(1), options)
    assert torch.allclose(found, expected, atol=1e-6)


def test_draws_follow_the_probabilities(five_tokens):
    """Answers of one token, drawn by 4000 keys."""
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


def test_draws_depend_on_seed_and_utterance_alone(five_tokens):
    prompts = [random_prompt(five_tokens, 3, 1)] * 6

    def drawn(seed: int, keys: list[int]) -> list:
        options = SearchOptions(sampling=True, temperature=2.0, seed=seed)
        found = search(five_tokens, prompts, [8] * 6, options, seeds=keys)
        return [nbest[0].tokens for nbest in found]

    first = drawn(1, [0, 1, 2, 3, 4, 5])
    assert first == drawn(1, [0, 1, 2, 3, 4, 5])
    assert first[::-1] == drawn(1, [5, 4, 3, 2, 1, 0])
    assert len({tuple(tokens) for tokens in first}) > 2
    assert first != drawn(2, [0, 1, 2, 3, 4, 5])


def test_sampling_keeps_to_fewest_and_most_tokens(five_tokens):
    prompts = [random_prompt(five_tokens, 2, seed) for seed in range(8)]
    for least, most in ((0, 0), (3, 3), (2, 5), (4, 2)):
        options = SearchOptions(sampling=True, min_tokens=least)
        found = search(five_tokens, prompts, [most] * 8, options, seeds=range(8))
        for nbest in found:
            assert min(least, most) <= len(nbest[0].tokens) <= most
