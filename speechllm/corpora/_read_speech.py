"""Data dirs of corpora with one sentence per audio file, written line by line.

All tables of a set are written in parallel from utterances sorted by id, which may be a
stream.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from speechllm.data.data_dir import write_spk2utt
from speechllm.data.kaldi_table import DATA_DIR, Dropped, open_tables, write_dropped
from speechllm.utils.errors import UserError
from speechllm.utils.folders import atomic_directory

STAGE = "prepare_data"
_TABLES = ("wav.scp", "utt2spk", "utt2lang", "text")


@dataclass(frozen=True, order=True, slots=True)
class Utterance:
    """One sentence: its id, audio file, speaker and transcript."""

    id: str
    path: str
    speaker: str
    text: str


def write_sets(
    sets: Mapping[Path, tuple[Iterable[Utterance], list[Dropped]]], language: str
) -> dict[str, tuple[int, list[Dropped]]]:
    """Write data dirs whose utterances are whole files, all or none.

    Args:
        sets: data dir -> its utterances sorted by id, and the dropped ones.
        language: two-letter code of the spoken language.

    Returns:
        For each data dir's name, the number of utterances and the dropped ones.

    Raises:
        UserError: an id occurs twice, or a set has no utterance.
    """
    results = {}
    with ExitStack() as stack:
        for directory, (utterances, dropped) in sets.items():
            new = stack.enter_context(atomic_directory(directory, DATA_DIR))
            count = _write_utterances(new, utterances, language)
            if count == 0:
                raise UserError(f"{directory}: no utterance is left{_first(dropped)}")
            write_spk2utt(new)
            write_dropped(new, dropped)
            results[directory.name] = count, dropped
    return results


def _write_utterances(
    folder: Path, utterances: Iterable[Utterance], language: str
) -> int:
    """Write all tables in parallel; return the number of utterances."""
    count, previous = 0, ""
    with open_tables(folder, _TABLES) as write:
        for one in utterances:
            if one.id == previous:
                raise UserError(
                    f"{one.path}: the utterance {one.id} is listed twice; keep one of "
                    "its lines in the corpus's list"
                )
            previous = one.id
            write(one.id, (one.path, one.speaker, language, one.text))
            count += 1
    return count


def check_root(root: str | Path, name: str, wanted: str) -> Path:
    """Return the corpus's folder after checking that it is the right one.

    Args:
        root: the folder that the user gave.
        name: name of the corpus, for error messages.
        wanted: a file or folder that it must contain.

    Raises:
        UserError: the folder or ``wanted`` does not exist; lists what the folder
            contains.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; give the folder of {name}")
    if not (root / wanted).exists():
        there = ", ".join(sorted(path.name for path in root.iterdir())[:5])
        raise UserError(
            f"{root / wanted}: not found; give the folder of {name} that contains "
            f"{wanted}; {root} contains: {there or 'nothing'}"
        )
    return root


def summary(directory: str | Path, count: int, dropped: Iterable[Dropped]) -> str:
    """Return one line with a data dir's number of utterances and dropped ones."""
    reasons = Counter(entry.reason for entry in dropped)
    left_out = ", ".join(
        f"{number} {reason}" for reason, number in sorted(reasons.items())
    )
    return f"{directory}: {count} utterances" + (
        f"; left out: {left_out}" if left_out else ""
    )


def _first(dropped: list[Dropped]) -> str:
    if not dropped:
        return ""
    entry = dropped[0]
    return f" ({entry.id}: {entry.reason}{': ' if entry.detail else ''}{entry.detail})"
