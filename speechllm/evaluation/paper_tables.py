"""Result tables of the recipes' READMEs: the papers' figures, other sources' and ours.

The rows and all published figures are in ``paper_tables.yaml``. Our figures come from
``exp/RESULTS.json`` of a recipe (stage 13). All tables have the same format: a line per
system and source, a column per test set and metric. Missing figures are marked, never
guessed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from speechllm.evaluation.report import METRICS, markdown_table
from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_open, read_yaml

TABLES = Path(__file__).with_name("paper_tables.yaml")
RECIPES = Path(__file__).parents[2] / "egs2"
UNKNOWN = "unknown to us"  # a figure that the paper has and we do not
MISSING = "–"  # a figure of ours that was not measured
_ROW_KEYS = {
    "row", "command", "train", "system", "decode", "figures", "ours", "in_paper",
}  # fmt: skip
_TABLE_KEYS = {
    "recipe", "title", "paper", "not_run", "task", "language", "target_language",
    "columns", "rows", "notes", "train", "decode", "suffix",
}  # fmt: skip


def read_tables(path: str | Path = TABLES, recipes: str | Path = RECIPES) -> list[dict]:
    """Read the tables; table-wide settings are copied into each row.

    Returns:
        Tables ``{"recipe", "title", "paper", "columns", "notes", "rows", …}``. Rows
        contain ``system`` and ``decode``, their names in ``RESULTS.json``; ``config``,
        the config that defines the row, if any; and ``figures``, lists of figures by
        source.

    Raises:
        UserError: a key or source is unknown, the recipe lacks a config, or the number
            of figures is not that of the columns.
    """
    content = read_yaml(path)
    sources = content.get("sources", {})
    tables = []
    for table in content.get("tables", []):
        place = f"{path}, {table.get('title')!r}"
        check_keys(table, _TABLE_KEYS, place)
        conf = Path(recipes) / table["recipe"] / "speechllm1" / "conf"
        table = {"notes": [], "paper": None, **table}
        rows = []
        for row in table["rows"]:
            where = f"{place}, {row.get('row')!r}"
            check_keys(row, _ROW_KEYS, where)
            rows.append(complete_row(row, table, sources, conf, where))
        tables.append({**table, "rows": rows})
    return tables


def check_keys(content: dict, known: set[str], place: str) -> None:
    """Raise UserError if a table or row has a key that is not used."""
    if unknown := sorted(content.keys() - known):
        raise UserError(
            f"{place}: unknown key {unknown[0]!r}; known keys: "
            f"{', '.join(sorted(known))}"
        )


def complete_row(
    row: dict, table: dict, sources: dict[str, str], conf: Path, place: str
) -> dict:
    """Return a row with its names in the results and all its figures.

    Args:
        row, table: as in the YAML file.
        sources: name of a source -> its Markdown text.
        conf: the recipe's folder of configs.
        place: file, table and row, for error messages.
    """
    train = row.get("train") or table.get("train")
    decode = row.get("decode") or table["decode"]
    command = row.get("command")
    own_config = not row.get("system") and ("train" in row or "decode" in row)
    for config in [] if row.get("system") or not command else [train, decode]:
        if not (conf / f"{config}.yaml").is_file():
            raise UserError(f"{place}: no config {conf / config}.yaml")
    figures = {
        source_text(name, sources, place): values
        for name, values in row.get("figures", {}).items()
    }
    width = len(table["columns"])
    for name, values in {**figures, "ours": row.get("ours")}.items():
        if values is not None and len(values) != width:
            raise UserError(f"{place}: {name} does not have a figure for each column")
    if not command and not figures:
        raise UserError(f"{place}: neither a command nor figures; add one of them")
    if not figures and table["paper"] and row.get("in_paper", True):
        figures = {"paper": [None] * width}
    return {
        "row": row["row"],
        "command": command,
        "config": f"{row.get('train') or row.get('decode')}.yaml" if own_config else "",
        "system": row.get("system") or f"speechllm_{train}{table.get('suffix', '')}",
        "decode": decode,
        "figures": figures,
        "ours": row.get("ours"),
    }


def source_text(name: str, sources: dict[str, str], place: str) -> str:
    """Return the text of a source; ``paper, Table 1`` etc. are returned as they are."""
    if name and str(name).startswith("paper"):
        return name
    if name not in sources:
        raise UserError(
            f"{place}: figures without a source: {name!r} is neither the paper nor "
            "listed in 'sources'; add it there"
        )
    return sources[name]


def find_results(recipe: str, path: str | Path | None = None) -> dict[tuple, float]:
    """Read a recipe's results.

    Args:
        recipe: folder below ``egs2``.
        path: a ``RESULTS.json``. Default: the recipe's ``exp/RESULTS.json``; without
            that file there are no results.

    Raises:
        UserError: the file given does not exist, or the file is damaged.
    """
    if path is not None:
        return read_results(path)
    own = RECIPES / recipe / "speechllm1" / "exp" / "RESULTS.json"
    return read_results(own) if own.exists() else {}


def read_results(path: str | Path) -> dict[tuple, float]:
    """Read figures by (system, decode, set, task, language, target language, metric).

    Raises:
        UserError: the file is missing or damaged.
    """
    names = ("system", "decode", "set", "task", "language", "target_language", "metric")
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file; run stage 13 first")
    try:
        rows = json.loads(path.read_text("utf-8"))
        return {tuple(row[name] for name in names): row["value"] for row in rows}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a RESULTS.json; run stage 13 again") from None


def our_figures(
    row: dict, table: dict, results: dict[tuple, float]
) -> list[float | None]:
    """Return our figure for each column of a row, or None where there is none.

    Decode dirs are named after the config (``decode_greedy``); before version 0.2 they
    had the prefix ``decode_`` twice. Both names are accepted.
    """
    place = table["task"], table["language"], table["target_language"]
    figures: list[float | None] = []
    for index, column in enumerate(table["columns"]):
        figure = row["ours"][index] if row["ours"] else None
        for decode in (f"decode_{row['decode']}", row["decode"]):
            key = row["system"], decode, column["set"], *place, column["metric"]
            figure = results.get(key, figure)
        figures.append(figure)
    return figures


def row_lines(row: dict, table: dict, results: dict[tuple, float]) -> list[list[str]]:
    """Return the lines of a row: one for each source, and one of ours."""
    name = row["row"] + (f" (`{row['config']}`)" if row["config"] else "")
    paper: list[float | None] = [None] * len(table["columns"])
    lines = []
    for source, values in row["figures"].items():
        if source.startswith("paper"):
            paper = values
        cells = [UNKNOWN if value is None else str(value) for value in values]
        lines.append([name, source, *cells])
    ours = our_figures(row, table, results)
    if not lines or any(figure is not None for figure in ours):
        cells = []
        for figure, published in zip(ours, paper, strict=True):
            cell = MISSING if figure is None else f"{figure:.2f}"
            if figure is not None and published is not None:
                cell += f" ({figure - published:+.2f})"
            cells.append(cell)
        lines.append([name, "ours", *cells])
    return lines


def table_markdown(table: dict, results: dict[tuple, float]) -> str:
    """Return one table with its title, introduction, commands and notes."""
    lines = [line for row in table["rows"] for line in row_lines(row, table, results)]
    header = ["system", "source"]
    for column in table["columns"]:
        metric = METRICS.get(column["metric"], column["metric"].upper())
        header.append(f"{column['name']} {metric}")
    ours = " ".join(cell for line in lines if line[1] == "ours" for cell in line[2:])
    sentences = [f"Paper: {table['paper']}."] if table["paper"] else []
    if not ours.replace(MISSING, "").strip():
        sentences.append(f"Not run by us: {table['not_run']}.")
    elif MISSING in ours:
        sentences.append(f"{MISSING}: not run by us.")
    if "(" in ours:
        sentences.append("In parentheses: our figure minus the paper's.")
    commands = dict.fromkeys(row["command"] for row in table["rows"] if row["command"])
    parts = [
        f"### {table['title']}",
        " ".join(sentences),
        markdown_table(header, lines, left=2),
        "".join(f"- {note}\n" for note in table["notes"]),
        "```sh\n" + "".join(f"{command}\n" for command in commands) + "```",
    ]
    return "\n\n".join(part.rstrip() for part in parts if part) + "\n"


def recipe_markdown(recipe: str, results: dict[tuple, float]) -> str:
    """Return all tables of a recipe.

    Args:
        recipe: folder below ``egs2``.
        results: from :func:`find_results`.

    Raises:
        UserError: there is no table of this recipe.
    """
    tables = read_tables()
    known = sorted({table["recipe"] for table in tables})
    if recipe not in known:
        raise UserError(f"no table for recipe {recipe!r}; there are {', '.join(known)}")
    return "\n".join(
        table_markdown(table, results) for table in tables if table["recipe"] == recipe
    )


def readme_path(recipe: str) -> Path:
    """Return the path of a recipe's README."""
    return RECIPES / recipe / "speechllm1" / "README.md"


def readme_block(recipe: str) -> str:
    """Return the tables in a recipe's README, the text between the two markers."""
    return _find_block(recipe)["block"]


def update_readme(recipe: str, text: str) -> Path:
    """Replace the tables in a recipe's README.

    Returns:
        Path of the README.

    Raises:
        UserError: the README has no markers, or several.
    """
    path = readme_path(recipe)
    found = _find_block(recipe)
    if found["block"] != text:
        content = found.string[: found.start("block")] + text
        content += found.string[found.end("block") :]
        with atomic_open(path, "w") as stream:
            stream.write(content)
    return path


def _find_block(recipe: str) -> re.Match[str]:
    path = readme_path(recipe)
    begin, end = f"<!-- paper_tables.py {recipe} -->", "<!-- end -->"
    pattern = f"{re.escape(begin)}\n(?P<block>.*?){re.escape(end)}"
    found = list(re.finditer(pattern, path.read_text("utf-8"), re.DOTALL))
    if len(found) != 1:
        raise UserError(
            f"{path}: {len(found)} places for the tables; mark one by the lines "
            f"'{begin}' and '{end}'"
        )
    return found[0]
