"""What the sets of a recipe hold and what was left out of them: a table, a picture."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from speechllm.data.kaldi_table import (
    iterate_table,
    join_tables,
    read_dropped,
    table_paths,
    translation_languages,
    utterance_seconds,
)
from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES
from speechllm.utils.io import atomic_open

_COLUMNS = ["set", "language", "utterances", "hours", "speakers", "mean s", "max s"]
_COLUMNS += ["characters", "tokens", "dropped"]
_NOTE = (
    "Lengths are in seconds. Tokens are what white space parts, or characters in "
    "languages written without it. `→ de` counts translations into German. A set "
    "with several speeds has each utterance once for each.\n"
)


@dataclass(frozen=True)
class SetStatistics:
    """One data dir, counted.

    Attributes:
        name: of the set.
        languages: rows of :func:`speechllm.data.statistics.statistics`, the last for all.
        translations: rows ``target``, ``utterances``, ``characters``, ``words``.
        dropped: reason → utterances that were left out for it.
    """

    name: str
    languages: list[dict]
    translations: list[dict]
    dropped: Counter[str]

    @property
    def dropped_share(self) -> float:
        """Share of the corpus's utterances that were left out, 0 to 1."""
        gone = self.dropped.total()
        return gone / max(gone + self.languages[-1]["utterances"], 1)


def describe_sets(directories: Iterable[str | Path]) -> list[SetStatistics]:
    """Count data dirs; the set's name is that of its folder.

    Raises:
        UserError: a table is damaged, or durations are unknown.
    """
    return [
        SetStatistics(
            directory.name,
            statistics(directory),
            _count_translations(directory),
            _count_dropped(directory),
        )
        for directory in map(Path, directories)
    ]


def write_statistics(sets: list[SetStatistics], output: Path | None = None) -> str:
    """Return the table in Markdown; write it and the picture where ``output`` is set.

    Args:
        sets: from :func:`describe_sets`.
        output: path without ending, of ``<output>.md`` and ``<output>.png``.
    """
    table = statistics_markdown(sets)
    if output is None:
        return table
    with atomic_open(output.with_name(f"{output.name}.md")) as stream:
        stream.write(f"{table}\n{_NOTE}\n![lengths and losses]({output.name}.png)\n")
    draw_statistics(sets, output.with_name(f"{output.name}.png"))
    return table


def statistics_markdown(sets: list[SetStatistics]) -> str:
    """The table, and a line on each reason for which something was left out."""
    lines = [_line(_COLUMNS), _line(["---", "---", *["---:"] * (len(_COLUMNS) - 2)])]
    for entry in sets:
        rows = entry.languages if len(entry.languages) > 2 else entry.languages[:1]
        for row in rows:
            last = row is rows[-1]
            lines.append(_line(_language_cells(entry, row, last)))
        lines += [_line(_translation_cells(entry, row)) for row in entry.translations]
    reasons = [
        f"- {entry.name}: {count} {reason}\n"
        for entry in sets
        for reason, count in entry.dropped.most_common()
    ]
    if reasons:
        lines += ["\nLeft out, and why:\n\n", *reasons]
    return "".join(lines)


def draw_statistics(sets: list[SetStatistics], path: Path) -> None:
    """Draw each set: hours by length of utterance, and the share left out by reason."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.4 * len(sets)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(sets), 2, squeeze=False)
    for (left, right), entry in zip(panels, sets, strict=True):
        total = entry.languages[-1]
        lengths = total["lengths"]
        # every utterance of a bar lasts half a second more than its whole seconds
        hours = [count * (second + 0.5) / 3600 for second, count in lengths.items()]
        left.bar([second + 0.5 for second in lengths], hours, width=0.9)
        left.set_title(
            f"{entry.name}: {total['utterances']:,} utterances, "
            f"{total['minutes'] / 60:.1f} h"
        )
        left.set_xlabel("length of the utterance (s)")
        left.set_ylabel("hours")
        whole = total["utterances"] + entry.dropped.total()
        reasons = entry.dropped.most_common()[::-1]
        right.barh(
            [reason for reason, _ in reasons],
            [100 * count / max(whole, 1) for _, count in reasons],
            color="C1",
        )
        right.set_title(f"left out: {entry.dropped_share:.2%}")
        right.set_xlabel("% of the utterances")
        if not reasons:
            right.set_axis_off()
    with atomic_open(path, "wb") as stream:
        figure.savefig(stream, format="png", dpi=100)


def _count_translations(directory: Path) -> list[dict]:
    """Count translations by the language they are written in."""
    rows = []
    for target in translation_languages(directory):
        row = Counter(utterances=0, characters=0, words=0)
        for _, text in iterate_table(directory / f"text.{target}"):
            row["utterances"] += 1
            row["characters"] += len(text)
            row["words"] += len(text.split())
        rows.append({"target": target, **row})
    return rows


def _count_dropped(directory: Path) -> Counter[str]:
    """Count utterances by the first reason for which they went.

    Entries of utterances that stayed (with one translation less, say) do not count.
    """
    reasons: dict[str, str] = {}
    for entry in read_dropped(directory):
        reasons.setdefault(entry.id, entry.reason)
    if reasons:
        for key, _ in iterate_table(directory / "utt2spk"):
            reasons.pop(key, None)
    return Counter(reasons.values())


def _language_cells(entry: SetStatistics, row: dict, with_dropped: bool) -> list[str]:
    language = "all" if row["language"] == "*" else row["language"]
    dropped = f"{entry.dropped.total()} ({entry.dropped_share:.2%})"
    return [
        entry.name,
        language,
        str(row["utterances"]),
        f"{row['minutes'] / 60:.2f}",
        str(row["speakers"]),
        f"{60 * row['minutes'] / max(row['utterances'], 1):.2f}",
        f"{row['max_seconds']:.2f}",
        str(row["characters"]),
        _tokens(row, language),
        dropped if with_dropped else "",
    ]


def _translation_cells(entry: SetStatistics, row: dict) -> list[str]:
    target = row["target"]
    cells = [entry.name, f"→ {target}", str(row["utterances"]), *[""] * 4]
    return [*cells, str(row["characters"]), _tokens(row, target), ""]


def _tokens(row: dict, language: str) -> str:
    kind = "characters" if language in LANGUAGES_WITHOUT_SPACES else "words"
    return str(row[kind])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def statistics(directory: str | Path) -> list[dict]:
    """Count what a data dir holds per language spoken, and in all (``*``).

    Returns:
        For each language ``language``, ``utterances``, ``speakers``, ``minutes``,
        ``max_seconds``, ``characters`` and ``words`` (as white space parts them) of
        the transcripts, and ``lengths``: whole seconds → utterances as long.
    """
    directory = Path(directory)
    paths = table_paths(directory)
    rows: dict[str, _Count] = defaultdict(_Count)
    for key, row in join_tables(paths, "utt2spk"):
        seconds, text = utterance_seconds(directory, key, row), row.get("text", "")
        rows[row.get("utt2lang", "?")].add(seconds, row["utt2spk"], text)
    everything = _Count()
    for count in rows.values():
        everything.merge(count)
    return [
        {"language": language, **count.row()}
        for language, count in [*sorted(rows.items()), ("*", everything)]
    ]


@dataclass
class _Count:
    """Sums over utterances."""

    utterances: int = 0
    seconds: float = 0.0
    max_seconds: float = 0.0
    characters: int = 0
    words: int = 0
    speakers: set[str] = field(default_factory=set)
    lengths: Counter[int] = field(default_factory=Counter)

    def add(self, seconds: float, speaker: str, text: str) -> None:
        self.utterances += 1
        self.seconds += seconds
        self.max_seconds = max(self.max_seconds, seconds)
        self.characters += len(text)
        self.words += len(text.split())
        self.speakers.add(speaker)
        self.lengths[int(seconds)] += 1

    def merge(self, other: _Count) -> None:
        self.utterances += other.utterances
        self.seconds += other.seconds
        self.max_seconds = max(self.max_seconds, other.max_seconds)
        self.characters += other.characters
        self.words += other.words
        self.speakers |= other.speakers
        self.lengths += other.lengths

    def row(self) -> dict:
        return {
            "utterances": self.utterances,
            "minutes": self.seconds / 60,
            "speakers": len(self.speakers),
            "max_seconds": self.max_seconds,
            "characters": self.characters,
            "words": self.words,
            "lengths": self.lengths,
        }
