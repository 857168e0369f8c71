"""Paired bootstrap significance test between two systems.

The test set is resampled with replacement, with the same utterances for both systems,
and each sample is scored. BLEU, chrF and TER use sacrebleu's paired bootstrap (after
Koehn 2004). Error rates and COMET follow Bisani and Ney 2004 ("Bootstrap estimates for
confidence intervals in ASR performance evaluation"); their probability of improvement
is the share of samples in which B is better.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from speechllm.data.examples import utterance_of
from speechllm.evaluation.bootstrap import (
    SAMPLES,
    SEED,
    corpus_score,
    half_width,
    ratio,
    ratio_samples,
    score_samples,
    sentence_statistics,
)
from speechllm.evaluation.groups import Group, normalize_group, read_groups
from speechllm.evaluation.recognition import (
    character_errors,
    utterance_errors,
    word_errors,
)
from speechllm.evaluation.tables import METRICS, TASKS, markdown_table
from speechllm.evaluation.translation import translation_metric
from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES
from speechllm.text.normalizers import SPOKEN, Normalizer
from speechllm.utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from jiwer import CharacterOutput, WordOutput

MAX_SAMPLES = 1_000_000


@dataclass(frozen=True)
class Comparison:
    """Comparison of two systems by one metric on one group of examples.

    Attributes:
        task, source, target: task and language pair of the examples.
        metric: a key of ``report.METRICS``.
        a, b: scores in percent.
        a_interval, b_interval: half widths of the 95 % confidence intervals.
        p: two-sided p-value of the null hypothesis that the systems are equal.
        improvement: share of samples in which B is better, or None if the test does not
            compute it.
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


@dataclass(frozen=True)
class CometScores:
    """COMET of a score folder, and the texts that it is of.

    Attributes:
        signature: model and version.
        values: example -> COMET in its own scale, about 0 to 1.
        texts: example -> (reference, hypothesis).
    """

    signature: str
    values: dict[str, float]
    texts: dict[str, tuple[str, str]]


def compare(
    examples: str | Path,
    a: str | Path,
    b: str | Path,
    samples: int = SAMPLES,
    normalizer: Normalizer = SPOKEN,
) -> list[Comparison]:
    """Compare two decode dirs on an example dir.

    COMET is that of the last scoring. It is left out, with a warning on stderr, if the
    texts have changed since or the systems were scored with different models.

    Args:
        examples: example dir. Both decode dirs must contain all of its examples and may
            contain others, so that systems with more tasks can be compared too.
        a, b: decode dirs. ``b`` is better if its error rates are lower or its other
            scores higher.
        samples: number of bootstrap samples.
        normalizer: of the texts whose error rates are compared.

    Raises:
        UserError: a decode dir lacks an example, no example has a known task, a task
            is malformed, or scores are damaged.
    """
    check_samples(samples)
    groups = [
        read_groups(examples, Path(folder) / "text", subset=True) for folder in (a, b)
    ]
    rows = []
    for one, other in zip(*groups, strict=True):
        if one.task not in TASKS:
            continue
        values = []
        if one.task != "st":
            texts = [
                normalize_group(group.transcript or group, normalizer)
                for group in (one, other)
            ]
            values += compare_recognition(one.source, texts[0], texts[1], samples)
        if one.task != "asr":
            values += compare_translation(one, other, samples)
            folders = [Path(folder) / f"score_{one.name}" for folder in (a, b)]
            comet, problem = compare_comet(one, other, folders, samples)
            values += comet
            if problem:
                print(f"warning: {one.name}: {problem}", file=sys.stderr)
        place = one.task, one.source, one.target
        rows += [Comparison(*place, *value) for value in values]
    if not rows:
        raise UserError(
            f"{Path(examples) / 'utt2task'}: no example has a task that is compared: "
            f"{', '.join(TASKS)}"
        )
    return rows


def check_samples(samples: int) -> None:
    """Raise UserError if there are too few or too many bootstrap samples."""
    if not 100 <= samples <= MAX_SAMPLES:
        raise UserError(f"samples {samples}: from 100 to {MAX_SAMPLES}")


def compare_other_tasks(
    examples: tuple[str | Path, str | Path],
    decode_dirs: tuple[str | Path, str | Path],
    samples: int = SAMPLES,
) -> list[Comparison]:
    """Compare the translations of two systems with different tasks, st and asr_st.

    By BLEU, chrF and TER, without COMET, on the utterances that both have: an asr_st
    example needs a transcript. How many are left out is printed to standard error.

    Args:
        examples: example dir of each system, of the same set.
        decode_dirs: of each.
        samples: number of bootstrap samples.

    Raises:
        UserError: the references differ, or there is no common translation.
    """
    check_samples(samples)
    first, second = (
        translations(folder, decode_dir)
        for folder, decode_dir in zip(examples, decode_dirs, strict=True)
    )
    rows = []
    for languages in first.keys() & second.keys():
        source, target = languages
        common = set(first[languages].ids) & set(second[languages].ids)
        one, other = (select(found[languages], common) for found in (first, second))
        if one.references != other.references:
            raise UserError(
                f"{examples[0]} and {examples[1]}: different references from {source} "
                f"into {target}"
            )
        for folder, found in zip(examples, (first, second), strict=True):
            if left := len(found[languages].ids) - len(common):
                print(
                    f"{folder}: {left} utterances from {source} into {target} are "
                    "left out, which the other set lacks",
                    file=sys.stderr,
                )
        if not common:
            continue
        task = one.task if one.task == other.task else f"{one.task}, {other.task}"
        rows += [
            Comparison(task, *languages, *value)
            for value in compare_translation(one, other, samples)
        ]
    if not rows:
        raise UserError(f"{examples[0]} and {examples[1]}: no common translation")
    return sorted(rows, key=lambda row: (row.source, row.target))


def translations(
    examples: str | Path, decode_dir: str | Path
) -> dict[tuple[str, str], Group]:
    """Return the translations by their languages, with the ids of utterances.

    Raises:
        UserError: the translations of two tasks have the same languages.
    """
    found: dict[tuple[str, str], Group] = {}
    for group in read_groups(examples, Path(decode_dir) / "text", subset=True):
        if group.task not in ("st", "asr_st"):
            continue
        if (languages := (group.source, group.target)) in found:
            raise UserError(f"{examples}: st and asr_st, both with these languages")
        ids = [utterance_of(name, group.task, group.target) for name in group.ids]
        found[languages] = replace(group, ids=ids)
    return found


def select(group: Group, names: set[str]) -> Group:
    """Return the translations of some utterances, sorted by their ids."""
    rows = sorted(zip(group.ids, group.references, group.hypotheses))
    rows = [row for row in rows if row[0] in names]
    return Group(
        group.task,
        group.source,
        group.target,
        ids=[utterance for utterance, _, _ in rows],
        references=[reference for _, reference, _ in rows],
        hypotheses=[hypothesis for _, _, hypothesis in rows],
    )


def compare_recognition(
    language: str,
    one: tuple[list[str], list[str]],
    other: tuple[list[str], list[str]],
    samples: int,
) -> list[tuple]:
    """Compare WER and CER; only CER for languages without spaces.

    Args:
        language: language of the speech.
        one, other: normalised references and hypotheses of each system.
        samples: number of bootstrap samples.
    """
    metrics: dict[str, Callable[..., WordOutput | CharacterOutput]]
    metrics = {"wer": word_errors, "cer": character_errors}
    if language in LANGUAGES_WITHOUT_SPACES:
        del metrics["wer"]
    rows = []
    for metric, align in metrics.items():
        (first, lengths), (second, _) = (
            utterance_errors(align(*texts)) for texts in (one, other)
        )
        *value, higher = ratio_bootstrap(first, second, lengths, samples)
        rows.append((metric, *value, 1 - higher))
    return rows


def compare_translation(
    one: Group,
    other: Group,
    samples: int,
    metrics: Sequence[str] = ("bleu", "chrf", "ter"),
) -> list[tuple]:
    """Compare BLEU, chrF and TER on raw text as sacrebleu's paired bootstrap does."""
    rows = []
    for name in metrics:
        metric = translation_metric(name, one.target)
        statistics = [
            sentence_statistics(metric, one.references, group.hypotheses)
            for group in (one, other)
        ]
        a, b = (corpus_score(metric, each) for each in statistics)
        first, second = (score_samples(metric, each, samples) for each in statistics)
        equal = one.hypotheses == other.hypotheses  # sacrebleu's p-value is near 0 then
        p = 1.0 if equal else sacrebleu_p_value(second - first, b - a)
        rows.append((name, a, b, half_width(first), half_width(second), p))
    return rows


def compare_comet(
    one: Group, other: Group, folders: Sequence[Path], samples: int
) -> tuple[list[tuple], str | None]:
    """Compare COMET if both systems were scored with it, on these texts.

    Args:
        one, other: the same examples with the texts of each system.
        folders: score folder of each system.
        samples: number of bootstrap samples.

    Returns:
        The comparison, and the reason if it is empty although both have COMET.

    Raises:
        UserError: a file of scores is damaged.
    """
    first, second = (read_comet(folder) for folder in folders)
    if first is None or second is None:
        return [], None
    if first.signature != second.signature:
        return [], f"different COMETs: {first.signature} and {second.signature}"
    for group, scored, folder in zip((one, other), (first, second), folders):
        texts = list(zip(group.references, group.hypotheses))
        if [scored.texts.get(i) for i in group.ids] != texts:
            again = "score this set again (stage 13)"
            return [], f"COMET in {folder} is of other texts; {again}"
    a, b = ([scored.values[i] for i in one.ids] for scored in (first, second))
    return [("comet", *ratio_bootstrap(a, b, [1] * len(a), samples))], None


def ratio_bootstrap(
    a: Sequence[float], b: Sequence[float], lengths: Sequence[int], samples: int
) -> tuple[float, float, float, float, float, float]:
    """Run the paired bootstrap on 100 · sum of counts / sum of lengths.

    Where all lengths of a sample are 0, each count is an error by itself, as in
    :func:`~speechllm.evaluation.recognition.error_rate`.

    Args:
        a, b: count of each utterance, for each system.
        lengths: length of each utterance, the denominator.
        samples: number of bootstrap samples.

    Returns:
        Value of A, value of B, half width of the 95 % interval of each, p-value, and
        the share of samples in which B's value is higher (ties count half).
    """
    import numpy as np

    first, second = (ratio_samples(counts, lengths, samples) for counts in (a, b))
    totals = np.array([sum(a), sum(b)], dtype=np.float64)
    value_a, value_b = (100 * ratio(totals, np.full(2, sum(lengths)))).tolist()
    higher = (second > first).mean() + (second == first).mean() / 2
    p = p_value(second - first, value_b - value_a)
    widths = half_width(first), half_width(second)
    return value_a, value_b, *widths, p, float(higher)


def p_value(differences: np.ndarray, observed: float) -> float:
    """Return the two-sided p-value of the null hypothesis of no difference.

    Args:
        differences: (samples,) of the bootstrap samples; shifted to a mean of 0, they
            are the distribution under the null hypothesis.
        observed: difference on the whole set.
    """
    shifted = abs(differences - differences.mean())
    beyond = int((shifted >= abs(observed)).sum())
    return (beyond + 1) / (len(differences) + 1)


def sacrebleu_p_value(differences: np.ndarray, observed: float) -> float:
    """Return the p-value of sacrebleu's paired bootstrap.

    Args:
        differences: (samples,) of the bootstrap samples; its null distribution is that
            of their absolute values, shifted to a mean of 0.
        observed: difference on the whole set.
    """
    shifted = abs(differences) - abs(differences).mean()
    beyond = int((shifted > abs(observed)).sum())
    return (beyond + 1) / (len(differences) + 1)


def read_comet(folder: Path) -> CometScores | None:
    """Read COMET of a score folder, which contains it times 100; None if it has none.

    Raises:
        UserError: a file of scores is damaged.
    """
    path = folder / "scores.tsv"
    if not path.exists():
        return None
    lines = path.read_text("utf-8").rstrip("\n").split("\n")
    header = lines[0].split("\t")
    if "comet" not in header:
        return None
    values, texts = {}, {}
    try:
        rows = json.loads((folder / "scores.json").read_text("utf-8"))
        [row] = [row for row in rows if row["metric"] == "comet"]
        for line in lines[1:]:
            cells = dict(zip(header, line.split("\t"), strict=True))
            values[cells["id"]] = float(cells["comet"]) / 100
            texts[cells["id"]] = cells["reference"], cells["hypothesis"]
    except (OSError, KeyError, TypeError, ValueError):
        raise UserError(
            f"{folder}: damaged scores; score this set again (stage 13)"
        ) from None
    return CometScores(row.get("signature", ""), values, texts)


def comparison_table(
    rows: list[Comparison],
    a: str,
    b: str,
    samples: int,
    normalizer: Normalizer = SPOKEN,
) -> str:
    """Return the comparison as a Markdown table.

    Args:
        rows: results of :func:`compare`.
        a, b: names of the two systems.
        samples: number of bootstrap samples, for the caption.
        normalizer: of the compared texts, for the caption.
    """
    signatures = {
        normalizer.signature(row.source): None
        for row in rows
        if row.metric in ("wer", "cer")
    }
    normalized = ", ".join(f"`{signature}`" for signature in signatures)
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
    caption = (
        f"± is half the width of the 95 % interval, p the p-value of the paired "
        f"bootstrap with {samples} draws (seed {SEED})."
    )
    if normalized:
        caption += f" Error rates are on normalised text ({normalized})."
    return f"{markdown_table(header, lines)}\n{caption}\n"
