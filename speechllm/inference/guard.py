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

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from speechllm.decoding.hypothesis import Hypothesis, SearchOptions
from speechllm.decoding.rescoring import ctc_log_probs, joint_score, rescore
from speechllm.models.bridge import label_text
from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES, ctc_text
from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_open, read_yaml

if TYPE_CHECKING:
    from speechllm.inference.speech_to_text import Batch, SpeechToText


THRESHOLDS_FILE = "guard.yaml"

NOTHING_HEARD = "nothing heard"
TOO_LONG = "too long"
TOO_SHORT = "too short"
REPETITION = "repetition"
UNLIKE_SOUND = "unlike the sound"
WITHHELD = "withheld"

#: How a flagged utterance is searched again; runs of tokens are forbidden to stand
#: twice where there was repetition only, since true speech repeats itself too.
CONSTRAINED = SearchOptions(beam_size=4, candidates=40, no_repeat_ngram_size=3)

_SHORT_TEXT = 5  # characters added to both, so that "a" beside "eh" is no matter
_LONGEST_RUN = 8  # words of what may repeat itself


@dataclass(frozen=True)
class Statistics:
    """What an answer is measured by.

    Attributes:
        clarity: mean probability of the labels that CTC heard, at their frames; 0 where
            it heard none. It does not depend on the answer.
        rate: characters of the answer for each second of audio.
        expansion: its characters as a multiple of those that CTC heard.
        repetition: words (in Japanese and its like: characters) that only repeat what
            stands before them, beyond those in CTC's text.
        distance: how much likelier CTC finds its own text, for each label, in nats;
            None where it cannot judge the answer (a translation).
    """

    clarity: float
    rate: float
    expansion: float
    repetition: int
    distance: float | None = None

    @property
    def agreed(self) -> bool:
        """Whether the LLM wrote what CTC, by more than half, heard."""
        return self.clarity > 0.5 and self.distance == 0


@dataclass(frozen=True)
class Limits:
    """The range of one task and language.

    What is beyond is flagged; what is beyond ``doubt``, of :meth:`Guard.doubt`, is
    withheld.
    """

    rate: float
    least_expansion: float
    most_expansion: float
    repetition: int
    distance: float | None = None
    doubt: float | None = None

    def flags(self, measured: Statistics) -> list[str]:
        """The reasons why an answer is out of line."""
        found = []
        if measured.rate > self.rate or measured.expansion > self.most_expansion:
            found.append(TOO_LONG)
        if measured.expansion < self.least_expansion:
            found.append(TOO_SHORT)
        if measured.repetition > self.repetition:
            found.append(REPETITION)
        judged = None not in (measured.distance, self.distance)
        if judged and measured.distance > self.distance:
            found.append(UNLIKE_SOUND)
        return found

    def longest(self, heard: str, seconds: float) -> int:
        """Most characters of an answer that is not too long."""
        return int(
            min(
                self.rate * seconds,
                self.most_expansion * (len(heard) + _SHORT_TEXT) - _SHORT_TEXT,
            )
        )


@dataclass(frozen=True)
class Thresholds:
    """What ``guard.yaml`` holds.

    Attributes:
        clarity: below it CTC heard nothing.
        ctc_weight: CTC's share in ranking the candidates.
        groups: limits of each task and languages, as in ``asr_en`` and ``st_en_fr``.
        made_from: which examples, for the reader.
    """

    clarity: float
    ctc_weight: float
    groups: Mapping[str, Limits]
    made_from: str = ""

    def limits(self, ask: tuple[str, str, str]) -> Limits:
        """Of a group; of one that the development set lacks, the widest of all."""
        if group_name(ask) in self.groups:
            return self.groups[group_name(ask)]
        every = list(self.groups.values())
        distances = [limits.distance for limits in every if limits.distance is not None]
        doubts = [limits.doubt for limits in every if limits.doubt is not None]
        return Limits(
            max(limits.rate for limits in every),
            min(limits.least_expansion for limits in every),
            max(limits.most_expansion for limits in every),
            max(limits.repetition for limits in every),
            max(distances, default=None),
            max(doubts, default=None),
        )


def group_name(ask: tuple[str, str, str]) -> str:
    """``asr_en`` or ``st_en_fr``, as scores name it."""
    task, source, target = ask
    return "_".join([task, source] + [target] * (task != "asr"))


def read_thresholds(folder: str | Path) -> Thresholds | None:
    """The thresholds in a model's folder, or None if it has none.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(folder) / THRESHOLDS_FILE
    if not path.exists():
        return None
    content = read_yaml(path)
    try:
        groups = {name: Limits(**g) for name, g in content.pop("groups").items()}
        found = Thresholds(groups=groups, **content)
        numbers = [found.clarity, found.ctc_weight]
        numbers += [v for g in groups.values() for v in asdict(g).values()]
        if not groups or not all(
            v is None or isinstance(v, (int, float)) for v in numbers
        ):
            raise ValueError("every threshold is a number")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: damaged ({error}); make it again with python -m "
            "speechllm.bin.guard_thresholds"
        ) from None
    return found


def write_thresholds(thresholds: Thresholds, folder: str | Path) -> None:
    """Write ``guard.yaml`` into a model's folder."""
    import yaml

    content = asdict(thresholds)
    with atomic_open(Path(folder) / THRESHOLDS_FILE) as stream:
        stream.write("# Made by python -m speechllm.bin.guard_thresholds\n")
        yaml.safe_dump(content, stream, sort_keys=False)


# Measuring


def repeated(text: str, language: str) -> int:
    """Words that only repeat what stands before them, in the longest such run.

    ``"so so so"`` has two, ``"press one press one"`` two as well. In Japanese and its
    like, characters.
    """
    units: Sequence[str] = ctc_text(text, language)
    if language not in LANGUAGES_WITHOUT_SPACES:
        units = units.split()
    most = 0
    for size in range(1, _LONGEST_RUN + 1):
        run = 0
        for place in range(size, len(units)):
            run = run + 1 if units[place] == units[place - size] else 0
            most = max(most, run if run >= size else 0)
    return most


def clarity(log_probs: Tensor, token_list: Sequence[str]) -> float:
    """Mean probability of the letters on CTC's best path; 0 if there are none.

    Args:
        log_probs: (frames, labels)
        token_list: the labels' names.
    """
    best, labels = log_probs.max(1)
    letters = [bool(label_text(name).strip()) for name in token_list]
    chosen = best[[letters[k] for k in labels.tolist()]]
    return chosen.exp().mean().item() if len(chosen) else 0.0


def measure(
    text: str,
    language: str,
    heard: str,
    seconds: float,
    clear: float,
    distance: float | None = None,
    source: str | None = None,
) -> Statistics:
    """Measure an answer.

    Args:
        text: the answer, in ``language``.
        heard: CTC's transcript, in the language ``source`` (the same if None).
        seconds: of audio.
        clear, distance: as in :class:`Statistics`.
    """
    characters = len(ctc_text(text, language))
    return Statistics(
        clarity=clear,
        rate=characters / seconds,
        expansion=(characters + _SHORT_TEXT) / (len(heard) + _SHORT_TEXT),
        repetition=max(
            0, repeated(text, language) - repeated(heard, source or language)
        ),
        distance=distance,
    )


def distances(
    log_probs: Tensor, heard: Sequence[int], texts: Sequence[Sequence[int]]
) -> list[float]:
    """How much likelier CTC finds what it heard than each text, for each label.

    Args:
        log_probs: (frames, labels)
        heard, texts: in CTC labels.
    """
    best, *scores = ctc_log_probs(log_probs, [heard, *texts])
    return [
        (best - score) / max(len(heard), len(text), 1)
        for score, text in zip(scores, texts)
    ]


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
            most.append(int(expansion * (heard + _SHORT_TEXT)))
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
