"""Tables of the most costly errors of a decode dir, as Markdown (``ERRORS.md``).

For recognition, and the transcripts of ``asr_st``, three tables per language, on
normalised text as aligned by jiwer: the reference words with most errors, the phrases
(neighbouring errors joined) that cost most, and the utterances with most errors. For
translations, the sentences with the lowest chrF. For languages without spaces, words
are characters.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from speechllm.evaluation.bootstrap import corpus_score, sentence_statistics
from speechllm.evaluation.groups import Group, normalize_group
from speechllm.evaluation.recognition import character_errors, count_errors, word_errors
from speechllm.evaluation.tables import TASKS, figure, markdown_table
from speechllm.evaluation.translation import chrf_metric
from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES
from speechllm.text.normalizers import SPOKEN, Normalizer

if TYPE_CHECKING:
    from jiwer import AlignmentChunk, CharacterOutput, WordOutput

ROWS = 20  # of each table
_NAMED = 3  # utterances and hypotheses named in a row
NOTHING = "∅"


@dataclass
class Cost:
    """Errors of the same kind.

    Attributes:
        errors: number of word errors.
        hypotheses: hypotheses at these places, with their counts.
        utterances: ids of the utterances, with the number of occurrences.
    """

    errors: int = 0
    hypotheses: Counter[str] = field(default_factory=Counter)
    utterances: Counter[str] = field(default_factory=Counter)


def errors_markdown(groups: Sequence[Group], normalizer: Normalizer = SPOKEN) -> str:
    """Return the tables of all groups of a decode dir."""
    parts = [
        "# Errors\n",
        f"The {ROWS} most costly errors of each kind. {NOTHING} as reference is an "
        "insertion, as hypothesis a deletion. Recognition is on normalised text.\n",
    ]
    for group in groups:
        pair = (
            group.source if group.task == "asr" else f"{group.source} → {group.target}"
        )
        parts.append(f"## {TASKS[group.task]}: {pair}\n")
        if group.task != "st":
            parts += recognition_tables(group.transcript or group, normalizer)
        if group.task != "asr":
            parts += [
                "### Translations with the lowest chrF\n",
                worst_translations(group),
            ]
    return "\n".join(parts)


def recognition_tables(group: Group, normalizer: Normalizer = SPOKEN) -> list[str]:
    """Return the parts of a recognition group: titles and tables."""
    texts = normalize_group(group, normalizer)
    characters = group.source in LANGUAGES_WITHOUT_SPACES
    output: WordOutput | CharacterOutput
    output = character_errors(*texts) if characters else word_errors(*texts)
    unit = "characters" if characters else "words"
    separator = "" if characters else " "
    total = sum(count for *_, count in _utterance_errors(group.ids, output))
    length = output.hits + output.substitutions + output.deletions
    if not total:
        return [f"No errors in {length:,} {unit}.\n"]
    return [
        f"{total:,} errors in {length:,} {unit}.\n",
        f"### {unit.capitalize()}\n",
        word_table(word_costs(group.ids, output), occurrences(output)),
        "### Phrases\n",
        phrase_table(phrase_costs(group.ids, output, separator), total),
        "### Utterances\n",
        worst_utterances(group.ids, texts, output),
    ]


def rank_utterances(groups: Sequence[Group]) -> list[tuple[str, str, str, str, int]]:
    """Return the transcribed utterances that have errors, those with most first.

    Returns:
        Rows of id, language, reference, hypothesis and number of errors: of words, or
        of characters in languages without spaces.
    """
    rows = []
    for group in groups:
        if group.task == "st":
            continue
        group = group.transcript or group
        texts = normalize_group(group, SPOKEN)
        characters = group.source in LANGUAGES_WITHOUT_SPACES
        output = (character_errors if characters else word_errors)(*texts)
        counted = _utterance_errors(group.ids, output)
        rows += [
            (name, group.source, reference, hypothesis, errors)
            for (name, _, errors), reference, hypothesis in zip(
                counted, group.references, group.hypotheses, strict=True
            )
            if errors
        ]
    return sorted(rows, key=lambda row: (-row[-1], row[0]))


def error_regions(
    alignment: Sequence[AlignmentChunk],
) -> Iterator[tuple[slice, slice, int]]:
    """Yield the regions of neighbouring errors of one utterance.

    Yields:
        The region in the reference, in the hypothesis, and its number of errors.
    """
    region: list[AlignmentChunk] = []
    for chunk in [*alignment, None]:
        if chunk is not None and chunk.type != "equal":
            region.append(chunk)
        elif region:
            first, last = region[0], region[-1]
            yield (
                slice(first.ref_start_idx, last.ref_end_idx),
                slice(first.hyp_start_idx, last.hyp_end_idx),
                sum(count_errors(region)),
            )
            region = []


def phrase_costs(
    ids: Sequence[str], output: WordOutput | CharacterOutput, separator: str = " "
) -> dict[tuple[str, str], Cost]:
    """Sum the errors of each pair of reference and hypothesis phrase.

    Args:
        ids: of the utterances.
        output: jiwer's alignment.
        separator: between the words of a phrase.
    """
    costs: dict[tuple[str, str], Cost] = defaultdict(Cost)
    for example, reference, hypothesis, alignment in zip(
        ids, output.references, output.hypotheses, output.alignments, strict=True
    ):
        for left, right, errors in error_regions(alignment):
            pair = separator.join(reference[left]), separator.join(hypothesis[right])
            costs[pair].errors += errors
            costs[pair].utterances[example] += 1
    return costs


def word_costs(
    ids: Sequence[str], output: WordOutput | CharacterOutput
) -> dict[str, Cost]:
    """Sum the substitutions and deletions of each reference word, and insertions.

    Insertions are under the reference word ``""``.
    """
    costs: dict[str, Cost] = defaultdict(Cost)
    for example, reference, hypothesis, alignment in zip(
        ids, output.references, output.hypotheses, output.alignments, strict=True
    ):
        for chunk in alignment:
            if chunk.type == "equal":
                continue
            left = reference[chunk.ref_start_idx : chunk.ref_end_idx]
            right = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
            for index in range(max(len(left), len(right))):
                cost = costs[left[index] if index < len(left) else ""]
                cost.errors += 1
                cost.hypotheses[right[index] if index < len(right) else ""] += 1
                cost.utterances[example] += 1
    return costs


def occurrences(output: WordOutput | CharacterOutput) -> Counter[str]:
    """Count the reference words."""
    return Counter(word for reference in output.references for word in reference)


def word_table(costs: dict[str, Cost], counts: Counter[str]) -> str:
    """Return the table of the reference words with most errors."""
    ranked = sorted(costs.items(), key=lambda item: (-item[1].errors, item[0]))
    lines = [
        [
            _shown(word),
            _most_common(cost.hypotheses),
            cost.errors,
            counts[word] if word else "",
            _most_common(cost.utterances, with_counts=False),
        ]
        for word, cost in ranked[:ROWS]
    ]
    header = ["reference", "hypotheses", "errors", "occurrences", "utterances"]
    return markdown_table(header, lines, left=2)


def phrase_table(costs: dict[tuple[str, str], Cost], total: int) -> str:
    """Return the table of the phrases that cost most, with their share of errors."""
    ranked = sorted(costs.items(), key=lambda item: (-item[1].errors, item[0]))
    lines = [
        [
            _shown(reference),
            _shown(hypothesis),
            cost.errors,
            f"{100 * cost.errors / total:.1f} %",
            cost.utterances.total(),
            _most_common(cost.utterances, with_counts=False),
        ]
        for (reference, hypothesis), cost in ranked[:ROWS]
    ]
    header = ["reference", "hypothesis", "errors", "of all", "times", "utterances"]
    return markdown_table(header, lines, left=2)


def worst_utterances(
    ids: Sequence[str],
    texts: tuple[list[str], list[str]],
    output: WordOutput | CharacterOutput,
) -> str:
    """Return the table of the utterances with most errors.

    Args:
        ids: of the utterances.
        texts: normalised references and hypotheses.
        output: jiwer's alignment of these.
    """
    found = zip(_utterance_errors(ids, output), *texts, strict=True)
    ranked = sorted(found, key=lambda item: (-item[0][2], item[0][0]))
    lines = [
        [example, _shown(reference), _shown(hypothesis), errors, length]
        for (example, length, errors), reference, hypothesis in ranked[:ROWS]
        if errors
    ]
    return markdown_table(
        ["utterance", "reference", "hypothesis", "errors", "length"], lines, left=3
    )


def worst_translations(group: Group) -> str:
    """Return the table of the sentences with the lowest chrF."""
    metric = chrf_metric()
    statistics = sentence_statistics(metric, group.references, group.hypotheses)
    scores = [corpus_score(metric, [sentence]) for sentence in statistics]
    ranked = sorted(
        zip(scores, group.ids, group.references, group.hypotheses, strict=True)
    )
    lines = [
        [example, _shown(reference), _shown(hypothesis), figure("chrf", score)]
        for score, example, reference, hypothesis in ranked[:ROWS]
    ]
    header = ["utterance", "reference", "hypothesis", "chrF"]
    return markdown_table(header, lines, left=3)


def _utterance_errors(
    ids: Sequence[str], output: WordOutput | CharacterOutput
) -> list[tuple[str, int, int]]:
    """Return (id, reference length, errors) of each utterance."""
    return [
        (example, len(reference), sum(count_errors(alignment)))
        for example, reference, alignment in zip(
            ids, output.references, output.alignments, strict=True
        )
    ]


def _shown(text: str) -> str:
    return " ".join(text.split()) or NOTHING


def _most_common(counts: Counter[str], with_counts: bool = True) -> str:
    """Return the most frequent entries as ``a (3), b (2), c, 4 more``.

    Args:
        counts: entries and their counts; counts of 1 are not shown.
        with_counts: show counts.
    """
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = [
        _shown(name) + (f" ({count})" if with_counts and count > 1 else "")
        for name, count in ranked[:_NAMED]
    ]
    if len(ranked) > _NAMED:
        shown.append(f"{len(ranked) - _NAMED} more")
    return ", ".join(shown)
