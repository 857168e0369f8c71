"""N-best search on an encoded batch: beam search, then rescoring with CTC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from speechllm.decoding.beam_search import beam_search
from speechllm.decoding.ctc_prefix_scorer import CTCPrefixScorer
from speechllm.decoding.encoded_batch import EncodedBatch
from speechllm.decoding.hypothesis import Hypothesis, SearchRequest
from speechllm.decoding.options import SearchOptions
from speechllm.decoding.rescoring import rescore
from speechllm.models.llm import LanguageModel
from speechllm.text.answer_codec import AnswerCodec
from speechllm.text.tasks import Task


def nbest_search(
    llm: LanguageModel,
    codec: AnswerCodec,
    batch: EncodedBatch,
    options: SearchOptions,
    max_tokens: Sequence[int] | None = None,
    on_finished: Callable[[int], object] | None = None,
) -> list[list[Hypothesis]]:
    """Return the n-best hypotheses of each utterance, best first.

    Args:
        llm: in evaluation mode.
        codec: of the LLM and the CTC branch.
        batch: the utterances.
        options: of the search.
        max_tokens: maximum length of each output, in addition to that of the options.
        on_finished: called with the row of each utterance when it is finished.
    """
    joint = options.ctc_weight > 0
    requests = []
    for row, (task, seconds) in enumerate(zip(batch.tasks, batch.seconds)):
        limit = options.max_tokens(seconds, task.name)
        if max_tokens is not None:
            limit = min(limit, max_tokens[row])
        requests.append(
            SearchRequest(
                batch.prompt_embeds[row],
                limit,
                codec.label_fn(task) if joint else None,
                codec.ctc_candidates(batch.ctc_text(row), task) if joint else (),
                batch.sampling_seeds[row],
            )
        )
    ctc = None
    if joint and batch.logits is not None:
        ctc = CTCPrefixScorer(batch.logits, batch.encoder_lengths)
    wide = options
    if options.rescore_ctc_weight > 0:
        wide = replace(options, nbest=max(options.nbest, options.beam_size))
    nbests = beam_search(llm, requests, wide, ctc, batch.batch_size, on_finished)
    if options.rescore_ctc_weight > 0:
        nbests = [
            rescore_nbest(codec, batch, row, nbest, options)[: options.nbest]
            for row, nbest in enumerate(nbests)
        ]
    return nbests


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
