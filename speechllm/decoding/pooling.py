"""The n-best list pooled from LLM, CTC and first pass.

Three models score the hypotheses of an utterance: the LLM, CTC, and the decoder that
the encoder was pretrained with (:mod:`speechllm.models.speech_decoder`). The list pools
the hypotheses of all three, so with the whole weight on one of them the best one is at
least as probable by that model as its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from speechllm.decoding.encoded_batch import EncodedBatch
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
        row: of the utterance.
        nbest: hypotheses of the LLM.
    """
    first = None if batch.first_pass is None else batch.first_pass[row]
    if first is None:
        return list(nbest)
    language = first.language
    hypotheses: dict[str, tuple[str, Hypothesis]] = {}  # by normalised text
    for hypothesis in nbest:
        text = codec.decode(hypothesis.tokens).strip()
        hypotheses.setdefault(ctc_text(text, language), (text, hypothesis))
    plain = next((text == key for key, (text, _) in hypotheses.items() if key), False)
    new: dict[str, str] = {}
    for text in [*first.texts, batch.ctc_text(row)]:
        spoken = ctc_text(text, language)
        if spoken and spoken not in hypotheses:
            new.setdefault(spoken, spoken if plain else text)
    if new:
        outputs = [codec.encode(text) for text in new.values()]
        prompts = [batch.prompt_embeds[row]] * len(outputs)
        scored = score_outputs(llm, codec, prompts, outputs, options)
        for (spoken, text), hypothesis in zip(new.items(), scored):
            hypotheses[spoken] = (text, hypothesis)
    texts = list(hypotheses)
    by_decoder = first.scores([text for text, _ in hypotheses.values()])
    weight = options.rescore_decoder_weight or 0.0
    ctc_weight = options.rescore_ctc_weight
    by_ctc = [0.0] * len(texts)
    if ctc_weight:
        by_ctc = ctc_scores_of(codec, batch, row, texts)
    for (_, hypothesis), decoder_score, ctc_score in zip(
        hypotheses.values(), by_decoder, by_ctc
    ):
        hypothesis.decoder_score = decoder_score
        if ctc_weight:
            hypothesis.ctc_score = ctc_score
        hypothesis.score = pooled_score(
            hypothesis.llm_score, ctc_score, decoder_score, ctc_weight, weight
        )
        hypothesis.score += hypothesis.bonus
    ranked = [hypothesis for _, hypothesis in hypotheses.values()]
    return sorted(ranked, key=lambda hypothesis: -hypothesis.score)


def ctc_scores_of(
    codec: AnswerCodec, batch: EncodedBatch, row: int, texts: Sequence[str]
) -> list[float]:
    """Return the CTC log probability of normalised transcripts."""
    assert codec.ctc_tokenizer is not None
    labels = [codec.ctc_tokenizer.scoring_units(text) for text in texts]
    return batch.ctc_scores(row, labels)
