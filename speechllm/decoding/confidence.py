"""Word confidence: probabilities of CTC and LLM, calibrated on a development set.

The CTC probability of a word is that of its labels along the alignment, its LLM
probability that of its tokens. Both are overconfident, in different ways; a logistic
regression on them, fitted to the correctness of the words of a development set (Platt
1999, "Probabilistic Outputs for Support Vector Machines"), gives a probability. Its
quality is measured by the expected calibration error (Guo et al. 2017, "On Calibration
of Modern Neural Networks").
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES, normalize
from speechllm.utils.errors import UserError
from speechllm.utils.io import write_json

if TYPE_CHECKING:
    import numpy as np

CALIBRATION_FILE = "confidence.json"
FEATURES = ("mean_ctc", "least_ctc", "mean_llm", "least_llm")
BINS = 10


@dataclass(frozen=True)
class Calibration:
    """A logistic regression from ``FEATURES`` to the probability of correctness.

    Attributes:
        weights: of the features, bias last.
        made_from: the words it was fitted to, for the reader.
    """

    weights: tuple[float, ...]
    made_from: str = ""

    def probability(self, features: Sequence[float]) -> float:
        """Return the probability that a word with these features is correct."""
        *slopes, bias = self.weights
        total = sum(w * x for w, x in zip(slopes, features, strict=True)) + bias
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, total))))


def features_of_word(
    labels: Sequence[float], tokens: Sequence[float]
) -> tuple[float, float, float, float]:
    """Return the ``FEATURES`` of one word, each from 0 to 1.

    Args:
        labels, tokens: log probabilities of its CTC labels and its LLM tokens. If one
            is empty (a word outside the CTC vocabulary, a model without an LLM), the
            other is used in its place.
    """
    labels, tokens = labels or tokens or [0.0], tokens or labels or [0.0]
    return (
        math.exp(sum(labels) / len(labels)),
        math.exp(min(labels)),
        math.exp(sum(tokens) / len(tokens)),
        math.exp(min(tokens)),
    )


def uncalibrated(features: Sequence[float]) -> float:
    """Return the confidence without a calibration: the CTC probability."""
    return features[0]


def tokens_of_words(pieces: Sequence[str], words: Sequence[str]) -> list[list[int]]:
    """Return the tokens of each word.

    Args:
        pieces: the text that each token adds.
        words: of the text, in order; white space does not count.

    Returns:
        Indices of tokens, for each word. A token may belong to two words.
    """
    owners = iter([i for i, word in enumerate(words) for c in word if not c.isspace()])
    found: list[list[int]] = [[] for _ in words]
    for index, piece in enumerate(pieces):
        for character in piece:
            if character.isspace():
                continue
            owner = next(owners, None)
            if owner is not None and index not in found[owner]:
                found[owner].append(index)
    return found


def correct_words(words: Sequence[str], reference: str, language: str) -> list[bool]:
    """Return which words are correct, by the alignment with fewest errors.

    Args:
        words: of the hypothesis, as written.
        reference: the reference text.
        language: of both; words are normalised as in scoring.
    """
    import jiwer

    spelt = [normalize(word, language).split() for word in words]
    flat = [part for parts in spelt for part in parts]
    truth = normalize(reference, language)
    expected = list(truth) if language in LANGUAGES_WITHOUT_SPACES else truth.split()
    if not flat or not expected:
        return [not parts and not expected for parts in spelt]
    output = jiwer.process_words(" ".join(expected), " ".join(flat))
    right = [False] * len(flat)
    for chunk in output.alignments[0]:
        if chunk.type == "equal":
            right[chunk.hyp_start_idx : chunk.hyp_end_idx] = [True] * (
                chunk.hyp_end_idx - chunk.hyp_start_idx
            )
    edges = list(accumulate((len(parts) for parts in spelt), initial=0))
    return [all(right[begin:end]) for begin, end in pairwise(edges)]


def fit(features: np.ndarray, right: np.ndarray, made_from: str = "") -> Calibration:
    """Fit the logistic regression, with scikit-learn's mild L2 penalty.

    Args:
        features: (words, features)
        right: (words,) booleans.

    Raises:
        UserError: all words are right, or all are wrong.
    """
    from sklearn.linear_model import LogisticRegression

    if len(set(right.tolist())) < 2:
        raise UserError(
            f"{len(right)} words to calibrate on, all of them "
            f"{'right' if len(right) and right[0] else 'wrong'}: name more examples"
        )
    model = LogisticRegression().fit(features, right)
    weights = [*model.coef_[0].tolist(), float(model.intercept_[0])]
    return Calibration(tuple(round(w, 4) for w in weights), made_from)


def bins(
    probabilities: Sequence[float], right: Sequence[bool]
) -> list[tuple[int, float, float]]:
    """Return count, mean confidence and accuracy of each non-empty confidence bin.

    scikit-learn's ``calibration_curve`` has no counts, which the error needs.
    """
    members: list[list[int]] = [[] for _ in range(BINS)]
    for index, probability in enumerate(probabilities):
        members[min(int(probability * BINS), BINS - 1)].append(index)
    return [
        (
            len(chosen),
            sum(probabilities[i] for i in chosen) / len(chosen),
            sum(right[i] for i in chosen) / len(chosen),
        )
        for chosen in members
        if chosen
    ]


def expected_calibration_error(
    probabilities: Sequence[float], right: Sequence[bool]
) -> float:
    """Return the mean difference of confidence and accuracy over bins, by words."""
    rows = bins(probabilities, right)
    return sum(n * abs(p - a) for n, p, a in rows) / max(len(probabilities), 1)


def read_calibration(folder: str | Path) -> Calibration | None:
    """Read the calibration in a model folder; None if it has none.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(folder) / CALIBRATION_FILE
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
        weights = tuple(float(w) for w in content["weights"])
        if len(weights) != len(FEATURES) + 1:
            raise ValueError(f"{len(weights)} weights")
        return Calibration(weights, str(content.get("made_from", "")))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: damaged ({error}); make it again with python -m "
            "speechllm.bin.calibrate"
        ) from None


def write_calibration(calibration: Calibration, folder: str | Path) -> None:
    """Write ``confidence.json`` into a model folder."""
    write_json(
        Path(folder) / CALIBRATION_FILE,
        {"features": [*FEATURES, "bias"], **asdict(calibration)},
    )
