"""Comparison of all systems of a report with one of them: the paired bootstrap.

The texts are those in the score folders, so that no example dir is needed. Two systems
are compared on a set, task and language pair if they have the same examples with the
same references and, for error rates, the same normaliser; by COMET, the same model.
"""

from __future__ import annotations

from pathlib import Path

from speechllm.evaluation.bootstrap import SAMPLES
from speechllm.evaluation.groups import Group
from speechllm.evaluation.significance import (
    compare_comet,
    compare_recognition,
    compare_translation,
)
from speechllm.evaluation.tables import METRICS, TASKS, markdown_table
from speechllm.text.tasks import Task
from speechllm.utils.errors import UserError

COMPARED = ("wer", "cer", "bleu", "chrf", "comet")


def compare_systems(
    rows: list[dict], exp_root: str | Path, reference: str | Path | None = None
) -> list[str]:
    """Add to each row of another system the comparison with a reference system.

    Such rows get ``difference`` (their score minus that of the reference system),
    ``p_value`` and ``compared_with``.

    Args:
        rows: from :func:`~speechllm.evaluation.report.collect_results`.
        exp_root: experiment folder of these rows.
        reference: folder ``<exp_root>/<system>/<decode>``. By default that of the model
            that was exported last; without a model nothing is compared.

    Returns:
        One sentence for each comparison that is not possible.

    Raises:
        UserError: the reference system has no scores, or a ``scores.tsv`` is damaged.
    """
    if reference is None:
        reference = newest_system(rows, Path(exp_root))
        if reference is None:
            return []
    system, decode = Path(reference).parts[-2:]
    groups: dict[tuple[str, str], dict[tuple, list[dict]]] = {}
    for row in rows:
        own = groups.setdefault((row["system"], row["decode"]), {})
        own.setdefault(_place(row), []).append(row)
    base = groups.get((system, decode))
    if base is None:
        raise UserError(
            f"--compare_with {reference}: no scores of it below {exp_root}; score it "
            "first, or name another <system>/<decode>"
        )
    notes = []
    for name, own in groups.items():
        for place in own.keys() & base.keys() if name != (system, decode) else ():
            problem = _compare(own[place], base[place], f"{system}/{decode}")
            if problem:
                notes.append(f"{'/'.join(name)}, {_describe(place)}: {problem}")
    return sorted(notes)


def newest_system(rows: list[dict], exp_root: Path) -> Path | None:
    """Return the decode folder, decoded last, of the model that was exported last."""
    found = []
    for row in rows:
        system = exp_root / row["system"]
        text = Path(row["hypotheses_file"])
        if (system / "model" / "config.yaml").exists() and text.exists():
            exported = (system / "model" / "config.yaml").stat().st_mtime
            found.append((exported, text.stat().st_mtime, system / row["decode"]))
    return max(found)[-1] if found else None


def _place(row: dict) -> tuple[str, str, str, str]:
    return row["set"], row["task"], row["language"], row["target_language"]


def _describe(place: tuple[str, str, str, str]) -> str:
    name, task, source, target = place
    pair = source if task == "asr" else f"{source} → {target}"
    return f"{name} {task} {pair}"


def _compare(own: list[dict], base: list[dict], name: str) -> str | None:
    """Compare two systems on one group and add the results to the rows of the first.

    Returns:
        The reason if they, or only their COMET, cannot be compared.
    """
    scored = {row["metric"]: row for row in own}
    others = {row["metric"]: row for row in base}
    folders = [score_folder(rows[0]) for rows in (base, own)]
    first, second = (read_scored(folder, own[0]) for folder in folders)
    if first is None or second is None:
        return "no scores.tsv"
    if first.ids != second.ids:
        return "other examples"
    values, problem = [], None
    if first.task != "st":
        one, other = first.transcript or first, second.transcript or second
        normalizers = {
            rows[metric].get("normalizer")
            for rows in (scored, others)
            for metric in ("wer", "cer")
            if metric in rows
        }
        if one.references != other.references or len(normalizers) > 1:
            return "other references or another text normaliser"
        texts = [(group.references, group.hypotheses) for group in (one, other)]
        values += compare_recognition(first.source, texts[0], texts[1], SAMPLES)
    if first.task != "asr":
        if first.references != second.references:
            return "other references"
        values += compare_translation(first, second, SAMPLES, ("bleu", "chrf"))
        comet, problem = compare_comet(first, second, folders, SAMPLES)
        values += comet
    for metric, a, b, _, _, p, *_ in values:
        if metric in scored:
            scored[metric] |= {
                "difference": round(b - a, 2),
                "p_value": round(p, 4),
                "compared_with": name,
            }
    return problem


def score_folder(row: dict) -> Path:
    """Return the folder of the scores of a row's group."""
    task = Task(row["task"], row["language"], row["target_language"])
    return Path(row["hypotheses_file"]).parent / f"score_{task.group}"


def read_scored(folder: Path, row: dict) -> Group | None:
    """Read references and hypotheses of a group as they were scored.

    Args:
        folder: score folder.
        row: a row of its scores.

    Returns:
        The group; None if there is no ``scores.tsv``.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / "scores.tsv"
    if not path.exists():
        return None
    group = Group(row["task"], row["language"], row["target_language"])
    if group.task == "asr_st":
        group.transcript = Group("asr", group.source, group.source)
    lines = path.read_text("utf-8").rstrip("\n").split("\n")
    header = lines[0].split("\t")
    try:
        for line in lines[1:]:
            cells = dict(zip(header, line.split("\t"), strict=True))
            group.ids.append(cells["id"])
            group.references.append(cells["reference"])
            group.hypotheses.append(cells["hypothesis"])
            if group.transcript is not None:
                group.transcript.references.append(cells["transcript_reference"])
                group.transcript.hypotheses.append(cells["transcript_hypothesis"])
    except (KeyError, ValueError):
        raise UserError(
            f"{path}: not a table of scores; score this set again (stage 13)"
        ) from None
    return group


def comparison_section(rows: list[dict], notes: list[str]) -> str:
    """Return the Markdown section of the comparisons; empty if there are none.

    Args:
        rows: after :func:`compare_systems`.
        notes: what it returned.
    """
    compared = [row for row in rows if "p_value" in row]
    if not compared:
        return ""
    metrics = [m for m in COMPARED if any(row["metric"] == m for row in compared)]
    lines: dict[tuple, dict[str, str]] = {}
    for row in compared:
        key = (
            list(TASKS).index(row["task"]),
            _place(row),
            row["system"],
            row["decode"],
        )
        cell = f"{row['difference']:+.1f} (p {row['p_value']:.3f})"
        lines.setdefault(key, {})[row["metric"]] = cell
    table = [
        [f"{system}/{decode}", _describe(place), *(cells.get(m, "") for m in metrics)]
        for (_, place, system, decode), cells in lines.items()
    ]
    header = ["system", "set", *(METRICS[m] for m in metrics)]
    text = (
        f"## Comparison with {compared[0]['compared_with']}\n\n"
        + markdown_table(header, table, left=2)
        + "\nScore minus that of this system on the same examples, and the p-value of "
        f"the paired bootstrap ({SAMPLES} samples): how probable so large a difference "
        "is between equal systems. Each p-value is for one comparison.\n"
    )
    if notes:
        text += "\nNot compared:\n\n" + "".join(f"- {note}\n" for note in notes)
    return text
