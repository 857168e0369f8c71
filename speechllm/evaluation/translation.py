"""BLEU, chrF and TER of translations (sacrebleu)."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

    Sentence BLEU uses the effective order. ``alignment.txt`` lists the sentences from
    the lowest chrF to the highest.
    """
    bleu = bleu_metric(group.target, effective_order=True)
    chrf = chrf_metric()
    table, utterances = [], []
    for example, reference, hypothesis in zip(
        group.ids, group.references, group.hypotheses, strict=True
    ):
        sentence_bleu = bleu.sentence_score(hypothesis, [reference]).score
        sentence_chrf = chrf.sentence_score(hypothesis, [reference]).score
        figures = f"{sentence_bleu:.2f}", f"{sentence_chrf:.2f}"
        table.append([example, *figures, reference, hypothesis])
        text = f"{example}: BLEU {figures[0]}, chrF {figures[1]}\n"
        text += f"REF: {reference}\nHYP: {hypothesis}".rstrip() + "\n"
        utterances.append((sentence_chrf, example, text))
    header = ["id", "bleu", "chrf", "reference", "hypothesis"]
    alignment = "\n".join(text for _, _, text in sorted(utterances))
    return Scores(translation_rows(group, normalizer), header, table, alignment)


def translation_rows(group: Group, normalizer: Normalizer) -> list[dict]:
    """Return BLEU, chrF and TER on raw text, and BLEU and chrF on normalised text."""
    raw = group.references, group.hypotheses
    normalised = normalize_group(group, normalizer)
    signature = {"normalizer": normalizer.signature(group.target)}
    return [
        sacrebleu_row("bleu", bleu_metric(group.target), *raw),
        sacrebleu_row("chrf", chrf_metric(), *raw),
        sacrebleu_row("ter", ter_metric(group.target), *raw),
        sacrebleu_row("bleu_normalized", bleu_metric(group.target), *normalised)
        | signature,
        sacrebleu_row("chrf_normalized", chrf_metric(), *normalised) | signature,
    ]


def sacrebleu_row(
    name: str, metric: Metric, references: list[str], hypotheses: list[str]
) -> dict:
    """Return the row of one corpus-level score, in percent, with its signature."""
    value = metric.corpus_score(hypotheses, [references]).score
    return {
        "metric": name,
        "value": round(value, 2),
        "signature": str(metric.get_signature()),
    }


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
