"""Rescoring of complete texts with the probabilities of LLM and CTC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from speechllm.decoding.hypothesis import Hypothesis
from speechllm.decoding.options import SearchOptions
from speechllm.models.ctc_alignment import frames_needed
from speechllm.models.llm import LanguageModel
from speechllm.models.precision import to_float64_device
from speechllm.text.answer_codec import AnswerCodec
from speechllm.text.ctc_labels import BLANK, NEVER


def ctc_log_probs(log_probs: Tensor, texts: Sequence[Sequence[int]]) -> list[float]:
    """Return the log probability of each text by CTC: the sum over all its paths.

    Args:
        log_probs: (frames, labels) of one utterance, blank first.
        texts: labels of each; one may be empty.

    Returns:
        One for each text; ``NEVER`` for one that does not fit into the frames.
    """
    log_probs = to_float64_device(log_probs)
    scores = [NEVER] * len(texts)
    score_of_blanks = float(log_probs[:, BLANK].double().sum())
    fitting = []
    for place, labels in enumerate(texts):
        if not len(labels):
            scores[place] = score_of_blanks
        elif frames_needed(labels) <= len(log_probs):
            fitting.append(place)
    if fitting:
        losses = torch.nn.functional.ctc_loss(
            log_probs.double()[:, None].expand(-1, len(fitting), -1),
            torch.tensor(
                [k for i in fitting for k in texts[i]], device=log_probs.device
            ),
            torch.full((len(fitting),), len(log_probs)),
            torch.tensor([len(texts[i]) for i in fitting]),
            blank=BLANK,
            reduction="none",
        )
        for place, loss in zip(fitting, losses.tolist()):
            scores[place] = -loss
    return scores


def hotword_bonus(
    codec: AnswerCodec, tokens: Sequence[int], options: SearchOptions
) -> float:
    """Return the bonus that the hotwords in a complete output earn."""
    trie = codec.hotword_trie(options.hotwords)
    return 0.0 if trie is None else options.hotword_bonus * trie.count(tokens)


def score_outputs(
    llm: LanguageModel,
    codec: AnswerCodec,
    prompts: Sequence[Tensor],
    outputs: Sequence[list[int]],
    options: SearchOptions,
    end: Sequence[int] | None = None,
) -> list[Hypothesis]:
    """Return outputs as hypotheses, with the LLM's scores and the bonus of hotwords.

    Args:
        prompts: embeddings (positions, hidden) before each output.
        outputs: tokens of each.
        end: tokens after each output, whose probability is part of its score; None: the
            end of text.
    """
    found = []
    end = [llm.eos_id] if end is None else end
    answers = [[*tokens, *end] for tokens in outputs]
    log_probs = llm.answer_log_probs(prompts, answers)
    for tokens, scores in zip(outputs, log_probs, strict=True):
        each = scores[: len(tokens)].tolist()
        total, bonus = scores.sum().item(), hotword_bonus(codec, tokens, options)
        found.append(
            Hypothesis(tokens, llm_score=total, token_log_probs=each, bonus=bonus)
        )
    return found


def joint_score(llm_score: float, ctc_score: float, weight: float) -> float:
    """Return the log probability by LLM and CTC, with weight ``weight`` for CTC."""
    return weight * ctc_score + (1 - weight) * llm_score


def pooled_score(
    llm_score: float,
    ctc_score: float,
    decoder_score: float,
    ctc_weight: float,
    decoder_weight: float,
) -> float:
    """Return the log probability by LLM, CTC and the decoder of the first pass.

    The LLM has the rest of the weight.
    """
    rest = 1 - ctc_weight - decoder_weight
    return ctc_weight * ctc_score + decoder_weight * decoder_score + rest * llm_score


def rescore(
    nbest: Sequence[Hypothesis],
    ctc_scores: Sequence[float],
    weight: float,
    penalty: float = 0.0,
) -> list[Hypothesis]:
    """Rank an n-best list again, best first.

    score = weight · CTC + (1 − weight) · LLM + penalty · tokens + bonus of hotwords, as
    in joint search.

    Args:
        nbest: hypotheses with their ``llm_score``.
        ctc_scores: CTC log probability of the whole text of each.
    """
    ranked = [
        replace(
            hypothesis,
            score=joint_score(hypothesis.llm_score, ctc_score, weight)
            + penalty * (len(hypothesis.tokens) + 1)
            + hypothesis.bonus,
            ctc_score=ctc_score,
        )
        for hypothesis, ctc_score in zip(nbest, ctc_scores, strict=True)
    ]
    return sorted(ranked, key=lambda hypothesis: -hypothesis.score)
