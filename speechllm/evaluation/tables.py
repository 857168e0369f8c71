"""Names and formats of scores in tables, and Markdown tables."""

from __future__ import annotations

#: metric -> heading, in the order of the columns
METRICS = {
    "wer": "WER",
    "cer": "CER",
    "wer_raw": "WER raw",
    "cer_raw": "CER raw",
    "wer_ctc": "CTC WER",
    "cer_ctc": "CTC CER",
    "bleu": "BLEU",
    "chrf": "chrF",
    "ter": "TER",
    "comet": "COMET",
    "bleu_normalized": "BLEU norm.",
    "chrf_normalized": "chrF norm.",
    "malformed": "malformed %",
    "rtf": "RTF",
}

#: task -> title of its table
TASKS = {
    "asr": "Speech recognition (asr)",
    "st": "Speech translation (st)",
    "asr_st": "Transcript and translation in one (asr_st)",
}


def markdown_table(header: list[str], lines: list[list], left: int = 1) -> str:
    """Return a Markdown table.

    Args:
        header: column names.
        lines: cells of each line.
        left: number of leading columns that are aligned to the left; all others are
            aligned to the right.
    """
    escaped = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "".join(f"| {' | '.join(line)} |\n" for line in [header, rule, *escaped])


def figure(metric: str, value: float, interval: float | None = None) -> str:
    """Format percent with two decimals, a real-time factor with three digits.

    With half the width of a 95 % interval it is ``12.9 ± 6.2``; intervals below 1 have
    two decimals.
    """
    if metric == "rtf":
        return f"{value:.3g}"
    if interval is None:
        return f"{value:.2f}"
    digits = 1 if interval >= 1 else 2
    return f"{value:.{digits}f} ± {interval:.{digits}f}"


def row_figure(row: dict) -> str:
    """Format the score of a row, with its interval if it has one."""
    return figure(row["metric"], row["value"], row.get("interval"))
