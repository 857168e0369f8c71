"""Bootstrap over utterances: resampled scores and their 95 % intervals.

The utterances of a set are drawn with replacement, and each sample is scored as a whole
set (Bisani and Ney 2004, "Bootstrap estimates for confidence intervals in ASR
performance evaluation"; Koehn 2004 for BLEU). The draws are those of sacrebleu's
bootstrap with its default seed, so that BLEU, chrF and TER have its intervals. Samples
are sums of per-utterance statistics, which is a matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from sacrebleu.metrics.base import Metric

SEED = 12345  # sacrebleu's default
SAMPLES = 1000
_BLOCK = 2**22  # draws at a time, which bounds the memory

#: Statistics of each sentence, of which sacrebleu computes a corpus-level score.
SentenceStatistics = list[list[Any]]


def resampled_sums(statistics: Sequence[Any] | np.ndarray, samples: int) -> np.ndarray:
    """Sum the statistics of the utterances of each bootstrap sample.

    Args:
        statistics: (utterances, columns) counts of each utterance.
        samples: number of bootstrap samples.

    Returns:
        (samples, columns) sums.
    """
    import numpy as np

    values = np.asarray(statistics, dtype=np.float64)
    number = len(values)
    generator = np.random.default_rng(SEED)
    rows = max(1, _BLOCK // number)
    sums = []
    for begin in range(0, samples, rows):
        size = min(rows, samples - begin)
        draws = generator.choice(number, (size, number))
        cells = draws + number * np.arange(size)[:, None]
        counts = np.bincount(cells.ravel(), minlength=size * number)
        sums.append(counts.reshape(size, number) @ values)
    return np.concatenate(sums)


def ratio_samples(
    counts: Sequence[float], lengths: Sequence[float], samples: int = SAMPLES
) -> np.ndarray:
    """Return 100 · sum of counts / sum of lengths of each bootstrap sample.

    Args:
        counts: of each utterance, such as word errors.
        lengths: of each utterance, such as reference words.
        samples: number of bootstrap samples.
    """
    import numpy as np

    sums = resampled_sums(np.array([counts, lengths], dtype=np.float64).T, samples)
    return 100 * ratio(sums[:, 0], sums[:, 1])


def ratio(counts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return counts / lengths; where a length is 0, 1 for a count above 0, else 0."""
    import numpy as np

    empty = np.where(counts > 0, counts, 1)
    found: np.ndarray = counts / np.where(lengths > 0, lengths, empty)
    return found


def sentence_statistics(
    metric: Metric, references: list[str], hypotheses: list[str]
) -> SentenceStatistics:
    """Return sacrebleu's statistics of each sentence.

    Its public functions would count the n-grams again for sentence scores, corpus score
    and bootstrap; counting takes nearly all the time of scoring.
    """
    found: SentenceStatistics = metric._extract_corpus_statistics(
        hypotheses, [references]
    )
    return found


def corpus_score(metric: Metric, statistics: SentenceStatistics) -> float:
    """Return sacrebleu's corpus-level score of these sentences."""
    return float(metric._aggregate_and_compute(statistics).score)


def score_samples(
    metric: Metric, statistics: SentenceStatistics, samples: int = SAMPLES
) -> np.ndarray:
    """Return sacrebleu's corpus-level score of each bootstrap sample."""
    import numpy as np

    sums = resampled_sums(statistics, samples)
    return np.array([metric._compute_score_from_stats(list(s)).score for s in sums])


def half_width(scores: np.ndarray) -> float:
    """Return half the width of the 95 % interval of bootstrap scores."""
    from sacrebleu.significance import estimate_ci

    return float(estimate_ci(scores)[1])


def interval_field(scores: np.ndarray, utterances: int) -> dict[str, float]:
    """Return the field ``interval`` of a row of scores; none for a single utterance."""
    return {"interval": round(half_width(scores), 2)} if utterances > 1 else {}
