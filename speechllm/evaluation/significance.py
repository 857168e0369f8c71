"""Whether the difference between two systems is one: the paired bootstrap.

Both systems' answers to the same utterances are drawn again and again with
replacement, the same utterances for both, and scored. BLEU, chrF and TER are compared
by sacrebleu's paired bootstrap (after Koehn 2004). Error rates and COMET are drawn as
Bisani and Ney 2004 ("Bootstrap estimates for confidence intervals in ASR performance
evaluation") draw the word error rate; their probability of improvement is the share of
draws in which B is the better one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from speechllm.evaluation.groups import Group, normalize_group, read_groups
from speechllm.evaluation.recognition import character_errors, count_errors, word_errors
from speechllm.evaluation.report import METRICS, markdown_table
from speechllm.evaluation.translation import bleu_metric, chrf_metric, ter_metric
from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES
from speechllm.utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np


SEED = 12345  # sacrebleu's own


@dataclass(frozen=True)
class Comparison:
    """One metric of two systems on one set.

    Attributes:
        task, source, target: of the examples.
        metric: a name of ``report.METRICS``.
        a, b: the scores, in percent.
        a_interval, b_interval: half of the 95 % interval around each.
        p: chance of a difference as large where there is none (two-sided).
        improvement: share of the draws in which B is better, or None where the test
            does not tell it.
    """

    task: str
    source: str
    target: str
    metric: str
    a: float
    b: float
    a_interval: float
    b_interval: float
    p: float
    improvement: float | None = None


def compare(
    examples: str | Path, a: str | Path, b: str | Path, samples: int = 1000
) -> list[Comparison]:
    """Compare two decode dirs on an example dir.

    Args:
        examples: what both have answered. They may hold more than that: a system of
            more tasks is compared on those of the other.
        a, b: decode dirs; ``b`` is better where its errors are lower or its other
            scores higher.
        samples: draws.

    Raises:
        UserError: an example is missing in one of them, or a reference is empty.
    """
    if samples < 100:
        raise UserError(f"samples {samples}: at least 100")
    groups = [
        read_groups(examples, Path(folder) / "text", subset=True) for folder in (a, b)
    ]
    rows = []
    for one, other in zip(*groups, strict=True):
        values = []
        if one.task != "st":
            heard = (one.transcript or one, other.transcript or other)
            values += compare_recognition(*heard, samples)
        if one.task != "asr":
            values += compare_translation(one, other, samples)
            values += compare_comet(one, a, b, samples)
        place = one.task, one.source, one.target
        rows += [Comparison(*place, *value) for value in values]
    return rows


def compare_recognition(one: Group, other: Group, samples: int) -> list[tuple]:
    """WER and CER on normalised text, CER alone where there are no spaces."""
    metrics = {"wer": word_errors, "cer": character_errors}
    if one.source in LANGUAGES_WITHOUT_SPACES:
        del metrics["wer"]
    rows = []
    for metric, align in metrics.items():
        outputs = [align(*normalize_group(group, metric)) for group in (one, other)]
        errors = [
            [sum(count_errors(alignment)) for alignment in output.alignments]
            for output in outputs
        ]
        lengths = [len(reference) for reference in outputs[0].references]
        *value, higher = ratio_bootstrap(*errors, lengths, samples)
        rows.append((metric, *value, 1 - higher))
    return rows


def compare_translation(one: Group, other: Group, samples: int) -> list[tuple]:
    """BLEU, chrF and TER on the text as it is, by sacrebleu's paired bootstrap."""
    from sacrebleu.significance import PairedTest

    metrics = {
        "bleu": bleu_metric(one.target),
        "chrf": chrf_metric(),
        "ter": ter_metric(one.target),
    }
    before = os.environ.get("SACREBLEU_SEED")
    os.environ["SACREBLEU_SEED"] = str(SEED)
    try:
        _, scores = PairedTest(
            [("a", one.hypotheses), ("b", other.hypotheses)],
            metrics,
            [one.references],
            test_type="bs",
            n_samples=samples,
        )()
    finally:
        if before is None:
            del os.environ["SACREBLEU_SEED"]
        else:
            os.environ["SACREBLEU_SEED"] = before
    del scores["System"]
    equal = one.hypotheses == other.hypotheses  # sacrebleu gives that a p near 0
    return [
        (
            metric,
            a.score,
            b.score,
            float(a.ci),
            float(b.ci),
            1.0 if equal else b.p_value,
        )
        for metric, (a, b) in zip(metrics, scores.values(), strict=True)
    ]


def compare_comet(
    group: Group, a: str | Path, b: str | Path, samples: int
) -> list[tuple]:
    """COMET, where both decode dirs were scored with it."""
    tables = [
        comet_column(Path(folder) / f"score_{group.name}" / "scores.tsv")
        for folder in (a, b)
    ]
    if not all(set(group.ids) <= table.keys() for table in tables):
        return []
    scores = [[table[i] for i in group.ids] for table in tables]
    return [("comet", *ratio_bootstrap(*scores, [1] * len(group.ids), samples))]


def ratio_bootstrap(
    a: list[float], b: list[float], lengths: list[int], samples: int
) -> tuple[float, float, float, float, float, float]:
    """Paired bootstrap of 100 · sum of counts / sum of lengths.

    Args:
        a, b: counts of each utterance, by the two systems.
        lengths: what they are divided by.

    Returns:
        Value of A, value of B, half of the 95 % interval of each, p, and the share of
        draws in which B's value is higher (half of the draws in which they are equal).
    """
    import numpy as np
    from sacrebleu.significance import estimate_ci

    one, other, length = (np.array(x, dtype=np.float64) for x in (a, b, lengths))
    draws = np.random.default_rng(SEED).choice(len(a), (samples, len(a)))
    drawn_length = length[draws].sum(1)
    first = 100 * one[draws].sum(1) / drawn_length
    second = 100 * other[draws].sum(1) / drawn_length
    values = [100 * x.sum() / length.sum() for x in (one, other)]
    higher = (second > first).mean() + (second == first).mean() / 2
    intervals = [float(estimate_ci(x)[1]) for x in (first, second)]
    p = p_value(second - first, values[1] - values[0])
    return (*map(float, values), *intervals, p, float(higher))


def p_value(differences: np.ndarray, observed: float) -> float:
    """Chance of a difference as large as the observed one where there is none.

    Args:
        differences: (samples,) of the draws; shifted to a mean of 0 they are what
            chance alone makes.
        observed: on the set as it is.
    """
    shifted = abs(differences - differences.mean())
    beyond = int((shifted >= abs(observed)).sum())
    return (beyond + 1) / (len(differences) + 1)


def comet_column(path: Path) -> dict[str, float]:
    """COMET of each sentence from a ``scores.tsv``; empty where it has none.

    It stands there times 100; here as COMET gives it.
    """
    if not path.exists():
        return {}
    header, *lines = (line.split("\t") for line in path.read_text("utf-8").splitlines())
    if "comet" not in header:
        return {}
    column = header.index("comet")
    return {line[0]: float(line[column]) / 100 for line in lines}


def comparison_table(rows: list[Comparison], a: str, b: str, samples: int) -> str:
    """The comparison as Markdown.

    Args:
        a, b: what the two systems are called.
    """
    header = ["set", "metric", a, b, "difference", "p", f"{b} better"]
    lines = []
    for row in rows:
        pair = row.source if row.task == "asr" else f"{row.source} → {row.target}"
        better = "" if row.improvement is None else f"{100 * row.improvement:.0f} %"
        lines.append(
            [
                f"{row.task} {pair}",
                METRICS[row.metric],
                f"{row.a:.2f} ± {row.a_interval:.2f}",
                f"{row.b:.2f} ± {row.b_interval:.2f}",
                f"{row.b - row.a:+.2f}",
                f"{row.p:.3f}",
                better,
            ]
        )
    return markdown_table(header, lines) + (
        f"\n± is half of the 95 % interval; p is that of the paired bootstrap over "
        f"{samples} draws (seed {SEED}). Error rates are on normalised text.\n"
    )
