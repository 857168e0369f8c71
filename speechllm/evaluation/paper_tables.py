"""The papers' tables beside our figures, as Markdown for the recipes' READMEs.

What is known of the papers stands in ``paper_tables.yaml``; our figures are those of a
recipe's ``exp/RESULTS.json``. Where there is no figure the table says so.
"""

from __future__ import annotations

import json
from pathlib import Path

from speechllm.evaluation.report import markdown_table
from speechllm.utils.errors import UserError
from speechllm.utils.io import read_yaml

TABLES = Path(__file__).with_name("paper_tables.yaml")
RECIPES = Path(__file__).parents[2] / "egs2"
_ROW_KEYS = {
    "row", "command", "train", "system", "decode", "paper", "elsewhere", "source",
}  # fmt: skip
_TABLE_KEYS = {
    "recipe", "title", "paper", "task", "language", "target_language", "columns",
    "rows", "notes", "train", "decode", "suffix",
}  # fmt: skip


def read_tables(path: str | Path = TABLES, recipes: str | Path = RECIPES) -> list[dict]:
    """Read the tables; each row gets what its table says for all rows.

    Returns:
        Tables ``{"recipe", "title", "paper", "columns", "notes", "rows", …}``; rows
        hold ``system`` and ``decode`` as in ``RESULTS.json``, and ``config``, the file
        that makes the row what it is.

    Raises:
        UserError: an unknown key, a config that the recipe has not, or another number
            of figures than columns.
    """
    tables = []
    for table in read_yaml(path).get("tables", []):
        place = f"{path}, {table.get('title')!r}"
        check_keys(table, _TABLE_KEYS, place)
        conf = Path(recipes) / table["recipe"] / "speechllm1" / "conf"
        rows = []
        for row in table["rows"]:
            where = f"{place}, {row.get('row')!r}"
            check_keys(row, _ROW_KEYS, where)
            rows.append(complete_row(row, table, conf, where))
        tables.append({"notes": [], **table, "rows": rows})
    return tables


def check_keys(content: dict, known: set[str], place: str) -> None:
    """Refuse a key that nothing reads."""
    if unknown := sorted(content.keys() - known):
        raise UserError(f"{place}: unknown key {unknown[0]!r}")


def complete_row(row: dict, table: dict, conf: Path, place: str) -> dict:
    """A row with its names in the results and all its figures."""
    width = len(table["columns"])
    train = row.get("train") or table.get("train")
    decode = row.get("decode") or table["decode"]
    own = not row.get("system") and ("train" in row or "decode" in row)
    for config in [] if row.get("system") else [train, decode]:
        if not (conf / f"{config}.yaml").is_file():
            raise UserError(f"{place}: no config {conf / config}.yaml")
    full = {
        "row": row["row"],
        "command": row["command"],
        "config": f"{row.get('train') or row.get('decode')}.yaml" if own else "",
        "system": row.get("system") or f"speechllm_{train}{table.get('suffix', '')}",
        "decode": decode,
        "paper": row.get("paper") or [None] * width,
        "elsewhere": row.get("elsewhere"),
        "source": row.get("source"),
    }
    for name in ("paper", "elsewhere"):
        if full[name] is not None and len(full[name]) != width:
            raise UserError(f"{place}: {name} has not a figure for each column")
    if (row.get("paper") or row.get("elsewhere")) and not row.get("source"):
        raise UserError(f"{place}: figures without a source")
    return full


def read_results(path: str | Path) -> dict[tuple, float]:
    """Our figures by (system, decode, set, task, language, target language, metric).

    Raises:
        UserError: the file is damaged.
    """
    names = ("system", "decode", "set", "task", "language", "target_language", "metric")
    try:
        rows = json.loads(Path(path).read_text("utf-8"))
        return {tuple(row[name] for name in names): row["value"] for row in rows}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a RESULTS.json; run stage 13 again") from None


def our_figures(row: dict, table: dict, results: dict[tuple, float]) -> list:
    """Our figure for each column of a row, or None."""
    pair = table["task"], table["language"], table["target_language"]
    return [
        results.get(
            (row["system"], row["decode"], column["set"], *pair, column["metric"])
        )
        for column in table["columns"]
    ]


def figures(values: list, empty: str, pattern: str = "{:g}") -> str:
    """``12.3 / – / 4``; ``empty`` where there is none at all."""
    if all(value is None for value in values):
        return empty
    return " / ".join("–" if v is None else pattern.format(v) for v in values)


def table_markdown(table: dict, results: dict[tuple, float]) -> str:
    """One table with its title and notes."""
    names = " / ".join(column["name"] for column in table["columns"])
    header = ["row", "config", "command", f"paper: {names}", "ours", "ours − paper"]
    lines, notes, others = [], list(table["notes"]), {}
    for row in table["rows"]:
        ours = our_figures(row, table, results)
        differences = [
            None if a is None or b is None else b - a
            for a, b in zip(row["paper"], ours, strict=True)
        ]
        lines.append(
            [
                row["row"],
                f"`{row['config']}`" if row["config"] else "",
                f"`{row['command']}`",
                figures(row["paper"], "not published here"),
                figures(ours, "not run", "{:.2f}"),
                figures(differences, "", "{:+.2f}"),
            ]
        )
        if any(value is not None for value in row["paper"]):
            notes.append(f"{row['row']}: the paper's figures from {row['source']}.")
        if row["elsewhere"]:
            text = f"{row['row']} {figures(row['elsewhere'], '')}"
            others.setdefault(row["source"], []).append(text)
    notes += [
        f"By others, whose normalisation may differ: {'; '.join(texts)} ({source})."
        for source, texts in others.items()
    ]
    parts = [
        f"### {table['title']}",
        f"{table['paper']}.",
        markdown_table(header, lines),
    ]
    if notes:
        parts.append("".join(f"- {note}\n" for note in notes))
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def recipe_markdown(recipe: str, results_path: str | Path | None = None) -> str:
    """All tables of a recipe.

    Args:
        recipe: folder below ``egs2``.
        results_path: the recipe's ``exp/RESULTS.json`` if None; none is no error.

    Raises:
        UserError: no table of such a recipe; the results given are not there.
    """
    tables = [table for table in read_tables() if table["recipe"] == recipe]
    if not tables:
        known = sorted({table["recipe"] for table in read_tables()})
        raise UserError(f"no table for recipe {recipe!r}; there are {', '.join(known)}")
    results = {}
    if results_path is None:
        own = RECIPES / recipe / "speechllm1" / "exp" / "RESULTS.json"
        results = read_results(own) if own.exists() else {}
    elif Path(results_path).exists():
        results = read_results(results_path)
    else:
        raise UserError(f"{results_path}: no such file; run stage 13 first")
    return "\n".join(table_markdown(table, results) for table in tables)
