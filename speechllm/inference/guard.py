"""The guard: answers that are out of line with the audio are found and decoded again.

CTC reads the audio independently of the LLM. An answer is measured by what CTC heard
(:class:`Statistics`); what is beyond anything that the development set showed
(:class:`Thresholds`, ``guard.yaml`` in the model's folder, made by ``python -m
speechllm.bin.guard_thresholds``) is flagged and the utterance decoded again: jointly
with CTC, no longer than CTC's text allows, and without repetition where there was one.
The first answers, the new ones and CTC's own transcript are then ranked by LLM and CTC
together. If even the likeliest of them is unlikelier than any that the development set
showed, as in a language that the model has not learnt, the text is withheld. Where CTC
heard nothing it is empty, unless the LLM wrote what CTC is more than half sure of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from speechllm.decoding.hypothesis import Hypothesis
from speechllm.decoding.options import SearchOptions
from speechllm.decoding.rescoring import ctc_log_probs, joint_score, rescore
from speechllm.inference.guard_thresholds import (
    NOTHING_HEARD,
    REPETITION,
    SHORT_TEXT,
    TOO_LONG,
    WITHHELD,
    Statistics,
    Thresholds,
    clarity,
    distances,
    measure,
)
from speechllm.text.normalization import ctc_text

if TYPE_CHECKING:
    from speechllm.decoding.encoded_batch import Batch
    from speechllm.inference.speech_to_text import SpeechToText


#: How a flagged utterance is searched again; runs of tokens are forbidden to stand
#: twice where there was repetition only, since true speech repeats itself too.
CONSTRAINED = SearchOptions(beam_size=4, candidates=40, no_repeat_ngram_size=3)


# Guarding


@dataclass
class Verdict:
    """What the guard makes of one utterance's answers.

    Attributes:
        nbest: best first; the first ones as they were unless something was found.
            Where the text is withheld, behind an empty one.
        flags: what was found.
    """

    nbest: list[Hypothesis]
    flags: list[str] = field(default_factory=list)


def doubt_of_ctc(model: SpeechToText, batch: Batch, row: int) -> float:
    """How unlikely CTC finds its own text, in nats for each second."""
    heard = model.ctc_tokenizer(batch.heard[row])
    (score,) = ctc_log_probs(batch.log_probs(row), [heard])
    return -score / batch.seconds[row]


class Guard:
    """Checks the answers of a model, and mends those that are out of line.

    Args:
        model: with a CTC branch over characters.
        thresholds: of the model.
    """

    def __init__(self, model: SpeechToText, thresholds: Thresholds):
        self.model, self.thresholds = model, thresholds

    def check(
        self,
        batch: Batch,
        nbests: Sequence[list[Hypothesis]],
        options: SearchOptions,
    ) -> list[Verdict]:
        """Check the first answer to each utterance.

        Args:
            nbests: of each utterance, best first.
            options: what they were searched with.
        """
        verdicts = [Verdict(list(nbest)) for nbest in nbests]
        heard, suspects = [], []
        for row, verdict in enumerate(verdicts):
            best = verdict.nbest[0]
            measured = self.measure(batch, row, best)
            if measured.clarity < self.thresholds.clarity and not measured.agreed:
                if best.tokens:
                    verdict.flags = [NOTHING_HEARD]
                    verdict.nbest = [Hypothesis(score=best.score)]
                continue
            limits = self.thresholds.limits(batch.asks[row])
            verdict.flags = limits.flags(measured)
            heard.append(row)
            if verdict.flags:
                suspects.append(row)
        for loops in (True, False):
            rows = [
                row for row in suspects if (REPETITION in verdicts[row].flags) == loops
            ]
            for row, found in zip(rows, self.search_again(batch, rows, options, loops)):
                candidates = [*verdicts[row].nbest, *found]
                ranked = self.rank(batch, row, candidates)
                verdicts[row].nbest = ranked[: options.nbest]
        for row in heard:
            nbest = verdicts[row].nbest
            if nbest[0].tokens and self.doubts(batch, row, nbest):
                verdicts[row].flags.append(WITHHELD)
                nbest.insert(0, Hypothesis())
        return verdicts

    def measure(self, batch: Batch, row: int, answer: Hypothesis) -> Statistics:
        """Measure an answer to an utterance of the batch."""
        model, (task, source, target) = self.model, batch.asks[row]
        log_probs, heard = batch.log_probs(row), batch.heard[row]
        labels = model.spoken_labels(answer.tokens, batch.asks[row])
        distance = None
        if labels is not None:
            (distance,) = distances(log_probs, model.ctc_tokenizer(heard), [labels])
        return measure(
            model.decoded(answer.tokens),
            source if task == "asr_st" else target,
            heard,
            batch.seconds[row],
            clarity(log_probs, model.model.token_list),
            distance,
            source,
        )

    def doubts(self, batch: Batch, row: int, answers: Sequence[Hypothesis]) -> bool:
        """Whether the answers, and what CTC heard, are all too unlikely."""
        most = self.thresholds.limits(batch.asks[row]).doubt
        if most is None or self.doubt(batch, row, answers[0]) <= most:
            return False
        if batch.asks[row][0] != "asr":
            return True  # whatever the answer
        return self.doubt(batch, row, self.rank(batch, row, answers)[0]) > most

    def doubt(self, batch: Batch, row: int, answer: Hypothesis) -> float:
        """How unlikely an answer is by LLM and CTC together, in nats for each second.

        Of an answer that is not the transcript alone, how unlikely CTC finds its own.
        """
        ask, log_probs = batch.asks[row], batch.log_probs(row)
        if ask[0] != "asr":
            return doubt_of_ctc(self.model, batch, row)
        labels = self.model.spoken_labels(answer.tokens, ask)
        (score,) = ctc_log_probs(log_probs, [labels])
        likely = joint_score(answer.llm_score, score, self.thresholds.ctc_weight)
        return -likely / batch.seconds[row]

    def search_again(
        self, batch: Batch, rows: Sequence[int], options: SearchOptions, loops: bool
    ) -> list[list[Hypothesis]]:
        """Decode utterances jointly with CTC, no longer than CTC's text allows."""
        if not rows:
            return []
        encode = self.model.encoded
        most = []
        for row in rows:
            expansion = self.thresholds.limits(batch.asks[row]).most_expansion
            heard = len(encode(batch.heard[row]))
            if batch.asks[row][0] == "asr_st":
                heard *= 2
            most.append(int(expansion * (heard + SHORT_TEXT)))
        beam = max(options.beam_size, CONSTRAINED.beam_size)
        constrained = replace(
            CONSTRAINED,
            beam_size=beam,
            nbest=beam,
            ctc_weight=self.thresholds.ctc_weight,
            no_repeat_ngram_size=CONSTRAINED.no_repeat_ngram_size if loops else 0,
            tokens_per_second=options.tokens_per_second,
            extra_tokens=options.extra_tokens,
        )
        return self.model.search(batch.part(rows), constrained, most)

    def rank(
        self, batch: Batch, row: int, candidates: Sequence[Hypothesis]
    ) -> list[Hypothesis]:
        """Rank the candidates, and CTC's transcript among them, best first.

        Those that are too long are left out; if all are, the shortest is cut.
        """
        ask, heard = batch.asks[row], batch.heard[row]
        limits = self.thresholds.limits(ask)
        model = self.model
        candidates = list({tuple(c.tokens): c for c in candidates}.values())
        if ask[0] == "asr":
            tokens = model.encoded(heard)
            (scores,) = model.model.llm.answer_log_probs(
                [batch.prompts[row]], [[*tokens, model.model.llm.eos_id]]
            )
            candidates.append(Hypothesis(tokens, llm_score=scores.sum().item()))
        measured = [self.measure(batch, row, c) for c in candidates]
        found = [limits.flags(m) for m in measured]
        fitting = [i for i, flags in enumerate(found) if TOO_LONG not in flags]
        if not fitting:
            shortest = min(candidates, key=lambda c: len(c.tokens))
            most = limits.longest(heard, batch.seconds[row])
            return [self.cut(shortest, most, ask)]
        candidates = [candidates[i] for i in fitting]
        texts = [model.spoken_labels(c.tokens, ask) for c in candidates]
        if ask[0] == "asr":
            log_probs, weight = batch.log_probs(row), self.thresholds.ctc_weight
            return rescore(candidates, log_probs, texts, weight)
        # without CTC's word the LLM would choose what is short, or a loop again
        keys = [
            (len(found[i]), -c.llm_score / (len(c.tokens) + 1))
            for i, c in zip(fitting, candidates)
        ]
        order = sorted(range(len(candidates)), key=keys.__getitem__)
        return [candidates[i] for i in order]

    def cut(
        self, answer: Hypothesis, most: int, ask: tuple[str, str, str]
    ) -> Hypothesis:
        """The beginning of an answer that has at most so many characters."""
        tokens = list(answer.tokens)
        while tokens and len(ctc_text(self.model.decoded(tokens), ask[2])) > most:
            tokens.pop()
        return replace(answer, tokens=tokens)
