"""Hypotheses of the search carry what later steps need; each against transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import five_token_llm

from speechllm.decoding import encoded_batch
from speechllm.decoding.beam_search import beam_search
from speechllm.decoding.encoded_batch import EncodedBatch
from speechllm.decoding.hypothesis import SearchRequest
from speechllm.decoding.options import SearchOptions
from speechllm.text.tasks import Task

EOS = 4


@pytest.fixture(scope="module")
def llm():
    return five_token_llm(11, ["a", "b", "ca", ",", ""])


def requests(llm, count: int, max_tokens: int) -> list[SearchRequest]:
    generator = torch.Generator().manual_seed(count)
    return [
        SearchRequest(torch.randn(2, llm.hidden_size, generator=generator), max_tokens)
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    "options",
    [
        SearchOptions(),
        SearchOptions(beam_size=4, nbest=3),
        SearchOptions(beam_size=3, nbest=2, no_repeat_ngram_size=2, penalty=0.3),
        SearchOptions(sampling=True, temperature=1.5),
    ],
    ids=["greedy", "beam", "penalty", "sampling"],
)
@torch.inference_mode()
def test_token_log_probs_are_those_of_the_llm(llm, options):
    searched = requests(llm, 7, 6)
    for request, nbest in zip(searched, beam_search(llm, searched, options)):
        for hypothesis in nbest:
            tokens = torch.tensor(hypothesis.tokens, dtype=torch.long)
            inputs = torch.cat([request.prompt, llm.embed(tokens)])
            logits = llm.causal_lm(inputs_embeds=inputs[None]).logits[0]
            places = torch.arange(len(request.prompt) - 1, len(inputs))
            expected = logits.log_softmax(1)[places, [*hypothesis.tokens, EOS]]
            *expected, end = expected.tolist()
            assert hypothesis.token_log_probs == pytest.approx(expected, abs=1e-4)
            total = sum(hypothesis.token_log_probs) + end
            assert hypothesis.llm_score == pytest.approx(total, abs=1e-4)


def test_outputs_at_the_maximum_length_are_truncated(llm):
    found = beam_search(llm, requests(llm, 12, 3), SearchOptions(beam_size=4, nbest=4))
    every = [hypothesis for nbest in found for hypothesis in nbest]
    assert {h.truncated for h in every} == {True, False}
    assert all(h.truncated == (len(h.tokens) == 3) for h in every)


def test_each_ctc_score_is_computed_once(monkeypatch):
    scored = []

    def counted(log_probs, texts):
        scored.extend(map(tuple, texts))
        return [-float(len(text)) for text in texts]

    monkeypatch.setattr(encoded_batch, "ctc_log_probs", counted)
    batch = EncodedBatch(
        [Task("asr", "en", "en")] * 2,
        [np.zeros(160, np.float32)] * 2,
        [torch.zeros(1, 1)] * 2,
        torch.zeros(2, 9, 4),
        torch.tensor([9, 8]),
        ["a", "b"],
        [0, 0],
    )
    assert batch.ctc_scores(0, [[1], [1, 2], [1]]) == [-1.0, -2.0, -1.0]
    assert batch.ctc_scores(0, [[1, 2], [3]]) == [-2.0, -1.0]
    assert scored == [(1,), (1, 2), (3,)]
    batch.ctc_scores(1, [[1]])  # of another utterance
    assert scored[3:] == [(1,)]
