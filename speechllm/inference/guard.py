"""The guard: detect hypotheses that do not fit the audio, and decode them again.

CTC depends on the audio alone, independently of the LLM. Each hypothesis is compared
with the CTC transcript (:class:`Statistics`). One beyond the range of the development
set (:class:`Thresholds`, ``guard.yaml`` in the model folder, made by ``python -m
speechllm.bin.guard_thresholds``) is flagged, and the utterance is decoded again:
jointly with CTC, no longer than the CTC transcript allows, and without repeated
n-grams if there was repetition. First and new hypotheses and the CTC transcript are
then ranked by LLM and CTC together. Speech that is less probably in its task's language
than any of the development set, by the decoder of the first pass, has its text
withheld; without a first pass a text does whose best candidate is less probable than
any in the development set. Without CTC output the text is empty, unless the LLM wrote a
CTC transcript of more than half confidence, or what the first pass heard where there is
speech.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from speechllm.audio.segmentation import has_speech
from speechllm.decoding.encoded_batch import EncodedBatch
from speechllm.decoding.hypothesis import Hypothesis
from speechllm.decoding.nbest_search import labels_of, nbest_search
from speechllm.decoding.options import SearchOptions
from speechllm.decoding.pooling import pool_nbest
from speechllm.decoding.rescoring import hotword_bonus, joint_score, rescore
from speechllm.decoding.vllm_engine import VLLMLanguageModel
from speechllm.inference.guard_thresholds import (
    NO_CTC_OUTPUT,
    REPETITION,
    SMOOTHING,
    TOO_LONG,
    WITHHELD,
    Statistics,
    Thresholds,
    ctc_confidence,
    may_agree_with_ctc,
    measure_text,
)
from speechllm.models.llm import LanguageModel
from speechllm.text.answer_codec import AnswerCodec
from speechllm.text.normalization import ctc_text
from speechllm.text.tasks import Task

#: Options of the second search. Repeated n-grams are forbidden only where there was
#: repetition, since real speech repeats words too.
CONSTRAINED = SearchOptions(beam_size=4, pre_beam_size=40, no_repeat_ngram_size=3)


@dataclass
class GuardDecision:
    """The guard's decision on one utterance.

    Attributes:
        nbest: best first; unchanged unless something was flagged. A withheld text is
            second, after an empty one.
        flags: reasons, such as ``"repetition"``.
    """

    nbest: list[Hypothesis]
    flags: list[str] = field(default_factory=list)


#: n-best hypotheses of a search and the guard's decision on them.
Outcome = tuple[list[Hypothesis], GuardDecision]


class Guard:
    """Guard: checks hypotheses and replaces those that do not fit the audio.

    Args:
        llm: in evaluation mode.
        codec: with a CTC tokenizer.
        thresholds: of the model.
    """

    def __init__(self, llm: LanguageModel, codec: AnswerCodec, thresholds: Thresholds):
        self.llm, self.codec, self.thresholds = llm, codec, thresholds

    def withheld(self, batch: EncodedBatch) -> dict[int, str]:
        """Return utterances whose every text is withheld, and why, before the search.

        They have no CTC output that a text could be equal to, and no first pass that
        one could agree with, or their speech is in another language. The flag is that
        of :meth:`check`.
        """
        assert self.codec.ctc_tokenizer is not None
        labels, found = self.codec.ctc_tokenizer.token_list, {}
        for row in range(len(batch.tasks)):
            confidence = ctc_confidence(batch.log_probs(row), labels)
            first = None if batch.first_pass is None else batch.first_pass[row]
            if (
                confidence < self.thresholds.ctc_confidence
                and not may_agree_with_ctc(confidence)
                and not (first and first.texts and has_speech(batch.waves[row]))
            ):
                found[row] = NO_CTC_OUTPUT
            elif self.is_other_language(batch, row):
                found[row] = WITHHELD
        return found

    def check(
        self,
        batch: EncodedBatch,
        nbests: Sequence[list[Hypothesis]],
        options: SearchOptions,
    ) -> list[GuardDecision]:
        """Check the first hypothesis of each utterance.

        Args:
            nbests: of each utterance, best first.
            options: of the search that found them.
        """
        decisions = [GuardDecision(list(nbest)) for nbest in nbests]
        with_output, flagged = [], []
        for row, decision in enumerate(decisions):
            best = decision.nbest[0]
            measured = measure(self.codec, batch, row, best)
            has_output = measured.ctc_confidence >= self.thresholds.ctc_confidence
            has_output |= measured.agrees_with_ctc
            if not has_output and not self.agrees_with_first_pass(batch, row, best):
                if best.tokens:
                    decision.flags = [NO_CTC_OUTPUT]
                    decision.nbest = [Hypothesis(score=best.score)]
                continue
            limits = self.thresholds.limits(batch.tasks[row])
            decision.flags = limits.flags(measured)
            with_output.append(row)
            if decision.flags:
                flagged.append(row)
        sizes = {
            row: self.ngram_size(batch.ctc_text(row))
            if REPETITION in decisions[row].flags
            else 0
            for row in flagged
        }
        for size in sorted(set(sizes.values())):
            rows = [row for row in flagged if sizes[row] == size]
            again = self.search_again(batch, rows, options, size)
            for row, found in zip(rows, again):
                candidates = [*decisions[row].nbest, *found]
                pool = ranked = self.rank(batch, row, candidates, options)
                if batch.tasks[row].name == "asr":
                    pool = pool_nbest(self.llm, self.codec, batch, row, ranked, options)
                fitting = [h for h in pool if not self.is_too_long(batch, row, h)]
                decisions[row].nbest = (fitting or ranked)[: options.nbest]
        for row in with_output:
            nbest = decisions[row].nbest
            if nbest[0].tokens and self.is_improbable(batch, row, nbest):
                decisions[row].flags.append(WITHHELD)
                nbest.insert(0, Hypothesis())
        return decisions

    def agrees_with_first_pass(
        self, batch: EncodedBatch, row: int, hypothesis: Hypothesis
    ) -> bool:
        """Return whether the first pass wrote the same text, and VAD finds speech.

        A decoder also writes words for noise; VAD alone does not know which.
        """
        first = None if batch.first_pass is None else batch.first_pass[row]
        if first is None:
            return False
        output = self.codec.decode(hypothesis.tokens)
        text = ctc_text(self.codec.transcript(output, batch.tasks[row]), first.language)
        heard = {ctc_text(own, first.language) for own in first.texts}
        return text in heard and has_speech(batch.waves[row])

    def is_too_long(
        self, batch: EncodedBatch, row: int, hypothesis: Hypothesis
    ) -> bool:
        """Return whether a hypothesis is beyond the limits of length.

        Without a CTC transcript to compare it with, that is too fast for the audio.
        """
        limits = self.thresholds.limits(batch.tasks[row])
        measured = measure(self.codec, batch, row, hypothesis)
        if not batch.ctc_text(row):
            return measured.rate > limits.rate
        return TOO_LONG in limits.flags(measured)

    def ngram_size(self, ctc_transcript: str) -> int:
        """Return the size of the n-grams that the second search does not repeat.

        It is three tokens, or those of three characters where characters have several
        tokens; otherwise no such character could occur twice.
        """
        size = CONSTRAINED.no_repeat_ngram_size
        tokens = size * len(self.codec.encode(ctc_transcript))
        return max(size, -(-tokens // max(len(ctc_transcript), 1)))

    def search_again(
        self,
        batch: EncodedBatch,
        rows: Sequence[int],
        options: SearchOptions,
        no_repeat_ngram_size: int,
    ) -> list[list[Hypothesis]]:
        """Decode utterances jointly with CTC, no longer than its transcript allows.

        vLLM has no such search: its first hypothesis and the CTC transcript are ranked.

        Args:
            rows: the utterances.
            options: of the first search.
            no_repeat_ngram_size: of the second search.
        """
        if not rows or isinstance(self.llm, VLLMLanguageModel):
            return [[] for _ in rows]
        max_tokens = []
        for row in rows:
            task = batch.tasks[row]
            length = len(self.codec.encode(batch.ctc_text(row)))
            if task.name == "asr_st":
                length *= 2
            ratio = self.thresholds.limits(task).max_length_ratio
            max_tokens.append(int(ratio * (length + SMOOTHING)))
        beam_size = max(options.beam_size, CONSTRAINED.beam_size)
        constrained = replace(
            CONSTRAINED,
            beam_size=beam_size,
            nbest=beam_size,
            ctc_weight=self.thresholds.ctc_weight,
            no_repeat_ngram_size=no_repeat_ngram_size,
            hotwords=options.hotwords,
            hotword_bonus=options.hotword_bonus,
            tokens_per_second=options.tokens_per_second,
            extra_tokens=options.extra_tokens,
            rescore_ctc_weight=options.rescore_ctc_weight,
            rescore_decoder_weight=options.rescore_decoder_weight,
            rescore_translation_weight=options.rescore_translation_weight,
        )
        part = batch.select(rows)
        return nbest_search(self.llm, self.codec, part, constrained, max_tokens)

    def rank(
        self,
        batch: EncodedBatch,
        row: int,
        candidates: Sequence[Hypothesis],
        options: SearchOptions = CONSTRAINED,
    ) -> list[Hypothesis]:
        """Rank the candidates and the CTC transcript, best first.

        Those that are too long are left out; if all are, the shortest is cut.

        Args:
            options: their hotwords.
        """
        task, ctc_transcript = batch.tasks[row], batch.ctc_text(row)
        limits = self.thresholds.limits(task)
        candidates = list({tuple(c.tokens): c for c in candidates}.values())
        if task.name == "asr":
            candidates.append(self.ctc_hypothesis(batch, row, options))
        measured = [measure(self.codec, batch, row, c) for c in candidates]
        flags = [limits.flags(m) for m in measured]
        fitting = [i for i, found in enumerate(flags) if TOO_LONG not in found]
        if not fitting:
            shortest = min(candidates, key=lambda c: len(c.tokens))
            most = limits.max_characters(ctc_transcript, batch.seconds[row])
            return [self.cut(shortest, most, task)]
        candidates = [candidates[i] for i in fitting]
        if task.name == "asr":
            scores = self.ctc_scores(batch, row, candidates)
            return rescore(candidates, scores, self.thresholds.ctc_weight)
        # without CTC scores the LLM would prefer short texts, or loops again
        keys = [
            (len(flags[i]), -c.llm_score / (len(c.tokens) + 1))
            for i, c in zip(fitting, candidates)
        ]
        order = sorted(range(len(candidates)), key=keys.__getitem__)
        return [candidates[i] for i in order]

    def ctc_hypothesis(
        self, batch: EncodedBatch, row: int, options: SearchOptions
    ) -> Hypothesis:
        """Return the CTC transcript of an utterance, scored by the LLM."""
        tokens = self.codec.encode(batch.ctc_text(row))
        (scores,) = self.llm.answer_log_probs(
            [batch.prompt_embeds[row]], [[*tokens, self.llm.eos_id]]
        )
        *token_log_probs, _ = scores.tolist()
        return Hypothesis(
            tokens,
            llm_score=scores.sum().item(),
            token_log_probs=token_log_probs,
            bonus=hotword_bonus(self.codec, tokens, options),
        )

    def is_improbable(
        self, batch: EncodedBatch, row: int, nbest: Sequence[Hypothesis]
    ) -> bool:
        """Return whether language or texts are unlike those of the development set.

        The texts are the hypotheses and the CTC transcript; all are improbable then.
        """
        other_language = self.is_other_language(batch, row)
        if other_language is not None:
            return other_language
        most = self.thresholds.limits(batch.tasks[row]).nll_per_second
        if most is None or self.nll_per_second(batch, row, nbest[0]) <= most:
            return False
        if batch.tasks[row].name != "asr":
            return True  # it does not depend on the hypothesis
        best = self.rank(batch, row, nbest)[0]
        return self.nll_per_second(batch, row, best) > most

    def is_other_language(self, batch: EncodedBatch, row: int) -> bool | None:
        """Return whether the speech is in another language; None if it is unknown."""
        least = self.thresholds.language_probability
        language = (batch.language_probabilities or {row: None})[row]
        return None if least is None or language is None else language < least

    def nll_per_second(
        self, batch: EncodedBatch, row: int, hypothesis: Hypothesis
    ) -> float:
        """Return the negative log probability by LLM and CTC, in nats per second.

        For tasks other than ``asr`` it is that of the CTC transcript by CTC alone.
        """
        if batch.tasks[row].name != "asr":
            return ctc_nll_per_second(self.codec, batch, row)
        (score,) = self.ctc_scores(batch, row, [hypothesis])
        total = joint_score(hypothesis.llm_score, score, self.thresholds.ctc_weight)
        return -total / batch.seconds[row]

    def ctc_scores(
        self, batch: EncodedBatch, row: int, hypotheses: Sequence[Hypothesis]
    ) -> list[float]:
        """Return the CTC log probability of each transcript."""
        task = batch.tasks[row]
        texts = [labels_of(self.codec, h, task) or [] for h in hypotheses]
        return batch.ctc_scores(row, texts)

    def cut(self, hypothesis: Hypothesis, most: int, task: Task) -> Hypothesis:
        """Return the beginning of a hypothesis, of at most ``most`` characters."""
        tokens = list(hypothesis.tokens)
        decode = self.codec.decode
        while tokens and len(ctc_text(decode(tokens), task.target)) > most:
            tokens.pop()
        return replace(
            hypothesis,
            tokens=tokens,
            token_log_probs=hypothesis.token_log_probs[: len(tokens)],
            ctc_labels=None,
            truncated=len(tokens) < len(hypothesis.tokens) or hypothesis.truncated,
        )


def measure(
    codec: AnswerCodec, batch: EncodedBatch, row: int, hypothesis: Hypothesis
) -> Statistics:
    """Compute the statistics of a hypothesis of an utterance."""
    labels = labels_of(codec, hypothesis, batch.tasks[row])
    return measure_output(codec, batch, row, codec.decode(hypothesis.tokens), labels)


def measure_output(
    codec: AnswerCodec,
    batch: EncodedBatch,
    row: int,
    text: str,
    labels: Sequence[int] | None,
) -> Statistics:
    """Compute the statistics of a text as the output for an utterance.

    Args:
        labels: its transcript in CTC labels; None for a translation.
    """
    tokenizer = codec.ctc_tokenizer
    assert tokenizer is not None
    ctc_transcript, margin = batch.ctc_text(row), None
    if labels is not None:
        best = tokenizer.scoring_units(ctc_transcript)
        best_score, score = batch.ctc_scores(row, [best, labels])
        margin = (best_score - score) / max(len(best), len(labels), 1)
    return measure_text(
        text,
        batch.tasks[row],
        ctc_transcript,
        batch.seconds[row],
        ctc_confidence(batch.log_probs(row), tokenizer.token_list),
        margin,
    )


def ctc_nll_per_second(codec: AnswerCodec, batch: EncodedBatch, row: int) -> float:
    """Return the CTC transcript's negative CTC log probability, in nats per second."""
    assert codec.ctc_tokenizer is not None
    spelt = codec.ctc_tokenizer.scoring_units(batch.ctc_text(row))
    (score,) = batch.ctc_scores(row, [spelt])
    return -score / batch.seconds[row]


def search_if_kept(
    guard: Guard | None,
    batch: EncodedBatch,
    search: Callable[[EncodedBatch, Callable[[int], object] | None], list[Outcome]],
    on_finished: Callable[[int], object] | None = None,
) -> list[Outcome]:
    """Search utterances, but not those of which the guard withholds every text.

    Args:
        guard: None: search all.
        batch: the utterances.
        search: returns the outcomes of a batch and calls the second argument with the
            index of each finished utterance.
        on_finished: called with the index of each utterance of ``batch``.

    Returns:
        Hypotheses and decision of each utterance.
    """
    withheld = {} if guard is None else guard.withheld(batch)
    if not withheld:
        return search(batch, on_finished)
    rows = [row for row in range(len(batch.tasks)) if row not in withheld]

    def finished(place: int) -> None:
        if on_finished is not None:
            on_finished(rows[place])

    found = dict(zip(rows, search(batch.select(rows), finished))) if rows else {}
    for row, flag in withheld.items():
        found[row] = [Hypothesis()], GuardDecision([Hypothesis()], [flag])
        if on_finished is not None:
            on_finished(row)
    return [outcome for _, outcome in sorted(found.items())]
