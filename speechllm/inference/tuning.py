"""Tuning on a development set: guard thresholds and confidence calibration.

Both are written into the model folder.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from speechllm.data.examples import Example
from speechllm.decoding.encoded_batch import EncodedBatch
from speechllm.decoding.first_pass import language_probabilities
from speechllm.decoding.hypothesis import Hypothesis
from speechllm.decoding.options import SearchOptions
from speechllm.decoding.rescoring import joint_score
from speechllm.inference.guard import Guard, ctc_nll_per_second, measure, measure_output
from speechllm.inference.guard_thresholds import Limits, Statistics, Thresholds
from speechllm.inference.results import word_features
from speechllm.text.answer_codec import AnswerCodec
from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES, ctc_text, normalize
from speechllm.utils.batching import batches_by_length
from speechllm.utils.errors import UserError
from speechllm.utils.io import previous_name

if TYPE_CHECKING:
    from speechllm.decoding.confidence import Calibration
    from speechllm.inference.speech_to_text import SpeechToText

WEIGHTS = (0.5, 0.7, 0.3, 0.9)  # CTC weights tried in ranking the candidates
#: Enough examples of a task to withhold improbable texts: the highest cost of n of them
#: is exceeded by 1 / (n + 1) of similar utterances on average.
LEAST_TO_WITHHOLD = 20
LANGUAGE_PROBABILITY = 0.5  # more than all other languages together
KNOWN_LANGUAGE = 0.9  # least share of the set with more than that
#: Hypotheses of the first search by the name of the example, to search only once.
NBests = dict[str, list[Hypothesis]]


def encoded_batches(
    model: SpeechToText,
    examples: Sequence[Example],
    batch_size: int,
    options: SearchOptions | None = None,
) -> Iterator[tuple[list[Example], EncodedBatch]]:
    """Yield encoded batches of similar length, with progress on stderr."""
    from tqdm import tqdm

    from speechllm.inference.decode_dir import ProgressReport

    lengths = [len(example.wave) for example in examples]
    with tqdm(total=len(examples), unit="utt", mininterval=5) as bar:
        report = ProgressReport(bar, sys.stderr)  # tables go to standard output
        for indices in batches_by_length(lengths, batch_size):
            part = [examples[i] for i in indices]
            waves, tasks = [e.wave for e in part], [e.task for e in part]
            yield part, model.encode(waves, tasks, options)
            report.queue_done(len(part))


def search_once(
    model: SpeechToText,
    part: Sequence[Example],
    batch: EncodedBatch,
    options: SearchOptions,
    nbests: NBests | None,
) -> list[list[Hypothesis]]:
    """Return the n-best lists of a batch, from ``nbests`` if they are there.

    Args:
        part: examples of the batch.
        options: of the search; always the same for one ``nbests``.
        nbests: receives what is searched; None: search always.
    """
    found = {} if nbests is None else nbests
    if not all(example.name in found for example in part):
        hypotheses = model.search(batch, options)
        found.update(zip((example.name for example in part), hypotheses))
    return [found[example.name] for example in part]


def count_errors(reference: str, text: str, language: str) -> int:
    """Count word errors (character errors in languages without spaces)."""
    import jiwer

    pair = [normalize(t, language) for t in (reference, text)]
    if language in LANGUAGES_WITHOUT_SPACES:
        pair = [" ".join(t.replace(" ", "")) for t in pair]
    if not pair[0]:
        return len(pair[1].split())
    output = jiwer.process_words(*pair)
    return output.substitutions + output.deletions + output.insertions


@contextmanager
def new_version(path: Path, if_possible: bool) -> Iterator[None]:
    """Keep an earlier, different version of the file that the block writes.

    It is kept under a free name, ``<name>.previous``: a user may have edited it.

    Args:
        path: the file.
        if_possible: print a :class:`UserError` instead of raising it; then only the
            earlier version remains, since it belongs to another model.
    """
    kept = previous_name(path) if path.exists() else None
    if kept:
        shutil.copy2(path, kept)
    try:
        yield
    except UserError as error:
        if not if_possible:
            raise
        path.unlink(missing_ok=True)
        print(f"no {path.name}: {error}")
    finally:
        if kept and path.exists() and path.read_bytes() == kept.read_bytes():
            kept.unlink()


def set_aside_if_damaged(read: Callable[[Path], object], path: Path) -> None:
    """Rename a file of a model folder that cannot be read, so that the model loads.

    Args:
        read: reads the file, given the folder.
        path: the file.
    """
    try:
        read(path.parent)
    except UserError as error:
        print(f"{error}; renamed")
        path.rename(previous_name(path))


def find_thresholds(
    model: SpeechToText,
    examples: Sequence[Example],
    options: SearchOptions,
    batch_size: int = 8,
    margin: float = 1.25,
    made_from: str = "",
    nbests: NBests | None = None,
) -> Thresholds:
    """Choose the thresholds of the guard on a development set.

    Length, repetition and CTC margin may exceed the range of the references by
    ``margin``; the CTC confidence may not be below that of any utterance with CTC
    output. Utterances flagged by these limits are decoded again, and the CTC weight
    that ranks their candidates with the fewest errors is chosen. An output is withheld
    if its speech is in the task's language with a lower probability than that of
    :func:`least_language_probability`, or without that limit if its negative log
    probability per second exceeds that of the best candidate of every utterance of the
    set: then none of the set is withheld, and of n similar utterances seldom more than
    3 n / (size of the set). With fewer than ``LEAST_TO_WITHHOLD`` examples of a task
    none of its outputs is.

    Args:
        model: with a CTC branch.
        examples: with their reference texts.
        options: of the first search.
        margin: 1 allows nothing beyond the range of the set.
        made_from: the examples, for the reader of the file.
        nbests: as for :func:`search_once`.

    Raises:
        UserError: the model has no such branch, or no CTC output for any example.
    """
    codec = model.codec
    if model.llm is None or codec.ctc_tokenizer is None:
        raise UserError("the guard needs an LLM and a trained CTC branch")
    references: dict[str, list[Statistics]] = {}
    costs: dict[str, list[float]] = {}  # negative log probability per second
    for part, batch in encoded_batches(model, examples, batch_size):
        for row, example in enumerate(part):
            found = measure_reference(codec, batch, row, example.text)
            if found.ctc_confidence > 0:
                group = example.task.group
                references.setdefault(group, []).append(found)
                if example.task.name != "asr":
                    cost = ctc_nll_per_second(codec, batch, row)
                    costs.setdefault(group, []).append(cost)
    if not references:
        raise UserError(
            "no CTC output for any of the examples: train the CTC branch, or name "
            "other examples"
        )
    groups = {name: widest(found, margin) for name, found in sorted(references.items())}
    confidence = min(s.ctc_confidence for found in references.values() for s in found)
    confidence = math.floor(1000 * confidence) / 1000
    thresholds = Thresholds(confidence, WEIGHTS[0], groups, made_from)
    spoken = [example for example in examples if example.task.name == "asr"]
    trials = decode_trials(model, spoken, options, thresholds, batch_size, nbests)
    weight = best_weight([t.candidates for t in trials if t.flagged])
    for trial in trials:
        costs.setdefault(trial.group, []).append(trial.nll_per_second(weight))
    for name, values in costs.items():
        if len(values) < LEAST_TO_WITHHOLD:
            print(
                f"{name}: improbable texts are not withheld; {len(values)} examples "
                f"are too few for that limit (at least {LEAST_TO_WITHHOLD})"
            )
            continue
        most = math.ceil(1000 * max(values)) / 1000
        groups[name] = replace(groups[name], nll_per_second=most)
    probabilities = [trial.language_probability for trial in trials]
    both = [example for example in examples if example.task.name == "asr_st"]
    if both and options.first_pass_beam_size:
        probabilities += language_probabilities(
            model.speech_decoder,
            [example.wave for example in both],
            [example.task.source for example in both],
            model.first_passes,
        )
    language = least_language_probability(probabilities)
    return replace(thresholds, ctc_weight=weight, language_probability=language)


def least_language_probability(found: Sequence[float | None]) -> float | None:
    """Return the limit of the probability that speech is in its task's language.

    It is one half, since a decoder is certain of the language of most speech, but not
    of single letters and names. None where the probability is unknown, of less than
    ``LEAST_TO_WITHHOLD`` utterances, or where less than ``KNOWN_LANGUAGE`` of the set
    are above one half: such a decoder does not know the languages.
    """
    known = [value for value in found if value is not None]
    if len(known) < max(len(found), LEAST_TO_WITHHOLD):
        return None
    sure = sum(value > LANGUAGE_PROBABILITY for value in known)
    return LANGUAGE_PROBABILITY if sure >= KNOWN_LANGUAGE * len(known) else None


def measure_reference(
    codec: AnswerCodec, batch: EncodedBatch, row: int, text: str
) -> Statistics:
    """Compute the statistics of the reference text of an utterance.

    Args:
        text: as in the table of an example dir.
    """
    task, labels = batch.tasks[row], None
    if task.has_transcript and codec.ctc_tokenizer is not None:
        spoken = ctc_text(text.split("\t")[0], task.source)
        labels = codec.ctc_tokenizer.scoring_units(spoken)
    return measure_output(codec, batch, row, text, labels)


def widest(found: Sequence[Statistics], margin: float) -> Limits:
    """Return the range of the statistics, widened by a margin."""
    margins = [s.ctc_margin for s in found if s.ctc_margin is not None]
    return Limits(
        rate=round(max(s.rate for s in found) * margin, 2),
        min_length_ratio=round(min(s.length_ratio for s in found) / margin, 3),
        max_length_ratio=round(max(s.length_ratio for s in found) * margin, 3),
        repetition=int(max(s.repetition for s in found) * margin),
        ctc_margin=round(max(margins) * margin, 3) if margins else None,
    )


#: (LLM score, CTC score, errors) of each candidate for one utterance.
Candidates = list[tuple[float, float, int]]


@dataclass(frozen=True)
class Trial:
    """The candidates for one utterance, the CTC transcript among them.

    Attributes:
        group: task and language.
        seconds: of audio.
        flagged: True if it was decoded again.
        language_probability: as in ``EncodedBatch``.
    """

    group: str
    seconds: float
    flagged: bool
    candidates: Candidates
    language_probability: float | None = None

    def nll_per_second(self, weight: float) -> float:
        """Return the best candidate's negative log probability per second, in nats."""
        best = max(joint_score(llm, ctc, weight) for llm, ctc, _ in self.candidates)
        return -best / self.seconds


def decode_trials(
    model: SpeechToText,
    examples: Sequence[Example],
    options: SearchOptions,
    thresholds: Thresholds,
    batch_size: int,
    nbests: NBests | None = None,
) -> list[Trial]:
    """Decode normally, then decode flagged utterances again.

    Utterances without CTC output are skipped.
    """
    llm, codec = model.llm, model.codec
    guard, trials = Guard(llm, codec, thresholds), []
    for part, batch in encoded_batches(model, examples, batch_size, options):
        first = search_once(model, part, batch, options, nbests)
        with_output, flagged = [], []
        for row, nbest in enumerate(first):
            measured = measure(codec, batch, row, nbest[0])
            limits = thresholds.limits(batch.tasks[row])
            if measured.ctc_confidence >= thresholds.ctc_confidence:
                with_output.append(row)
                if limits.flags(measured):
                    flagged.append(row)
        again = guard.search_again(batch, flagged, options, no_repeat_ngram_size=0)
        found = dict(zip(flagged, again))
        for row in with_output:
            ranked = guard.rank(batch, row, [*first[row], *found.get(row, [])])
            example = part[row]
            candidates = [
                (
                    c.llm_score,
                    c.ctc_score or 0.0,
                    count_errors(
                        example.text, codec.decode(c.tokens), example.task.source
                    ),
                )
                for c in ranked
            ]
            probabilities = batch.language_probabilities
            trials.append(
                Trial(
                    example.task.group,
                    batch.seconds[row],
                    row in found,
                    candidates,
                    probabilities[row] if probabilities else None,
                )
            )
    return trials


def best_weight(trials: Sequence[Candidates]) -> float:
    """Return the CTC weight of ``WEIGHTS`` with fewest errors; the first of ties."""

    def errors(weight: float) -> int:
        best = [
            max(trial, key=lambda c: joint_score(c[0], c[1], weight))
            for trial in trials
        ]
        return sum(wrong for *_, wrong in best)

    return min(WEIGHTS, key=errors)


def calibrate(
    model: SpeechToText,
    examples: Sequence[Example],
    options: SearchOptions,
    batch_size: int = 8,
    made_from: str = "",
    nbests: NBests | None = None,
) -> Calibration:
    """Fit the word confidence to a development set, without its translations.

    Args:
        made_from: the examples, for the reader of the file.
        nbests: as for :func:`search_once`.

    Raises:
        UserError: the set has no recognition, or no wrong word or no right one.
    """
    from speechllm.decoding.confidence import fit

    features, right = labelled_words(model, examples, options, batch_size, nbests)
    return fit(np.array(features), np.array(right), made_from)


def labelled_words(
    model: SpeechToText,
    examples: Sequence[Example],
    options: SearchOptions,
    batch_size: int = 8,
    nbests: NBests | None = None,
) -> tuple[list[tuple[float, ...]], list[bool]]:
    """Return the features of every word of the hypotheses, and whether it is right.

    Raises:
        UserError: the examples have no recognition.
    """
    from speechllm.decoding.confidence import correct_words

    spoken = [example for example in examples if example.task.name == "asr"]
    if not spoken:
        raise UserError("confidence is fitted to recognition (asr); there is none")
    features, right = [], []
    for part, batch in encoded_batches(model, spoken, batch_size, options):
        first = search_once(model, part, batch, options, nbests)
        for row, decision in enumerate(model.apply_guard(batch, first, options)):
            words, _, found = word_features(model.codec, batch, row, decision.nbest[0])
            language = part[row].task.source
            marks = correct_words(words, part[row].text, language)
            for word, values, mark in zip(words, found, marks):
                if ctc_text(word, language):
                    features.append(values)
                    right.append(mark)
    return features, right
