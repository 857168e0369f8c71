"""N-best search on an encoded batch: beam search, CTC transcripts, rescoring."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from speechllm.decoding.beam_search import beam_search
from speechllm.decoding.encoded_batch import EncodedBatch
from speechllm.decoding.hypothesis import Hypothesis, SearchRequest
from speechllm.decoding.joint_outputs import choose_in_parts
from speechllm.decoding.options import SearchOptions
from speechllm.decoding.pooling import pool_nbest
from speechllm.decoding.rescoring import rescore, score_outputs
from speechllm.decoding.vllm_engine import VLLMLanguageModel
from speechllm.models.llm import LanguageModel
from speechllm.text.answer_codec import AnswerCodec
from speechllm.text.ctc_labels import BLANK, label_runs
from speechllm.text.tasks import Task

LONGEST_LOOP = 20  # tokens


def nbest_search(
    llm: LanguageModel,
    codec: AnswerCodec,
    batch: EncodedBatch,
    options: SearchOptions,
    max_tokens: Sequence[int] | None = None,
    on_finished: Callable[[int], object] | None = None,
) -> list[list[Hypothesis]]:
    """Return the n-best hypotheses of each utterance, best first.

    With ``retry_truncated`` an output that reaches its maximum length is decoded again
    with twice the length, unless it ends in a loop.

    Args:
        llm: in evaluation mode.
        codec: of the LLM and the CTC branch.
        batch: the utterances.
        options: of the search.
        max_tokens: maximum length of each output, in addition to that of the options.
        on_finished: called with the row of each utterance when it is finished.
    """
    limits = [
        options.max_tokens(seconds, task.name)
        for task, seconds in zip(batch.tasks, batch.seconds)
    ]
    if max_tokens is not None:
        limits = [min(pair) for pair in zip(limits, max_tokens)]
    nbests = search_up_to(llm, codec, batch, options, limits, on_finished)
    if options.retry_truncated:
        rows = [
            row
            for row, (best, *_) in enumerate(nbests)
            if best.truncated and not ends_in_loop(best.tokens)
        ]
        if rows:
            limits = [2 * limits[row] for row in rows]
            part = batch.select(rows)
            again = search_up_to(llm, codec, part, options, limits)
            for row, nbest in zip(rows, again):
                nbests[row] = nbest
    return nbests


def ends_in_loop(tokens: Sequence[int]) -> bool:
    """Return whether an output ends with the same tokens three times in a row."""
    return any(
        len(tokens) >= 3 * size
        and tokens[-size:] == tokens[-2 * size : -size] == tokens[-3 * size : -2 * size]
        for size in range(1, LONGEST_LOOP + 1)
    )


def search_up_to(
    llm: LanguageModel,
    codec: AnswerCodec,
    batch: EncodedBatch,
    options: SearchOptions,
    max_tokens: Sequence[int],
    on_finished: Callable[[int], object] | None = None,
) -> list[list[Hypothesis]]:
    """Search with a maximum length; the arguments are those of `nbest_search`."""
    joint = options.ctc_weight > 0
    hotwords = codec.hotword_trie(options.hotwords)
    requests = []
    for row, task in enumerate(batch.tasks):
        requests.append(
            SearchRequest(
                batch.prompt_embeds[row],
                max_tokens[row],
                codec.label_fn(task) if joint else None,
                codec.ctc_candidates(batch.ctc_text(row), task) if joint else (),
                batch.sampling_seeds[row],
                hotwords,
            )
        )
    ctc = None
    if joint and batch.logits is not None:
        ctc = batch.prefix_scorer()
    wide = options
    pooled = batch.first_pass is not None
    if options.rescore_ctc_weight > 0 or pooled:
        nbest = options.beam_size if pooled else max(options.nbest, options.beam_size)
        wide = replace(options, nbest=nbest)
    if isinstance(llm, VLLMLanguageModel):
        nbests = llm.search(requests, wide, on_finished)
    else:
        nbests = beam_search(llm, requests, wide, ctc, batch.batch_size, on_finished)
        if ctc is not None and not options.no_repeat_ngram_size:
            replace_failures(llm, codec, batch, nbests, wide, max_tokens)
    if pooled:
        nbests = with_first_pass(llm, codec, batch, nbests, options, max_tokens)
    elif options.rescore_ctc_weight > 0:
        nbests = [
            rescore_nbest(codec, batch, row, nbest, options)[: options.nbest]
            for row, nbest in enumerate(nbests)
        ]
    return nbests


def with_first_pass(
    llm: LanguageModel,
    codec: AnswerCodec,
    batch: EncodedBatch,
    nbests: Sequence[list[Hypothesis]],
    options: SearchOptions,
    max_tokens: Sequence[int],
) -> list[list[Hypothesis]]:
    """Pool the n-best lists of a search with the first passes of the batch.

    Args:
        nbests: of each utterance, best first.
        max_tokens: maximum length of each output.
    """
    passes = batch.first_pass or [None] * len(nbests)
    both = {
        row: nbests[row]
        for row, (task, first) in enumerate(zip(batch.tasks, passes))
        if first is not None and task.name == "asr_st"
    }
    found = choose_in_parts(llm, codec, batch, both, options, max_tokens)
    for row, nbest in enumerate(nbests):
        if row not in both:
            found[row] = pool_nbest(llm, codec, batch, row, nbest, options)
    return [found[row][: options.nbest] for row in range(len(nbests))]


def replace_failures(
    llm: LanguageModel,
    codec: AnswerCodec,
    batch: EncodedBatch,
    nbests: list[list[Hypothesis]],
    options: SearchOptions,
    max_tokens: Sequence[int],
) -> None:
    """Put the CTC transcript first where joint search has lost all good hypotheses.

    Joint search prunes after every token, and where LLM and CTC disagree it may prune
    every hypothesis that fits the speech. Its best text then has a lower score than the
    CTC transcript would have with an LLM that finds all tokens equally probable. That
    transcript is then scored by the LLM, and is first if its score is higher.

    Args:
        nbests: hypotheses of each utterance, best first; changed in place.
        max_tokens: maximum length of each output.
    """
    weight, penalty = options.ctc_weight, options.penalty
    per_token = -math.log(len(codec.tokenizer))
    for row, (task, nbest) in enumerate(zip(batch.tasks, nbests)):
        if batch.first_pass is not None and batch.first_pass[row] is not None:
            continue  # its pool has the CTC transcript
        tokens = codec.encode(batch.ctc_text(row))
        labels = codec.ctc_labels(tokens, task) if task.name == "asr" else None
        if not labels or not options.min_tokens <= len(tokens) <= max_tokens[row]:
            continue
        ctc_scores = batch.ctc_scores(row, [labels])
        guess = Hypothesis(tokens, llm_score=per_token * (len(tokens) + 1))
        (guess,) = rescore([guess], ctc_scores, weight, penalty)
        if nbest[0].score >= guess.score:
            continue
        scored = score_outputs(
            llm, codec, [batch.prompt_embeds[row]], [tokens], options
        )
        best = rescore(scored, ctc_scores, weight, penalty) + nbest
        best.sort(key=lambda hypothesis: -hypothesis.score)
        nbests[row] = best[: options.nbest]


def rescore_nbest(
    codec: AnswerCodec,
    batch: EncodedBatch,
    row: int,
    nbest: list[Hypothesis],
    options: SearchOptions,
) -> list[Hypothesis]:
    """Rank the n-best list of an utterance with CTC; a translation keeps its ranks."""
    task = batch.tasks[row]
    texts = [labels_of(codec, hypothesis, task) for hypothesis in nbest]
    transcripts = [labels for labels in texts if labels is not None]
    if len(transcripts) < len(nbest):
        return nbest
    scores = batch.ctc_scores(row, transcripts)
    return rescore(nbest, scores, options.rescore_ctc_weight, options.penalty)


def labels_of(
    codec: AnswerCodec, hypothesis: Hypothesis, task: Task
) -> list[int] | None:
    """Return the CTC labels of a hypothesis, computed once; None for a translation."""
    if hypothesis.ctc_labels is None:
        hypothesis.ctc_labels = codec.ctc_labels(hypothesis.tokens, task)
    return hypothesis.ctc_labels


def ctc_greedy_search(batch: EncodedBatch) -> list[list[Hypothesis]]:
    """Return the best CTC path of each utterance, for a model without an LLM.

    The tokens of the hypotheses are CTC labels.
    """
    nbests = []
    for row in range(len(batch.tasks)):
        scores, labels = batch.log_probs(row).max(1)  # (frames,)
        runs = [run for run in label_runs(labels.tolist()) if run[0] != BLANK]
        tokens = [label for label, _, _ in runs]
        best = [scores[begin:end].max().item() for _, begin, end in runs]
        total = scores.sum().item()
        nbests.append(
            [Hypothesis(tokens, total, ctc_score=total, token_log_probs=best)]
        )
    return nbests
