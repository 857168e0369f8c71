"""Word and character error rates of transcripts, with alignments (jiwer)."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from speechllm.evaluation.bootstrap import interval_field, ratio_samples
from speechllm.evaluation.groups import Group, Scores, normalize_group
from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES
from speechllm.text.normalizers import SPOKEN, Normalizer

if TYPE_CHECKING:
    from jiwer import AlignmentChunk, CharacterOutput, WordOutput


def score_recognition(group: Group, normalizer: Normalizer = SPOKEN) -> Scores:
    """Return WER and CER, normalised and raw, and the alignment of normalised words.

    Where the decoder recorded the CTC transcripts, ``wer_ctc`` and ``cer_ctc`` are the
    error rates of CTC alone, on normalised text. Languages written without spaces have
    no WER, which would count whole sentences; their characters are aligned instead.
    """
    references, hypotheses = normalize_group(group, normalizer)
    raw = group.references, group.hypotheses
    signature = {"normalizer": normalizer.signature(group.target)}
    character_output = character_errors(references, hypotheses)
    rows = [
        error_row("cer", character_output) | signature,
        error_row("cer_raw", character_errors(*raw)),
    ]
    output: WordOutput | CharacterOutput = character_output
    if group.source not in LANGUAGES_WITHOUT_SPACES:
        output = word_errors(references, hypotheses)
        rows[:0] = [
            error_row("wer", output) | signature,
            error_row("wer_raw", word_errors(*raw)),
        ]
    if group.ctc_texts:
        ctc_texts = [normalizer(text, group.target) for text in group.ctc_texts]
        if group.source not in LANGUAGES_WITHOUT_SPACES:
            row = error_row("wer_ctc", word_errors(references, ctc_texts))
            rows.append(row | signature)
        row = error_row("cer_ctc", character_errors(references, ctc_texts))
        rows.append(row | signature)
    table = []
    for index, example in enumerate(group.ids):
        errors = sum(count_errors(output.alignments[index]))
        length = len(output.references[index])
        table.append(
            [
                example,
                errors,
                length,
                f"{percent(error_rate(errors, length)):.2f}",
                references[index],
                hypotheses[index],
            ]
        )
    unit = "characters" if group.source in LANGUAGES_WITHOUT_SPACES else "words"
    header = ["id", "errors", unit, "rate", "reference", "hypothesis"]
    return Scores(rows, header, table, recognition_alignment(group.ids, output))


def word_errors(references: list[str], hypotheses: list[str]) -> WordOutput:
    """Align words; an empty hypothesis deletes all of them."""
    import jiwer

    return jiwer.process_words(references, hypotheses)


def character_errors(references: list[str], hypotheses: list[str]) -> CharacterOutput:
    """Align characters, including the spaces between words."""
    import jiwer

    return jiwer.process_characters(references, hypotheses)


def utterance_errors(
    output: WordOutput | CharacterOutput,
) -> tuple[list[int], list[int]]:
    """Return the number of errors and the reference length of each utterance."""
    errors = [sum(count_errors(alignment)) for alignment in output.alignments]
    return errors, [len(reference) for reference in output.references]


def error_row(metric: str, output: WordOutput | CharacterOutput) -> dict:
    """Return the row of a micro-averaged error rate: errors over reference units.

    ``interval`` is half the width of its 95 % interval.

    Args:
        metric: ``wer`` or ``cer``, or one of them with ``_raw`` or ``_ctc``.
        output: result of :func:`word_errors` or :func:`character_errors`.
    """
    unit = "words" if metric.startswith("wer") else "characters"
    length = output.hits + output.substitutions + output.deletions
    errors = output.substitutions + output.deletions + output.insertions
    return {
        "metric": metric,
        "value": percent(error_rate(errors, length)),
        **interval_field(
            ratio_samples(*utterance_errors(output)), len(output.references)
        ),
        f"reference_{unit}": length,
        "substitutions": output.substitutions,
        "deletions": output.deletions,
        "insertions": output.insertions,
    }


def error_rate(errors: int, length: int) -> float:
    """Return errors per reference unit; per error where the reference is empty.

    So the rate of an empty reference is 0 without insertions and 1 (100 %) with some.
    """
    return errors / (length or errors or 1)


def percent(value: float) -> float:
    """Convert a rate (1.0 = 100 %) to percent, rounded to two decimals."""
    return round(100 * value, 2)


def count_errors(alignment: Sequence[AlignmentChunk]) -> tuple[int, int, int]:
    """Return the substitutions, deletions and insertions of one utterance."""
    counts: Counter[str] = Counter()
    for chunk in alignment:
        reference_length = chunk.ref_end_idx - chunk.ref_start_idx
        hypothesis_length = chunk.hyp_end_idx - chunk.hyp_start_idx
        counts[chunk.type] += max(reference_length, hypothesis_length)
    return counts["substitute"], counts["delete"], counts["insert"]


def recognition_alignment(ids: list[str], output: WordOutput | CharacterOutput) -> str:
    """Return the text of ``alignment.txt``: frequent errors, then worst utterances."""
    confusions: Counter[str] = Counter()
    utterances = []
    for example, reference, hypothesis, alignment in zip(
        ids, output.references, output.hypotheses, output.alignments, strict=True
    ):
        substitutions, deletions, insertions = count_errors(alignment)
        errors = substitutions + deletions + insertions
        for chunk in alignment:
            left = reference[chunk.ref_start_idx : chunk.ref_end_idx]
            right = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
            if chunk.type == "substitute":
                confusions.update(
                    f"{a} -> {b}" for a, b in zip(left, right, strict=True)
                )
            elif chunk.type == "delete":
                confusions.update(f"{a} -> *" for a in left)
            elif chunk.type == "insert":
                confusions.update(f"* -> {b}" for b in right)
        head = f"{example}: {errors} errors in {len(reference)}"
        if errors:
            head += f" ({substitutions} S, {deletions} D, {insertions} I)"
        lines = align_lines(reference, hypothesis, alignment)
        utterances.append((-errors, example, f"{head}\n{lines}\n"))
    total = output.substitutions + output.deletions + output.insertions
    length = output.hits + output.substitutions + output.deletions
    wrong = sum(1 for errors, _, _ in utterances if errors)
    parts = [
        f"{total} errors in {length}: {output.substitutions} S (substituted), "
        f"{output.deletions} D (deleted), {output.insertions} I (inserted); "
        f"{wrong} of {len(ids)} utterances have one\n"
    ]
    if confusions:
        ranked = sorted(confusions.items(), key=lambda item: (-item[1], item[0]))
        parts.append(
            "most frequent (reference -> hypothesis)\n"
            + "".join(f"{count:6d}  {pair}\n" for pair, count in ranked[:20])
        )
    return "\n".join(parts + [text for _, _, text in sorted(utterances)])


def align_lines(
    reference: Sequence[str],
    hypothesis: Sequence[str],
    alignment: Sequence[AlignmentChunk],
) -> str:
    """Return three aligned lines: reference, hypothesis and the errors (S, D, I)."""
    columns = []
    for chunk in alignment:
        left = reference[chunk.ref_start_idx : chunk.ref_end_idx]
        right = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
        mark = {"substitute": "S", "delete": "D", "insert": "I"}.get(chunk.type, "")
        for index in range(max(len(left), len(right))):
            above = left[index] if index < len(left) else "*"
            below = right[index] if index < len(right) else "*"
            columns.append((above, below, mark))
    lines = []
    for row, title in enumerate(("REF:", "HYP:", "    ")):
        cells = [
            column[row] + " " * (max(map(width, column)) - width(column[row]))
            for column in columns
        ]
        lines.append(" ".join([title, *cells]).rstrip())
    return "\n".join(line for line in lines if line)


def width(text: str) -> int:
    """Return a text's terminal columns (East Asian wide characters take two)."""
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )
