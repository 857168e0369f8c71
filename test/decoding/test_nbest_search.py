"""N-best search: the CTC transcript in place of texts that joint search has ruined."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from speechllm.decoding.hypothesis import Hypothesis
from speechllm.decoding.nbest_search import replace_failures
from speechllm.decoding.options import SearchOptions
from speechllm.text.tasks import Task

TASK = Task("asr", "en", "en")
JOINT = SearchOptions(beam_size=2, nbest=2, ctc_weight=0.5)
#: Log probabilities of the CTC transcript "ten"; its first token's by the LLM is -9.
CTC = -2.0
#: (0.5 · -2) + (0.5 · -9), and with an LLM of 256 equally probable tokens, where log
#: 256 = 5.545: (0.5 · -2) + (0.5 · -4 · 5.545)
SCORE, GUESS = -5.5, -12.09


class FixedLLM:
    eos_id = 0
    scored = 0

    def answer_log_probs(self, prompts, answers):
        self.scored += len(answers)
        assert answers == [[*b"ten", 0]]
        return [torch.tensor([-9.0, 0.0, 0.0, 0.0])]


def first_texts(
    score: float, text: str = "ruin", task=TASK, first_pass=None, **options
) -> tuple[list[tuple[str, float]], int]:
    """Return texts and scores after a search whose best text has a score.

    The second value is the number of texts that the LLM has scored.
    """
    codec = SimpleNamespace(
        tokenizer=range(256),
        encode=lambda text: list(text.encode()),
        ctc_labels=lambda tokens, task: list(tokens),
        hotword_trie=lambda words: None,
    )
    batch = SimpleNamespace(
        tasks=[task],
        first_pass=first_pass,
        prompt_embeds=[torch.zeros(1, 1)],
        ctc_text=lambda row: "ten",
        ctc_scores=lambda row, labels: [CTC for _ in labels],
    )
    found = [
        Hypothesis(list(text.encode()), score=score),
        Hypothesis(list(b"wreck"), score=score - 1),
    ]
    nbests = [found]
    llm = FixedLLM()
    replace_failures(llm, codec, batch, nbests, replace(JOINT, **options), [6])
    return [(bytes(h.tokens).decode(), h.score) for h in nbests[0]], llm.scored


def test_a_ruined_text_comes_after_the_ctc_transcript():
    found, scored = first_texts(GUESS - 0.01)
    assert found == [("ten", SCORE), ("ruin", GUESS - 0.01)] and scored == 1
    (found, *_), _ = first_texts(-20.0, penalty=-1.0)
    assert found == ("ten", pytest.approx(SCORE - 4))


def test_a_text_that_an_indifferent_llm_would_find_is_kept_without_scoring():
    found, scored = first_texts(GUESS + 0.01)
    assert [text for text, _ in found] == ["ruin", "wreck"] and scored == 0


@pytest.mark.parametrize(
    "case",
    [
        {"task": Task("st", "en", "fr")},
        {"task": Task("asr_st", "en", "fr")},
        {"first_pass": ["its pool has the CTC transcript"]},
        {"min_tokens": 4},
    ],
)
def test_outputs_that_the_ctc_transcript_cannot_replace_are_kept(case):
    found, scored = first_texts(-900.0, **case)
    assert [text for text, _ in found] == ["ruin", "wreck"] and scored == 0


def test_an_llm_that_rejects_the_ctc_transcript_keeps_its_text(monkeypatch):
    log_probs = torch.tensor([-99.0, 0.0, 0.0, 0.0])
    monkeypatch.setattr(FixedLLM, "answer_log_probs", lambda *args: [log_probs])
    found, _ = first_texts(-40.0)
    assert [text for text, _ in found] == ["ruin", "wreck"]
