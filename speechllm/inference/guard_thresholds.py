"""Statistics of a hypothesis and the thresholds of the guard (``guard.yaml``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from speechllm.decoding.rescoring import ctc_log_probs
from speechllm.text.ctc_labels import label_text
from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES, ctc_text
from speechllm.text.tasks import group_name
from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_open, read_yaml

THRESHOLDS_FILE = "guard.yaml"

NOTHING_HEARD = "nothing heard"
TOO_LONG = "too long"
TOO_SHORT = "too short"
REPETITION = "repetition"
UNLIKE_SOUND = "unlike the sound"
WITHHELD = "withheld"

SHORT_TEXT = 5  # characters added to both, so that "a" beside "eh" is no matter
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
                self.most_expansion * (len(heard) + SHORT_TEXT) - SHORT_TEXT,
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
        expansion=(characters + SHORT_TEXT) / (len(heard) + SHORT_TEXT),
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
