"""Fits the weights of the pooled n-best lists to a development set, in stage 11."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from speechllm.data.examples import Example
from speechllm.decoding.encoded_batch import EncodedBatch
from speechllm.decoding.first_pass import speech_key
from speechllm.decoding.hypothesis import Hypothesis
from speechllm.decoding.joint_outputs import Parts, find_parts
from speechllm.decoding.options import SearchOptions
from speechllm.inference.score_weights import (
    ScoredText,
    ScoredTranslation,
    ScoreWeights,
    fit_score_weights,
    fit_translation_weight,
)
from speechllm.inference.tuning import (
    NBests,
    count_errors,
    encoded_batches,
    search_once,
)
from speechllm.text.answer_codec import AnswerCodec

if TYPE_CHECKING:
    from speechllm.inference.speech_to_text import SpeechToText

MOST_CANDIDATES = 1000  # of a pooled n-best list


@torch.inference_mode()
def find_score_weights(
    model: SpeechToText,
    examples: Sequence[Example],
    options: SearchOptions,
    batch_size: int = 8,
    made_from: str = "",
    nbests: NBests | None = None,
) -> ScoreWeights:
    """Fit the weights of the pooled n-best lists to a development set.

    The transcripts of ``asr_st`` count as those of ``asr``, once for each utterance.
    Translations into English by the decoder of the first pass get a weight if it
    translates. Weights that the model has do not matter.

    Args:
        model: an encoder whose pretrained model has a decoder.
        examples: with their reference texts.
        options: of the search, with a first pass.
        made_from: the examples, for the reader of the file.
        nbests: as for :func:`search_once`; ranked by the new weights.

    Raises:
        UserError: the examples have no transcripts.
    """
    usual = ScoreWeights()
    everything = replace(
        options,
        nbest=MOST_CANDIDATES,
        rescore_decoder_weight=usual.decoder,
        rescore_ctc_weight=usual.ctc if model.ctc_tokenizer else 0.0,
        rescore_translation_weight=0.5,
    )
    found: NBests = {}
    scored: dict[str, list[tuple[ScoredText, Hypothesis]]] = {}
    recognition = [example for example in examples if example.task.name == "asr"]
    for part, batch in encoded_batches(model, recognition, batch_size, everything):
        pooled = search_once(model, part, batch, everything, found)
        for example, nbest in zip(part, pooled):
            scored[example.name] = [
                (scored_text(model.codec, example, h), h) for h in nbest
            ]
    pools = [[text for text, _ in pool] for pool in scored.values()]
    translated: list[tuple[str, list[ScoredTranslation]]] = []
    heard: set[tuple[bytes, str]] = set()
    both = [example for example in examples if example.task.name == "asr_st"]
    for part, batch in encoded_batches(model, both, batch_size, everything):
        for row, parts in parts_of_batch(model, batch, everything).items():
            example = part[row]
            key = speech_key(example.wave, example.task.source)
            if key not in heard:
                heard.add(key)
                pools.append(
                    [scored_text(model.codec, example, h) for h in parts.transcripts]
                )
            if any(h.decoder_score is not None for h in parts.translations):
                translated.append(scored_translations(model.codec, example, parts))
    weights = fit_score_weights(pools, made_from)
    if translated:
        weight = fit_translation_weight(translated)
        weights = replace(weights, translation=weight)
    if nbests is not None:
        for name, pool in scored.items():
            for text, hypothesis in pool:
                hypothesis.score = text.score(weights)
            found[name].sort(key=lambda hypothesis: -hypothesis.score)
        nbests.update((name, nbest[: options.nbest]) for name, nbest in found.items())
    return weights


def parts_of_batch(
    model: SpeechToText, batch: EncodedBatch, options: SearchOptions
) -> dict[int, Parts]:
    """Return all transcripts and translations of ``asr_st`` examples, by row."""
    alone = replace(batch, first_pass=None)
    plain = replace(options, nbest=options.beam_size, rescore_ctc_weight=0.0)
    nbests = dict(enumerate(model.search(alone, plain)))
    limits = [
        options.max_tokens(seconds, task.name)
        for seconds, task in zip(batch.seconds, batch.tasks)
    ]
    return find_parts(model.llm, model.codec, batch, nbests, options, limits)


def scored_text(
    codec: AnswerCodec, example: Example, hypothesis: Hypothesis
) -> ScoredText:
    """Return the scores of a pooled transcript and its errors."""
    text, reference = codec.decode(hypothesis.tokens), example.text
    if example.task.name == "asr_st":
        text, reference = codec.separator.unescape(text), reference.split("\t")[0]
    return ScoredText(
        hypothesis.llm_score,
        hypothesis.ctc_score or 0.0,
        hypothesis.decoder_score or 0.0,
        count_errors(reference, text, example.task.source),
    )


def scored_translations(
    codec: AnswerCodec, example: Example, parts: Parts
) -> tuple[str, list[ScoredTranslation]]:
    """Return reference and pooled translations of an ``asr_st`` example."""
    own = {id(hypothesis) for hypothesis in parts.searched}
    return example.text.split("\t")[1], [
        ScoredTranslation(
            h.llm_score,
            h.decoder_score or 0.0,
            codec.separator.unescape(codec.decode(h.tokens)),
            from_decoder=id(h) not in own,
        )
        for h in parts.translations
    ]
