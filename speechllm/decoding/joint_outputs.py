"""Outputs of ``asr_st`` in two steps, where there is a first pass.

The transcript is chosen first, from those of LLM, CTC and first pass
(:func:`~speechllm.decoding.pooling.pool_transcripts`). It is then given to the LLM as
the beginning of its output, so that the translation is one of the better transcript. A
decoder that translates too, as Whisper's does into English, adds its own translations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from speechllm.decoding.beam_search import beam_search
from speechllm.decoding.encoded_batch import EncodedBatch
from speechllm.decoding.first_pass import may_translate
from speechllm.decoding.hypothesis import Hypothesis, SearchRequest
from speechllm.decoding.options import SearchOptions
from speechllm.decoding.pooling import pool_transcripts
from speechllm.decoding.rescoring import pooled_score, score_outputs
from speechllm.decoding.vllm_engine import VLLMLanguageModel
from speechllm.models.llm import LanguageModel
from speechllm.text.answer_codec import AnswerCodec


@dataclass(frozen=True)
class Parts:
    """The hypotheses of an utterance for each of the two texts, best first.

    Attributes:
        transcripts: of LLM, CTC and first pass, without the separator.
        searched: the LLM's translations of the best transcript.
        translations: the same with those of the first pass.
    """

    transcripts: list[Hypothesis]
    searched: list[Hypothesis]
    translations: list[Hypothesis]


def choose_in_parts(
    llm: LanguageModel,
    codec: AnswerCodec,
    batch: EncodedBatch,
    nbests: Mapping[int, Sequence[Hypothesis]],
    options: SearchOptions,
    max_tokens: Sequence[int],
) -> dict[int, list[Hypothesis]]:
    """Choose the transcript of each utterance, then search its translation.

    The arguments are those of :func:`find_parts`.

    Returns:
        Outputs with the best transcript and different translations, best first, by row.
        Where no transcript has words they are those of the search.
    """
    outputs = {row: list(nbest) for row, nbest in nbests.items()}
    parts_of = find_parts(llm, codec, batch, nbests, options, max_tokens)
    for row, parts in parts_of.items():
        best, separator = parts.transcripts[0], codec.separator.tokens
        outputs[row] = [join(best, separator, other) for other in parts.translations]
    return outputs


def find_parts(
    llm: LanguageModel,
    codec: AnswerCodec,
    batch: EncodedBatch,
    nbests: Mapping[int, Sequence[Hypothesis]],
    options: SearchOptions,
    max_tokens: Sequence[int],
) -> dict[int, Parts]:
    """Return the hypotheses for both texts of each utterance with words, by row.

    Args:
        nbests: outputs of a search, by the row of the utterance, whose task is
            ``asr_st`` and which has a first pass.
        options: of the search.
        max_tokens: maximum length of each output of the batch, transcript included.
    """
    ranked: dict[int, list[Hypothesis]] = {}
    for row, nbest in nbests.items():
        transcripts = pool_transcripts(llm, codec, batch, row, nbest, options)
        if transcripts:
            ranked[row] = transcripts
    if not ranked:
        return {}
    begins = [
        [*transcripts[0].tokens, *codec.separator.tokens]
        for transcripts in ranked.values()
    ]
    prompts = {
        row: torch.cat([batch.prompt_embeds[row], begin])  # (positions, hidden)
        for row, begin in zip(ranked, llm.embed_lists(begins))
    }
    limits = {
        # half of it, and what the transcript has left
        row: max(max_tokens[row] // 2, max_tokens[row] - len(begin), 1)
        for row, begin in zip(ranked, begins)
    }
    searched = search_translations(llm, codec, batch, prompts, options, limits)
    return {
        row: Parts(
            ranked[row],
            found,
            pool_translations(llm, codec, batch, row, prompts[row], found, options),
        )
        for row, found in searched.items()
    }


def search_translations(
    llm: LanguageModel,
    codec: AnswerCodec,
    batch: EncodedBatch,
    prompts: Mapping[int, Tensor],
    options: SearchOptions,
    limits: Mapping[int, int],
) -> dict[int, list[Hypothesis]]:
    """Search the translations after given transcripts; returns n-best lists by row.

    Args:
        prompts: (positions, hidden) embeddings of prompt, speech, transcript and
            separator, by row.
        limits: maximum length of each translation, by row.
    """
    hotwords = codec.hotword_trie(options.hotwords)
    requests = [
        SearchRequest(
            prompt,
            limits[row],
            sampling_seed=batch.sampling_seeds[row],
            hotwords=hotwords,
        )
        for row, prompt in prompts.items()
    ]
    free = replace(options, ctc_weight=0.0, nbest=options.beam_size)
    if isinstance(llm, VLLMLanguageModel):
        nbests = llm.search(requests, free)
    else:
        nbests = beam_search(llm, requests, free, batch_size=batch.batch_size)
    return dict(zip(prompts, nbests))


def pool_translations(
    llm: LanguageModel,
    codec: AnswerCodec,
    batch: EncodedBatch,
    row: int,
    prompt: Tensor,
    nbest: Sequence[Hypothesis],
    options: SearchOptions,
) -> list[Hypothesis]:
    """Rank the translations of LLM and first pass together, best first.

    score = rescore_translation_weight · decoder + rest · LLM
    + hotword_bonus · tokens of hotwords. Without translations of a first pass the list
    is kept.

    Args:
        row: of the utterance.
        prompt: (positions, hidden) before the translation.
        nbest: translations of the LLM.
    """
    assert batch.first_pass is not None
    first = batch.first_pass[row]
    weight = options.rescore_translation_weight
    has_own = may_translate(batch.tasks[row]) and first and first.translations
    if first is None or not weight or not has_own:
        return list(nbest)
    hypotheses: dict[str, Hypothesis] = {}
    for hypothesis in nbest:
        text = codec.separator.unescape(codec.decode(hypothesis.tokens))
        hypotheses.setdefault(text, hypothesis)
    new = [text for text in first.translations if text and text not in hypotheses]
    if new:
        outputs = [codec.encode_part(text) for text in new]
        scored = score_outputs(llm, codec, [prompt] * len(new), outputs, options)
        hypotheses.update(zip(new, scored))
    by_decoder = first.translation_scores(list(hypotheses))
    for hypothesis, decoder_score in zip(hypotheses.values(), by_decoder):
        hypothesis.decoder_score = decoder_score
        hypothesis.score = pooled_score(
            hypothesis.llm_score, 0.0, decoder_score, 0.0, weight
        )
        hypothesis.score += hypothesis.bonus
    return sorted(hypotheses.values(), key=lambda hypothesis: -hypothesis.score)


def join(
    transcript: Hypothesis, separator: Sequence[int], translation: Hypothesis
) -> Hypothesis:
    """Return the output of a transcript, whose LLM score has the separator's in it."""
    rest = transcript.llm_score - sum(transcript.token_log_probs)
    between = [rest, *[0.0] * (len(separator) - 1)]
    decoder_score = transcript.decoder_score or 0.0
    return Hypothesis(
        [*transcript.tokens, *separator, *translation.tokens],
        transcript.score + translation.score,
        transcript.llm_score + translation.llm_score,
        transcript.ctc_score,
        [*transcript.token_log_probs, *between, *translation.token_log_probs],
        truncated=translation.truncated,
        decoder_score=decoder_score + (translation.decoder_score or 0.0),
        bonus=transcript.bonus + translation.bonus,
    )
