"""Statistics of data dirs, dropped utterances included: a table and a plot."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from speechllm.data.kaldi_table import (
    in_speaker_order,
    iterate_table,
    join_tables,
    read_dropped,
    required_tables,
    translation_languages,
    utterance_seconds,
)
from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES
from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_open

_COLUMNS = ["set", "language", "utterances", "hours", "speakers", "mean s", "max s"]
_COLUMNS += ["characters", "tokens", "dropped"]
_NOTE = (
    "Lengths are in seconds. Tokens are separated by white space, or are characters in "
    "languages without it. `→ de` counts translations into German. A set with several "
    "speeds has each utterance once per speed.\n"
)


@dataclass(frozen=True)
class SetStatistics:
    """Statistics of a data dir.

    Attributes:
        name: of the set.
        languages: rows of :func:`statistics`, the last one over all languages.
        translations: rows ``target``, ``utterances``, ``characters``, ``words``.
        dropped: reason → number of utterances left out.
    """

    name: str
    languages: list[dict]
    translations: list[dict]
    dropped: Counter[str]

    @property
    def dropped_share(self) -> float:
        """Share of the corpus's utterances that were left out, 0 to 1."""
        dropped = self.dropped.total()
        return dropped / max(dropped + self.languages[-1]["utterances"], 1)


def describe_sets(directories: Iterable[str | Path]) -> list[SetStatistics]:
    """Return the statistics of data dirs; the name of a set is that of its folder.

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


def statistics(directory: str | Path) -> list[dict]:
    """Count the content of a data dir per spoken language and overall (``*``).

    Returns:
        One dict per language with ``language``, ``utterances``, ``speakers``,
        ``minutes``, ``max_seconds``, ``characters`` and ``words`` (separated by white
        space) of the transcripts, and ``lengths`` (whole seconds → utterances).

    Raises:
        UserError: a table is damaged, or a duration is unknown.
    """
    directory = Path(directory)
    paths = required_tables(directory, "utt2spk")
    ordered = in_speaker_order(paths["utt2spk"])
    rows: dict[str, _Count] = defaultdict(lambda: _Count(_Speakers(ordered)))
    everything = _Count(_Speakers(ordered))
    for key, row in join_tables(paths, "utt2spk"):
        seconds, text = utterance_seconds(directory, key, row), row.get("text", "")
        rows[row.get("utt2lang", "?")].add(seconds, row["utt2spk"], text)
        everything.speakers.add(row["utt2spk"])
    for count in rows.values():
        everything.merge(count)
    return [
        {"language": language, **count.row()}
        for language, count in [*sorted(rows.items()), ("*", everything)]
    ]


def write_statistics(sets: list[SetStatistics], output: Path | None = None) -> str:
    """Return the table in Markdown; also write it and the plot if ``output`` is given.

    Args:
        sets: from :func:`describe_sets`.
        output: path of ``<output>.md`` and ``<output>.png``, without suffix.

    Raises:
        UserError: ``output`` is a folder's path.
    """
    table = statistics_markdown(sets)
    if output is not None and output.name in ("", ".."):
        raise UserError(f"{output}: a folder; name a file without its suffix in it")
    if output is None:
        return table
    with atomic_open(output.with_name(f"{output.name}.md")) as stream:
        stream.write(f"{table}\n{_NOTE}\n![lengths and losses]({output.name}.png)\n")
    draw_statistics(sets, output.with_name(f"{output.name}.png"))
    return table


def statistics_markdown(sets: list[SetStatistics]) -> str:
    """Return the table and a list of the reasons for left-out utterances."""
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
    """Plot per set the hours by utterance length and the share left out by reason."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.4 * len(sets)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(sets), 2, squeeze=False)
    for (left, right), entry in zip(panels, sets, strict=True):
        total = entry.languages[-1]
        lengths = total["lengths"]
        # a bar's utterances last half a second more than its whole seconds on average
        hours = [count * (second + 0.5) / 3600 for second, count in lengths.items()]
        left.bar([second + 0.5 for second in lengths], hours, width=0.9)
        left.set_title(
            f"{entry.name}: {total['utterances']:,} utterances, "
            f"{total['minutes'] / 60:.1f} h"
        )
        left.set_xlabel("length of the utterance (s)")
        left.set_ylabel("hours")
        all_utterances = total["utterances"] + entry.dropped.total()
        reasons = entry.dropped.most_common()[::-1]
        right.barh(
            [reason for reason, _ in reasons],
            [100 * count / max(all_utterances, 1) for _, count in reasons],
            color="C1",
        )
        right.set_title(f"left out: {entry.dropped_share:.2%}")
        right.set_xlabel("% of the utterances")
        if not reasons:
            right.set_axis_off()
    with atomic_open(path, "wb") as stream:
        figure.savefig(stream, format="png", dpi=100)


def _count_translations(directory: Path) -> list[dict]:
    """Count translations by target language."""
    rows = []
    for target in translation_languages(directory):
        row: Counter[str] = Counter(utterances=0, characters=0, words=0)
        for _, text in iterate_table(directory / f"text.{target}"):
            row["utterances"] += 1
            row["characters"] += len(text)
            row["words"] += len(text.split())
        rows.append({"target": target, **row})
    return rows


def _count_dropped(directory: Path) -> Counter[str]:
    """Count dropped utterances by their first reason.

    Entries of utterances that are still in the set (a dropped translation, say) do not
    count.
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


class _Speakers:
    """Number of different speakers, without their names if they come in order."""

    def __init__(self, ordered: bool):
        self.names: set[str] | None = None if ordered else set()
        self.last, self.count = "", 0

    def add(self, speaker: str) -> None:
        if self.names is not None:
            self.names.add(speaker)
            self.count = len(self.names)
        elif speaker != self.last:
            self.last, self.count = speaker, self.count + 1


@dataclass
class _Count:
    """Sums over the utterances of a language."""

    speakers: _Speakers
    utterances: int = 0
    seconds: float = 0.0
    max_seconds: float = 0.0
    characters: int = 0
    words: int = 0
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
        """Add the sums of another language, without its speakers."""
        self.utterances += other.utterances
        self.seconds += other.seconds
        self.max_seconds = max(self.max_seconds, other.max_seconds)
        self.characters += other.characters
        self.words += other.words
        self.lengths += other.lengths

    def row(self) -> dict:
        return {
            "utterances": self.utterances,
            "minutes": self.seconds / 60,
            "speakers": self.speakers.count,
            "max_seconds": self.max_seconds,
            "characters": self.characters,
            "words": self.words,
            "lengths": self.lengths,
        }
