"""BLEU, chrF and TER (sacrebleu)."""

from __future__ import annotations

from speechllm.evaluation.groups import Group, normalize_group
from speechllm.evaluation.recognition import Scores
from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES

#: sacrebleu's tokenizer where the default (13a) does not split the text into words.
#: Characters for Japanese: nothing to install, and the signature says so.
BLEU_TOKENIZERS = {"ja": "char", "yue": "zh", "zh": "zh"}


# ---------------------------------------------------------------- translation


def bleu_metric(language: str, **options):
    """sacrebleu's BLEU with the tokenizer that the target language asks for."""
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=BLEU_TOKENIZERS.get(language, "13a"), **options)


def chrf_metric():
    """sacrebleu's chrF2 (character 6-grams, beta 2)."""
    from sacrebleu.metrics import CHRF

    return CHRF()


def ter_metric(language: str):
    """sacrebleu's TER, by characters where the language is written without spaces."""
    from sacrebleu.metrics import TER

    asian = language in LANGUAGES_WITHOUT_SPACES
    return TER(asian_support=asian, normalized=asian)


def sacrebleu_row(
    name: str, metric, references: list[str], hypotheses: list[str]
) -> dict:
    """The row of one corpus score (already in percent) with its signature."""
    value = metric.corpus_score(hypotheses, [references]).score
    return {
        "metric": name,
        "value": round(value, 2),
        "signature": str(metric.get_signature()),
    }


def translation_rows(group: Group) -> list[dict]:
    """BLEU, chrF and TER on the raw text; BLEU and chrF on the normalised text."""
    raw = group.references, group.hypotheses
    normalised = normalize_group(group, "wer")
    return [
        sacrebleu_row("bleu", bleu_metric(group.target), *raw),
        sacrebleu_row("chrf", chrf_metric(), *raw),
        sacrebleu_row("ter", ter_metric(group.target), *raw),
        sacrebleu_row("bleu_normalized", bleu_metric(group.target), *normalised),
        sacrebleu_row("chrf_normalized", chrf_metric(), *normalised),
    ]


def score_translation(group: Group) -> Scores:
    """Corpus scores, and BLEU (effective order) and chrF of every sentence."""
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
    return Scores(translation_rows(group), header, table, alignment)
