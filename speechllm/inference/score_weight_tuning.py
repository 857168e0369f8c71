"""Fits the weights of the pooled n-best lists to a development set, in stage 11."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from speechllm.data.examples import Example
from speechllm.decoding.first_pass import may_translate
from speechllm.decoding.hypothesis import Hypothesis
from speechllm.decoding.options import SearchOptions
from speechllm.decoding.pooling import pool_transcripts
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


def find_score_weights(
    model: SpeechToText,
    examples: Sequence[Example],
    options: SearchOptions,
    batch_size: int = 8,
    made_from: str = "",
    nbests: NBests | None = None,
) -> ScoreWeights:
    """Fit the weights of the pooled n-best lists to a development set.

    The transcripts of ``asr_st`` count as those of ``asr``. Translations into English
    by the decoder of the first pass get a weight if it translates.

    Args:
        model: an encoder whose pretrained model has a decoder.
        examples: with their reference texts.
        options: of the search, with a first pass.
        made_from: the examples, for the reader of the file.
        nbests: as for :func:`search_once`; ranked by the new weights.

    Raises:
        UserError: the examples have no transcripts.
    """
    everything = replace(
        options,
        nbest=MOST_CANDIDATES,
        rescore_translation_weight=options.rescore_translation_weight or 0.5,
    )
    found: NBests = {}
    scored: dict[str, list[tuple[ScoredText, Hypothesis]]] = {}
    pools: list[list[ScoredText]] = []
    translated: list[tuple[str, list[ScoredTranslation]]] = []
    for part, batch in encoded_batches(model, examples, batch_size, everything):
        pooled = search_once(model, part, batch, everything, found)
        for row, (example, nbest) in enumerate(zip(part, pooled)):
            if example.task.name == "asr":
                pool = [(scored_text(model.codec, example, h), h) for h in nbest]
                scored[example.name] = pool
                pools.append([text for text, _ in pool])
            elif example.task.name == "asr_st":
                transcripts = pool_transcripts(
                    model.llm, model.codec, batch, row, nbest, everything
                )
                pools.append(
                    [scored_text(model.codec, example, h) for h in transcripts]
                )
                own = batch.first_pass[row].translations
                if own and may_translate(example.task):
                    translated.append(
                        scored_translations(model.codec, example, nbest, own)
                    )
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
    codec: AnswerCodec,
    example: Example,
    nbest: Sequence[Hypothesis],
    own: Sequence[str],
) -> tuple[str, list[ScoredTranslation]]:
    """Return reference and pooled translations of an ``asr_st`` example.

    Their scores have those of the transcript in them, which is the same for all.

    Args:
        own: translations of the first pass.
    """
    texts = [codec.parse(codec.decode(h.tokens)).translation for h in nbest]
    return example.text.split("\t")[1], [
        ScoredTranslation(h.llm_score, h.decoder_score or 0.0, text, text in own)
        for h, text in zip(nbest, texts)
    ]
