"""Statistics of a hypothesis, and the thresholds of the guard (``guard.yaml``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from speechllm.text.ctc_labels import label_text
from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES, ctc_text
from speechllm.text.tasks import Task
from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_open, read_yaml
from speechllm.utils.schema import Schema, check_options, integer, number, optional

THRESHOLDS_FILE = "guard.yaml"

# Flags of a result
NO_CTC_OUTPUT = "nothing heard"
TOO_LONG = "too long"
TOO_SHORT = "too short"
REPETITION = "repetition"
LOW_CTC_SCORE = "unlike the sound"
WITHHELD = "withheld"

#: Characters added to both lengths of a ratio, so that it is stable for short texts.
SMOOTHING = 5
_LONGEST_RUN = 8  # words of a run that may be repeated

#: Names of attributes in ``guard.yaml``, where they differ.
_FILE_KEYS = {
    "ctc_confidence": "clarity",
    "min_length_ratio": "least_expansion",
    "max_length_ratio": "most_expansion",
    "ctc_margin": "distance",
    "nll_per_second": "doubt",
}

#: Types and ranges of the keys of ``guard.yaml``, and of one of its groups.
_FILE_SCHEMA: Schema = {
    "clarity": number(0, 1),
    "ctc_weight": number(0, 1),
    "language_probability": optional(number(0, 1)),
}
_GROUP_SCHEMA: Schema = {
    "rate": number(least=0),
    "least_expansion": number(least=0),
    "most_expansion": number(least=0),
    "repetition": integer(0),
    "distance": optional(number()),
    "doubt": optional(number(least=0)),
}


@dataclass(frozen=True)
class Statistics:
    """Statistics of a hypothesis.

    Attributes:
        ctc_confidence: mean probability of the labels of the CTC transcript, at their
            frames; 0 if it is empty. Independent of the hypothesis.
        rate: characters of the hypothesis per second of audio.
        length_ratio: its characters relative to those of the CTC transcript.
        repetition: words (in languages without spaces: characters) that only repeat
            what precedes them, beyond those in the CTC transcript.
        ctc_margin: CTC log probability of the CTC transcript minus that of the
            hypothesis, per label, in nats; None for a translation.
    """

    ctc_confidence: float
    rate: float
    length_ratio: float
    repetition: int
    ctc_margin: float | None = None

    @property
    def agrees_with_ctc(self) -> bool:
        """True for a CTC transcript of more than half confidence."""
        return may_agree_with_ctc(self.ctc_confidence) and self.ctc_margin == 0


@dataclass(frozen=True)
class Limits:
    """The limits of one task and language pair.

    A hypothesis beyond them is flagged; one beyond ``nll_per_second``, of
    :meth:`speechllm.inference.guard.Guard.nll_per_second`, is withheld.
    """

    rate: float
    min_length_ratio: float
    max_length_ratio: float
    repetition: int
    ctc_margin: float | None = None
    nll_per_second: float | None = None

    def flags(self, measured: Statistics) -> list[str]:
        """Return a flag for each limit that is exceeded."""
        found = []
        too_many = measured.length_ratio > self.max_length_ratio
        if measured.rate > self.rate or too_many:
            found.append(TOO_LONG)
        if measured.length_ratio < self.min_length_ratio:
            found.append(TOO_SHORT)
        if measured.repetition > self.repetition:
            found.append(REPETITION)
        known = measured.ctc_margin is not None and self.ctc_margin is not None
        if known and measured.ctc_margin > self.ctc_margin:
            found.append(LOW_CTC_SCORE)
        return found

    def max_characters(self, ctc_transcript: str, seconds: float) -> int:
        """Return the length of the longest output that is not flagged as too long."""
        longest = self.max_length_ratio * (len(ctc_transcript) + SMOOTHING) - SMOOTHING
        return int(min(self.rate * seconds, longest))


@dataclass(frozen=True)
class Thresholds:
    """The content of ``guard.yaml``.

    Attributes:
        ctc_confidence: below it the utterance has no CTC output.
        ctc_weight: weight of CTC in ranking the candidates.
        groups: limits of each task and language pair, as in ``asr_en``, ``st_en_fr``.
        made_from: the examples they were chosen on, for the reader.
        language_probability: speech that is in its task's language with a lower
            probability by the decoder of the first pass is withheld. It replaces
            ``nll_per_second`` of the groups where that probability is known.
    """

    ctc_confidence: float
    ctc_weight: float
    groups: Mapping[str, Limits]
    made_from: str = ""
    language_probability: float | None = None

    def limits(self, task: Task) -> Limits:
        """Return the limits of a task; for one not in the file, the widest of all."""
        if task.group in self.groups:
            return self.groups[task.group]
        every = list(self.groups.values())
        margins = [g.ctc_margin for g in every if g.ctc_margin is not None]
        costs = [g.nll_per_second for g in every if g.nll_per_second is not None]
        return Limits(
            max(limits.rate for limits in every),
            min(limits.min_length_ratio for limits in every),
            max(limits.max_length_ratio for limits in every),
            max(limits.repetition for limits in every),
            max(margins, default=None),
            max(costs, default=None),
        )


def read_thresholds(folder: str | Path) -> Thresholds | None:
    """Read the thresholds in a model folder; None if it has none.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(folder) / THRESHOLDS_FILE
    if not path.exists():
        return None
    content = read_yaml(path)
    try:
        check_options(_rename(content, to_file=True), _FILE_SCHEMA, str(path))
        for name, group in content["groups"].items():
            group = _rename(group, to_file=True)
            check_options(group, _GROUP_SCHEMA, f"{path}: {name}")
        groups = {
            name: Limits(**_rename(group, to_file=False))
            for name, group in content.pop("groups").items()
        }
        found = Thresholds(groups=groups, **_rename(content, to_file=False))
        if not groups:
            raise ValueError("no groups")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: damaged ({error}); make it again with python -m "
            "speechllm.bin.guard_thresholds"
        ) from None
    return found


def write_thresholds(thresholds: Thresholds, folder: str | Path) -> None:
    """Write ``guard.yaml`` into a model folder."""
    import yaml

    content = _rename(asdict(thresholds), to_file=True)
    content["groups"] = {
        name: _rename(group, to_file=True) for name, group in content["groups"].items()
    }
    with atomic_open(Path(folder) / THRESHOLDS_FILE) as stream:
        stream.write("# Made by python -m speechllm.bin.guard_thresholds\n")
        yaml.safe_dump(content, stream, sort_keys=False)


def _rename(content: Mapping, to_file: bool) -> dict:
    """Rename attributes to the keys of the file, or back."""
    names = _FILE_KEYS if to_file else {key: name for name, key in _FILE_KEYS.items()}
    return {names.get(key, key): value for key, value in content.items()}


def count_repetition(text: str, language: str) -> int:
    """Return the number of words that only repeat what precedes them, in one run.

    ``"so so so"`` has two, ``"press one press one"`` two as well. In languages without
    spaces characters are counted.
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


def may_agree_with_ctc(ctc_confidence: float) -> bool:
    """Return whether a CTC transcript is sure enough to confirm an equal text."""
    return ctc_confidence > 0.5


def ctc_confidence(log_probs: Tensor, token_list: Sequence[str]) -> float:
    """Return the mean probability of the letters on CTC's best path; 0 without any.

    Args:
        log_probs: (frames, labels)
        token_list: names of the labels.
    """
    best, labels = log_probs.max(1)
    letters = [bool(label_text(name).strip()) for name in token_list]
    chosen = best[[letters[k] for k in labels.tolist()]]
    return chosen.exp().mean().item() if len(chosen) else 0.0


def measure_text(
    text: str,
    task: Task,
    ctc_transcript: str,
    seconds: float,
    confidence: float,
    ctc_margin: float | None = None,
) -> Statistics:
    """Compute the statistics of a text.

    Args:
        text: output of the task.
        ctc_transcript: in the language of the speech.
        seconds: length of the audio.
        confidence, ctc_margin: as in :class:`Statistics`.
    """
    language = task.output_language
    characters = len(ctc_text(text, language))
    repetition = count_repetition(text, language)
    repetition -= count_repetition(ctc_transcript, task.source)
    return Statistics(
        ctc_confidence=confidence,
        rate=characters / seconds,
        length_ratio=(characters + SMOOTHING) / (len(ctc_transcript) + SMOOTHING),
        repetition=max(0, repetition),
        ctc_margin=ctc_margin,
    )
