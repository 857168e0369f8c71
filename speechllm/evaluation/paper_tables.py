"""Result tables of all READMEs: the papers' figures, other sources' and ours.

The rows and all published figures are in ``paper_tables.yaml``. Our figures come from
``exp/RESULTS.json`` of a recipe (stage 13). All tables have the same format: a line per
system and source, a column per test set and metric. Missing figures are marked, never
guessed. A README holds tables between the lines ``<!-- paper_tables.py <recipe> -->``
(all of a recipe) or ``<!-- paper_tables.py <recipe>: <title> -->`` (one of them) and
``<!-- end -->``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from speechllm.evaluation.tables import METRICS, figure, markdown_table
from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_open, read_yaml

TABLES = Path(__file__).with_name("paper_tables.yaml")
RECIPES = Path(__file__).parents[2] / "egs2"
TOP_README = Path(__file__).parents[2] / "README.md"
UNKNOWN = "unknown to us"  # a figure that the paper has and we do not
MISSING = "–"  # a figure of ours that was not measured
_ROW_KEYS = {
    "row", "command", "train", "system", "decode", "task", "figures", "ours",
    "in_paper",
}  # fmt: skip
_TABLE_KEYS = {
    "recipe", "title", "paper", "not_run", "task", "language", "target_language",
    "columns", "rows", "notes", "train", "decode", "suffix", "exp", "missing",
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
    ours = row.get("ours")
    pairs = [v if isinstance(v, list) else [v, None] for v in ours or ()]
    if any(len(pair) != 2 for pair in pairs):
        raise UserError(f"{place}: a figure of ours is a value, or [value, interval]")
    for name, values in {**figures, "ours": ours}.items():
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
        "task": row.get("task"),
        "figures": figures,
        "ours": [value for value, _ in pairs],
        "intervals": [interval for _, interval in pairs],
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
        path: a ``RESULTS.json``. Default: those in the experiment folders of the
            recipe's tables (``exp``); without them there are no results.

    Raises:
        UserError: the file given does not exist, or a file is damaged.
    """
    if path is not None:
        return read_results(path)
    folders = {"exp"}
    for table in read_tables():
        if table["recipe"] == recipe:
            folders.update(table.get("exp", "exp").split())
    results: dict[tuple, float] = {}
    for folder in sorted(folders):
        own = RECIPES / recipe / "speechllm1" / folder / "RESULTS.json"
        if own.exists():
            results |= read_results(own)
    return results


def read_results(path: str | Path) -> dict[tuple, float]:
    """Read figures by (system, decode, set, task, language, target language, metric).

    Half the width of a figure's 95 % interval is under ``<metric>_interval``.

    Raises:
        UserError: the file is missing or damaged.
    """
    names = ("system", "decode", "set", "task", "language", "target_language", "metric")
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file; run stage 13 first")
    try:
        rows = json.loads(path.read_text("utf-8"))
        found = {}
        for row in rows:
            key = tuple(row[name] for name in names)
            found[key] = row["value"]
            if "interval" in row:
                found[*key[:-1], f"{key[-1]}_interval"] = row["interval"]
        return found
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a RESULTS.json; run stage 13 again") from None


def our_figures(
    row: dict, table: dict, results: dict[tuple, float]
) -> list[tuple[float | None, float | None]]:
    """Return our figure for each column of a row, and half the width of its interval.

    Both are None where there is none. Decode dirs are named after the config
    (``decode_greedy``); before version 0.2 they had the prefix ``decode_`` twice. Both
    names are accepted.
    """
    figures: list[tuple[float | None, float | None]] = []
    for index, column in enumerate(table["columns"]):
        found = row["ours"][index] if row["ours"] else None
        interval = row["intervals"][index] if row["ours"] else None
        where = {**table, **column}
        task = row["task"] or where["task"]
        place = task, where["language"], where["target_language"]
        for decode in (f"decode_{row['decode']}", row["decode"]):
            key = row["system"], decode, column["set"], *place
            if (*key, column["metric"]) in results:
                found = results[*key, column["metric"]]
                interval = results.get((*key, f"{column['metric']}_interval"))
        figures.append((found, interval))
    return figures


def rounded(metric: str, value: float) -> str:
    """Format a figure of ours: percent with one decimal, others as in the report."""
    return figure(metric, value) if metric == "rtf" else f"{value:.1f}"


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
    if not lines or any(value is not None for value, _ in ours):
        cells = []
        for (value, interval), published, column in zip(
            ours, paper, table["columns"], strict=True
        ):
            metric = column["metric"]
            cell = MISSING if value is None else rounded(metric, value)
            if interval is not None:
                cell += f" ± {rounded(metric, interval)}"
            if value is not None and published is not None:
                sign = "-" if value < published else "+"
                cell += f" ({sign}{rounded(metric, abs(value - published))})"
            cells.append(cell)
        lines.append([name, "ours", *cells])
    return lines


def table_markdown(
    table: dict, results: dict[tuple, float], heading: bool = True
) -> str:
    """Return one table with its introduction, commands and notes.

    Args:
        heading: begin with the title.
    """
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
        sentences.append(f"{MISSING}: {table.get('missing', 'not run by us')}.")
    if "±" in ours:
        sentences.append("±: half the width of the 95 % interval (bootstrap).")
    if "(" in ours:
        sentences.append("In parentheses: our figure minus the paper's.")
    commands = dict.fromkeys(row["command"] for row in table["rows"] if row["command"])
    parts = [
        f"### {table['title']}" if heading else "",
        " ".join(sentences),
        markdown_table(header, lines, left=2),
        "".join(f"- {note}\n" for note in table["notes"]),
        "```sh\n" + "".join(f"{command}\n" for command in commands) + "```",
    ]
    return "\n\n".join(part.rstrip() for part in parts if part) + "\n"


def recipe_markdown(
    recipe: str, results: dict[tuple, float], title: str | None = None
) -> str:
    """Return the tables of a recipe.

    Args:
        recipe: folder below ``egs2``.
        results: from :func:`find_results`.
        title: of the only table to return, without a heading; all if None.

    Raises:
        UserError: there is no table of this recipe, or none with this title.
    """
    tables = read_tables()
    known = sorted({table["recipe"] for table in tables})
    if recipe not in known:
        raise UserError(f"no table for recipe {recipe!r}; there are {', '.join(known)}")
    own = [table for table in tables if table["recipe"] == recipe]
    chosen = [table for table in own if title in (None, table["title"])]
    if not chosen:
        titles = ", ".join(repr(table["title"]) for table in own)
        raise UserError(f"no table {title!r} of {recipe}; there are {titles}")
    return "\n".join(table_markdown(table, results, title is None) for table in chosen)


def readmes(recipe: str) -> list[Path]:
    """Return the files that may hold tables of a recipe: its README first."""
    folder = RECIPES / recipe / "speechllm1"
    notes = folder / "NOTES.md"
    return [folder / "README.md", *([notes] if notes.exists() else []), TOP_README]


def updated_readme(path: Path, recipe: str, results: dict[tuple, float]) -> str:
    """Return the text of a README with the tables of a recipe replaced."""

    def replace(found: re.Match[str]) -> str:
        text = recipe_markdown(recipe, results, found["title"])
        return f"{found['begin']}\n{text}{found['end']}"

    marks = rf"(?P<begin><!-- paper_tables\.py {recipe}(: (?P<title>[^\n]+?))? -->)\n"
    pattern = rf"{marks}.*?(?P<end><!-- end -->)"
    return re.sub(pattern, replace, path.read_text("utf-8"), flags=re.DOTALL)


def update_readmes(recipe: str, results: dict[tuple, float]) -> list[Path]:
    """Replace the tables of a recipe in the READMEs.

    Returns:
        The READMEs that hold tables of the recipe.

    Raises:
        UserError: none of them has the markers.
    """
    marker = f"<!-- paper_tables.py {recipe}"
    paths = [p for p in readmes(recipe) if marker in p.read_text("utf-8")]
    if not paths:
        raise UserError(
            f"{readmes(recipe)[0]}: no place for the tables; mark one by the lines "
            f"'{marker} -->' and '<!-- end -->'"
        )
    for path in paths:
        text = updated_readme(path, recipe, results)
        if text != path.read_text("utf-8"):
            with atomic_open(path) as stream:
                stream.write(text)
    return paths
