"""Results: hypotheses as text, word times and word confidence."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from speechllm.audio import SAMPLING_RATE
from speechllm.decoding.confidence import (
    Calibration,
    features_of_word,
    tokens_of_words,
    uncalibrated,
)
from speechllm.decoding.encoded_batch import EncodedBatch
from speechllm.decoding.forced_alignment import (
    Span,
    align_texts,
    loud_frames,
    split_words,
    word_times,
)
from speechllm.decoding.hypothesis import Hypothesis
from speechllm.decoding.result import Result, Word
from speechllm.inference.guard import GuardDecision
from speechllm.text.answer_codec import AnswerCodec

MALFORMED = "malformed"  # flag of an asr_st output without separator or cut off
TRUNCATED = "truncated"  # flag of an output that reached its maximum length
UNALIGNED = "unaligned"  # flag of a text that is too long for its audio


def make_result(
    codec: AnswerCodec, batch: EncodedBatch, row: int, nbest: Sequence[Hypothesis]
) -> Result:
    """Convert the hypotheses of one utterance, best first, to text.

    The output of ``asr_st`` is split into transcript and translation.
    """
    best = nbest[0]
    texts = [codec.decode(hypothesis.tokens) for hypothesis in nbest]
    result = Result(
        text=texts[0].strip(),
        tokens=codec.tokenizer.convert_ids_to_tokens(best.tokens),
        score=best.score,
        ctc_text=batch.ctc_texts[row],
        nbest=[(text.strip(), h.score) for text, h in zip(texts, nbest)],
    )
    if best.truncated:
        result.flags.append(TRUNCATED)
    if batch.tasks[row].name == "asr_st":
        answer = codec.parse(texts[0])
        result.transcript, result.text = answer.transcript, answer.translation
        if not answer.whole or best.truncated:
            result.flags.append(MALFORMED)
    return result


def add_decision(
    result: Result,
    codec: AnswerCodec,
    batch: EncodedBatch,
    row: int,
    nbest: Sequence[Hypothesis],
    decision: GuardDecision,
) -> None:
    """Add the guard's flags, and the texts without the guard where these are others.

    Args:
        nbest: of the search, before the guard.
        decision: of the guard, whose hypotheses the result has.
    """
    if not decision.flags:
        return
    before = make_result(codec, batch, row, nbest)
    if before.text != result.text:
        result.unguarded = before.text
    if before.transcript != result.transcript:
        result.unguarded_transcript = before.transcript
    if not decision.nbest[0].tokens:
        result.flags.clear()  # an empty text is not malformed
    result.flags += decision.flags


def add_words(
    result: Result,
    codec: AnswerCodec,
    batch: EncodedBatch,
    row: int,
    hypothesis: Hypothesis,
    frames_per_second: float,
    calibration: Calibration | None,
) -> None:
    """Add the words to a result, with times and confidence.

    A translation has none, since its words are not in the audio; for ``asr_st`` they
    are those of the transcript.

    Args:
        frames_per_second: of the encoder.
        calibration: of the confidence; without one it is the CTC probability.
    """
    words, spans, features = word_features(codec, batch, row, hypothesis)
    if words is None:
        return
    frames = int(batch.encoder_lengths[row])
    loud = loud_frames(batch.waves[row], frames, SAMPLING_RATE / frames_per_second)
    times = word_times(spans, frames, 1 / frames_per_second, loud)
    probability = calibration.probability if calibration else uncalibrated
    result.words = [
        Word(word, start, end, probability(values))
        for word, (start, end), values in zip(words, times, features)
    ]
    if words:
        total = sum(word.confidence for word in result.words)
        result.confidence = total / len(words)
    if not all(span.aligned for span in spans):
        result.flags.append(UNALIGNED)


def word_features(
    codec: AnswerCodec, batch: EncodedBatch, row: int, hypothesis: Hypothesis
) -> tuple[list[str] | None, list[Span], list[tuple[float, ...]]]:
    """Return the words of a hypothesis with their frame spans and confidence features.

    Returns:
        Words, spans and ``FEATURES`` of each word; words are None for a translation.
    """
    task = batch.tasks[row]
    if not task.has_transcript:
        return None, [], []
    tokens = hypothesis.tokens
    texts = [codec.decode(tokens[:n]) for n in range(len(tokens) + 1)]
    words = split_words(codec.transcript(texts[-1], task), task.source)
    log_probs = batch.log_probs(row).cpu()  # many small steps
    spans = align_texts(words, task.source, log_probs, codec.ctc_tokenizer)
    pieces = [after[len(before) :] for before, after in pairwise(texts)]
    features = [
        features_of_word(span.log_probs, [hypothesis.token_log_probs[i] for i in own])
        for span, own in zip(spans, tokens_of_words(pieces, words))
    ]
    return words, spans, features
