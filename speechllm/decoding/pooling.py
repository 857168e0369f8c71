"""The n-best list pooled from LLM, CTC and first pass.

Three models score the transcripts of an utterance: the LLM, CTC, and the decoder that
the encoder was pretrained with (:mod:`speechllm.models.speech_decoder`). The list pools
the hypotheses of all three, so with the whole weight on one of them the best one is at
least as probable by that model as its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from speechllm.decoding.encoded_batch import EncodedBatch
from speechllm.decoding.first_pass import FirstPass
from speechllm.decoding.hypothesis import Hypothesis
from speechllm.decoding.options import SearchOptions
from speechllm.decoding.rescoring import pooled_score, score_outputs
from speechllm.models.llm import LanguageModel
from speechllm.text.answer_codec import AnswerCodec
from speechllm.text.normalization import ctc_text


def pool_nbest(
    llm: LanguageModel,
    codec: AnswerCodec,
    batch: EncodedBatch,
    row: int,
    nbest: Sequence[Hypothesis],
    options: SearchOptions,
) -> list[Hypothesis]:
    """Rank the hypotheses of LLM, CTC and first pass together, best first.

    score = rescore_decoder_weight · decoder + rescore_ctc_weight · CTC + rest · LLM
    + hotword_bonus · tokens of hotwords.
    Transcripts of the first pass are normalised if the LLM's best one with words is, as
    of a model that was trained on plain transcripts. Without a first pass the list is
    kept.

    Args:
        row: of the utterance, whose task is ``asr``.
        nbest: hypotheses of the LLM.
    """
    first = None if batch.first_pass is None else batch.first_pass[row]
    if first is None:
        return list(nbest)
    hypotheses: dict[str, Hypothesis] = {}  # by normalised text
    written: dict[str, str] = {}
    for hypothesis in nbest:
        text = codec.decode(hypothesis.tokens).strip()
        spoken = ctc_text(text, first.language)
        written.setdefault(spoken, text)
        hypotheses.setdefault(spoken, hypothesis)
    new = other_transcripts(first, batch.ctc_text(row), written)
    if new:
        outputs = [codec.encode(text) for text in new.values()]
        prompts = [batch.prompt_embeds[row]] * len(outputs)
        scored = score_outputs(llm, codec, prompts, outputs, options)
        hypotheses.update(zip(new, scored))
    return rank_transcripts(codec, batch, row, hypotheses, {**written, **new}, options)


def pool_transcripts(
    llm: LanguageModel,
    codec: AnswerCodec,
    batch: EncodedBatch,
    row: int,
    nbest: Sequence[Hypothesis],
    options: SearchOptions,
) -> list[Hypothesis]:
    """Rank the transcripts of ``asr_st`` outputs, CTC and first pass, best first.

    They are ranked as by :func:`pool_nbest`. The LLM scores a transcript and the
    separator after it, so that translations do not matter.

    Args:
        row: of the utterance, which has a first pass.
        nbest: outputs of the LLM.

    Returns:
        Transcripts without the separator; none if all are empty.
    """
    assert batch.first_pass is not None
    first = batch.first_pass[row]
    assert first is not None
    written: dict[str, str] = {}
    for hypothesis in nbest:
        output = codec.decode(hypothesis.tokens)
        if hypothesis.truncated and codec.separator.text not in output:
            continue  # the transcript itself was cut off
        text = codec.parse(output).transcript
        written.setdefault(ctc_text(text, first.language), text)
    written |= other_transcripts(first, batch.ctc_text(row), written)
    written.pop("", None)
    if not written:
        return []
    outputs = [codec.encode_part(text) for text in written.values()]
    prompts = [batch.prompt_embeds[row]] * len(outputs)
    end = codec.separator.tokens
    scored = score_outputs(llm, codec, prompts, outputs, options, end)
    hypotheses = dict(zip(written, scored))
    return rank_transcripts(codec, batch, row, hypotheses, written, options)


def other_transcripts(
    first: FirstPass, ctc_transcript: str, written: Mapping[str, str]
) -> dict[str, str]:
    """Return transcripts of first pass and CTC that the LLM did not write.

    Args:
        ctc_transcript: best path of CTC.
        written: the LLM's transcripts by their normalised texts, best first.

    Returns:
        Texts as they would be written, by normalised text, none empty.
    """
    plain = next((text == key for key, text in written.items() if key), False)
    new: dict[str, str] = {}
    for text in [*first.texts, ctc_transcript]:
        spoken = ctc_text(text, first.language)
        if spoken and spoken not in written:
            new.setdefault(spoken, spoken if plain else text)
    return new


def rank_transcripts(
    codec: AnswerCodec,
    batch: EncodedBatch,
    row: int,
    hypotheses: Mapping[str, Hypothesis],
    written: Mapping[str, str],
    options: SearchOptions,
) -> list[Hypothesis]:
    """Rank transcripts with an LLM score by the weights of all three models.

    Args:
        row: of the utterance, which has a first pass.
        hypotheses: by normalised text; their scores are set.
        written: the texts as written, by normalised text.
    """
    assert batch.first_pass is not None
    first = batch.first_pass[row]
    assert first is not None
    texts = list(hypotheses)
    by_decoder = first.scores([written[text] for text in texts])
    weight = options.rescore_decoder_weight or 0.0
    ctc_weight = options.rescore_ctc_weight
    by_ctc = [0.0] * len(texts)
    if ctc_weight:
        by_ctc = ctc_scores_of(codec, batch, row, texts)
    for hypothesis, decoder_score, ctc_score in zip(
        hypotheses.values(), by_decoder, by_ctc
    ):
        hypothesis.decoder_score = decoder_score
        if ctc_weight:
            hypothesis.ctc_score = ctc_score
        hypothesis.score = pooled_score(
            hypothesis.llm_score, ctc_score, decoder_score, ctc_weight, weight
        )
        hypothesis.score += hypothesis.bonus
    return sorted(hypotheses.values(), key=lambda hypothesis: -hypothesis.score)


def ctc_scores_of(
    codec: AnswerCodec, batch: EncodedBatch, row: int, texts: Sequence[str]
) -> list[float]:
    """Return the CTC log probability of normalised transcripts."""
    assert codec.ctc_tokenizer is not None
    labels = [codec.ctc_tokenizer.scoring_units(text) for text in texts]
    return batch.ctc_scores(row, labels)
