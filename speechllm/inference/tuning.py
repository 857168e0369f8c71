"""What a development set teaches about a trained model: the guard's thresholds and the
calibration of its confidence. Both are written into the model's folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from speechllm.data.examples import Example
from speechllm.decoding.options import SearchOptions
from speechllm.decoding.rescoring import joint_score
from speechllm.inference.guard import Guard, doubt_of_ctc
from speechllm.inference.guard_thresholds import (
    Limits,
    Statistics,
    Thresholds,
    clarity,
    distances,
    measure,
)
from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES, ctc_text, normalize
from speechllm.text.tasks import group_name
from speechllm.utils.batching import batches_by_length
from speechllm.utils.errors import UserError
from speechllm.utils.io import read_yaml

if TYPE_CHECKING:
    from speechllm.decoding.confidence import Calibration
    from speechllm.decoding.encoded_batch import Batch
    from speechllm.inference.speech_to_text import SpeechToText


WEIGHTS = (0.5, 0.7, 0.3, 0.9)  # of CTC in ranking candidates, tried on the set


def read_generation(config: str | Path | None) -> dict:
    """What a config of stage 12 says about the search; nothing without one."""
    options = read_yaml(config) if config else {}
    fields = SearchOptions.__dataclass_fields__
    other = {"batch_size", "dtype", "engine"}  # how it is run
    if unknown := set(options) - set(fields) - other:
        raise UserError(f"{config}: unknown option {min(unknown)!r}")
    return {name: value for name, value in options.items() if name in fields}


def encoded_batches(
    model: SpeechToText, examples: Sequence[Example], batch_size: int
) -> Iterator[tuple[list[Example], Batch]]:
    """Batches of utterances of like lengths, encoded, with progress on stderr."""
    from tqdm import tqdm

    lengths = [len(example.wave) for example in examples]
    with tqdm(total=len(examples), unit="utt", mininterval=5) as bar:
        for indices in batches_by_length(lengths, batch_size):
            part = [examples[i] for i in indices]
            yield part, model.encode([e.wave for e in part], [e.ask for e in part])
            bar.update(len(part))


def count_errors(reference: str, text: str, language: str) -> int:
    """Words (of languages without spaces: characters) that are wrong, as scored."""
    import jiwer

    pair = [normalize(t, language) for t in (reference, text)]
    if language in LANGUAGES_WITHOUT_SPACES:
        pair = [" ".join(t.replace(" ", "")) for t in pair]
    if not pair[0]:
        return len(pair[1].split())
    output = jiwer.process_words(*pair)
    return output.substitutions + output.deletions + output.insertions


# The guard's thresholds


def find_thresholds(
    model: SpeechToText,
    examples: Sequence[Example],
    options: SearchOptions,
    batch_size: int = 8,
    margin: float = 1.25,
    made_from: str = "",
) -> Thresholds:
    """Choose the guard's thresholds on a development set.

    Length, repetition and distance may go so far beyond what the true texts of the set
    show as ``margin`` says; clarity no lower than the least clear utterance in which
    CTC heard anything. What is flagged so is decoded again, and CTC's share in ranking
    the candidates is the one with the fewest errors. The likeliest candidate for each
    utterance is doubtful to some degree, and what is more so than any of the set is
    withheld: of the set nothing, and thus of n more such utterances seldom more than
    3 n / (size of the set).

    Args:
        model: with a CTC branch over characters.
        examples: with their true texts.
        options: how answers are searched first.
        margin: 1 allows nothing beyond the set.

    Raises:
        UserError: the model has no such branch, or CTC heard nothing at all.
    """
    if model.ctc_tokenizer is None or model.model.llm is None:
        raise UserError("the guard needs an LLM and a CTC branch over characters")
    truth: dict[str, list[Statistics]] = {}
    doubts: dict[str, list[float]] = {}
    for part, batch in encoded_batches(model, examples, batch_size):
        for row, example in enumerate(part):
            found = measure_truth(model, batch, row, example.text)
            if found.clarity > 0:
                truth.setdefault(group_name(example.ask), []).append(found)
                if example.ask[0] != "asr":
                    doubt = doubt_of_ctc(model, batch, row)
                    doubts.setdefault(group_name(example.ask), []).append(doubt)
    if not truth:
        raise UserError("CTC heard nothing in any of the examples")
    groups = {name: widest(found, margin) for name, found in sorted(truth.items())}
    clear = min(s.clarity for found in truth.values() for s in found)
    clear = math.floor(1000 * clear) / 1000
    thresholds = Thresholds(clear, WEIGHTS[0], groups, made_from)
    spoken = [example for example in examples if example.ask[0] == "asr"]
    trials = try_again(model, spoken, options, thresholds, batch_size)
    weight = fewest_errors([t.candidates for t in trials if t.flagged])
    for trial in trials:
        doubts.setdefault(trial.group, []).append(trial.doubt(weight))
    for name, found in doubts.items():
        most = math.ceil(1000 * max(found)) / 1000
        groups[name] = replace(groups[name], doubt=most)
    return replace(thresholds, ctc_weight=weight)


def measure_truth(model: SpeechToText, batch: Batch, row: int, text: str) -> Statistics:
    """Measure the true text of an utterance, as an answer would be."""
    task, source, target = batch.asks[row]
    log_probs, heard = batch.log_probs(row), batch.heard[row]
    distance = None
    if task == "asr_st" or source == target:
        labels = model.ctc_tokenizer(ctc_text(text.split("\t")[0], source))
        (distance,) = distances(log_probs, model.ctc_tokenizer(heard), [labels])
    return measure(
        text,
        source if task == "asr_st" else target,
        heard,
        batch.seconds[row],
        clarity(log_probs, model.model.token_list),
        distance,
        source,
    )


def widest(found: Sequence[Statistics], margin: float) -> Limits:
    """The range of the statistics, wider by a margin."""
    told = [s.distance for s in found if s.distance is not None]
    return Limits(
        rate=round(max(s.rate for s in found) * margin, 2),
        least_expansion=round(min(s.expansion for s in found) / margin, 3),
        most_expansion=round(max(s.expansion for s in found) * margin, 3),
        repetition=int(max(s.repetition for s in found) * margin),
        distance=round(max(told) * margin, 3) if told else None,
    )


#: (LLM's score, CTC's score, errors) of each candidate for one utterance.
Candidates = list[tuple[float, float, int]]


@dataclass(frozen=True)
class Trial:
    """What could be written for one utterance, CTC's own text among it.

    Attributes:
        flagged: whether it was decoded again.
    """

    group: str
    seconds: float
    flagged: bool
    candidates: Candidates

    def doubt(self, weight: float) -> float:
        """Of the likeliest candidate, in nats for each second."""
        likely = max(joint_score(*c[:2], weight) for c in self.candidates)
        return -likely / self.seconds


def try_again(
    model: SpeechToText,
    examples: Sequence[Example],
    options: SearchOptions,
    thresholds: Thresholds,
    batch_size: int,
) -> list[Trial]:
    """Decode as ever, and again what is flagged; not where CTC hears nothing."""
    guard, trials = Guard(model, thresholds), []
    for part, batch in encoded_batches(model, examples, batch_size):
        nbests = model.search(batch, options)
        heard, flagged = [], []
        for row, nbest in enumerate(nbests):
            measured = guard.measure(batch, row, nbest[0])
            limits = thresholds.limits(batch.asks[row])
            if measured.clarity >= thresholds.clarity:
                heard.append(row)
                if limits.flags(measured):
                    flagged.append(row)
        again = guard.search_again(batch, flagged, options, loops=False)
        found = dict(zip(flagged, again))
        for row in heard:
            ranked = guard.rank(batch, row, [*nbests[row], *found.get(row, [])])
            text, ask = part[row].text, part[row].ask
            candidates = [
                (
                    c.llm_score,
                    c.ctc_score or 0.0,
                    count_errors(text, model.decoded(c.tokens), ask[1]),
                )
                for c in ranked
            ]
            seconds = batch.seconds[row]
            trials.append(Trial(group_name(ask), seconds, row in found, candidates))
    return trials


def fewest_errors(trials: Sequence[Candidates]) -> float:
    """CTC's weight of ``WEIGHTS`` with the fewest errors; the first of equals."""

    def errors(weight: float) -> int:
        best = [
            max(trial, key=lambda c: joint_score(*c[:2], weight)) for trial in trials
        ]
        return sum(wrong for *_, wrong in best)

    return min(WEIGHTS, key=errors)


# Calibration


def calibrate(
    model: SpeechToText,
    examples: Sequence[Example],
    options: SearchOptions,
    batch_size: int = 8,
    made_from: str = "",
) -> Calibration:
    """Fit the confidence of words on a development set; its translations are left out.

    Raises:
        UserError: the set has no recognition, or no wrong word or no right one.
    """
    from speechllm.decoding.confidence import fit

    features, right = judged_words(model, examples, options, batch_size)
    return fit(np.array(features), np.array(right), made_from)


def judged_words(
    model: SpeechToText,
    examples: Sequence[Example],
    options: SearchOptions,
    batch_size: int = 8,
) -> tuple[list[tuple[float, ...]], list[bool]]:
    """The features of every word that the model writes, and whether it is right."""
    from speechllm.decoding.confidence import right_words

    spoken = [example for example in examples if example.ask[0] == "asr"]
    if not spoken:
        raise UserError("confidence is learnt from recognition (asr): none is there")
    features, right = [], []
    for part, batch in encoded_batches(model, spoken, batch_size):
        nbests = model.search(batch, options)
        for row, verdict in enumerate(model.judge(batch, nbests, options)):
            words, _, found = model.evidence(batch, row, verdict.nbest[0])
            language = part[row].ask[1]
            marks = right_words(words, part[row].text, language)
            for word, values, mark in zip(words, found, marks):
                if ctc_text(word, language):
                    features.append(values)
                    right.append(mark)
    return features, right
