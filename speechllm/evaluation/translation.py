"""BLEU, chrF and TER of translations (sacrebleu)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from speechllm.evaluation.bootstrap import (
    SentenceStatistics,
    corpus_score,
    interval_field,
    score_samples,
    sentence_statistics,
)
from speechllm.evaluation.groups import Group, Scores, normalize_group
from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES
from speechllm.text.normalizers import SPOKEN, Normalizer

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU, CHRF, TER
    from sacrebleu.metrics.base import Metric

#: sacrebleu's tokenizer for languages that its default (13a) does not split into words.
#: Japanese is scored by characters, which needs no extra package; the signature
#: records it.
BLEU_TOKENIZERS = {"ja": "char", "yue": "zh", "zh": "zh"}


def score_translation(group: Group, normalizer: Normalizer = SPOKEN) -> Scores:
    """Return corpus-level scores, and BLEU and chrF of every sentence.

    BLEU, chrF and TER are on raw text, BLEU and chrF also on normalised text. Sentence
    BLEU uses the effective order. ``alignment.txt`` lists the sentences from the lowest
    chrF to the highest.
    """
    scored = {
        name: statistics_of(name, group.target, group.references, group.hypotheses)
        for name in ("bleu", "chrf", "ter")
    }
    bleu = bleu_metric(group.target, effective_order=True)
    chrf = chrf_metric()
    table, utterances = [], []
    for example, reference, hypothesis, bleu_counts, chrf_counts in zip(
        group.ids,
        group.references,
        group.hypotheses,
        scored["bleu"][1],
        scored["chrf"][1],
        strict=True,
    ):
        sentence_bleu = corpus_score(bleu, [bleu_counts])
        sentence_chrf = corpus_score(chrf, [chrf_counts])
        figures = f"{sentence_bleu:.2f}", f"{sentence_chrf:.2f}"
        table.append([example, *figures, reference, hypothesis])
        text = f"{example}: BLEU {figures[0]}, chrF {figures[1]}\n"
        text += f"REF: {reference}\nHYP: {hypothesis}".rstrip() + "\n"
        utterances.append((sentence_chrf, example, text))
    header = ["id", "bleu", "chrf", "reference", "hypothesis"]
    alignment = "\n".join(text for _, _, text in sorted(utterances))
    rows = [sacrebleu_row(name, *pair) for name, pair in scored.items()]
    normalised = normalize_group(group, normalizer)
    signature = {"normalizer": normalizer.signature(group.target)}
    for name in ("bleu", "chrf"):
        pair = statistics_of(name, group.target, *normalised)
        rows.append(sacrebleu_row(f"{name}_normalized", *pair) | signature)
    return Scores(rows, header, table, alignment)


def statistics_of(
    name: str, language: str, references: list[str], hypotheses: list[str]
) -> tuple[Metric, SentenceStatistics]:
    """Return a metric of sacrebleu and its statistics of each sentence."""
    metric = translation_metric(name, language)
    return metric, sentence_statistics(metric, references, hypotheses)


def sacrebleu_row(name: str, metric: Metric, statistics: SentenceStatistics) -> dict:
    """Return the row of one corpus-level score, in percent, with its signature.

    ``interval`` is half the width of its 95 % interval.
    """
    return {
        "metric": name,
        "value": round(corpus_score(metric, statistics), 2),
        **interval_field(score_samples(metric, statistics), len(statistics)),
        "signature": str(metric.get_signature()),
    }


def translation_metric(name: str, language: str) -> Metric:
    """Return sacrebleu's ``bleu``, ``chrf`` or ``ter`` for a target language."""
    if name == "bleu":
        return bleu_metric(language)
    return chrf_metric() if name == "chrf" else ter_metric(language)


def bleu_metric(language: str, effective_order: bool = False) -> BLEU:
    """Return sacrebleu's BLEU with the tokenizer for the target language."""
    from sacrebleu.metrics import BLEU

    tokenizer = BLEU_TOKENIZERS.get(language, "13a")
    return BLEU(tokenize=tokenizer, effective_order=effective_order)


def chrf_metric() -> CHRF:
    """Return sacrebleu's chrF2 (character 6-grams, beta 2)."""
    from sacrebleu.metrics import CHRF

    return CHRF()


def ter_metric(language: str) -> TER:
    """Return sacrebleu's TER; by characters for languages without spaces."""
    from sacrebleu.metrics import TER

    asian = language in LANGUAGES_WITHOUT_SPACES
    return TER(asian_support=asian, normalized=asian)
