"""Kaldi-style data directories: read, write, check, filter, combine, split.

A data dir holds tables, one entry a line, ``<id> <value>``, sorted by the bytes of
the id (``LC_ALL=C sort``), ids unique, UTF-8, LF:

=================  ==========================================================
``wav.scp``        recording → audio file (or ``command |``, where allowed)
``segments``       optional; utterance → recording, start, end (seconds).
                   Without it, utterances are recordings
``utt2spk``        utterance → speaker, and its inverse ``spk2utt``
``utt2lang``       utterance → two-letter code of the language spoken
``text``           utterance → transcript, in the language spoken
``text.<lang>``    utterance → translation into <lang>, for some utterances
``utt2speed``      optional; factor that formatting plays the utterance at
``utt2dur``        optional; seconds
``utt2num_samples``  optional; samples of the formatted audio
``dropped.tsv``    id, stage, reason, detail of all that was left out so far
=================  ==========================================================

A million utterances have to pass in a minute and in little memory, so tables are
streamed in step with each other, which their order makes possible, and at most a set
of ids is held.
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from speechllm.data.kaldi_table import (
    DROPPED,
    TRANSLATION_TABLE,
    Dropped,
    durations_and_texts,
    iterate_table,
    read_dropped,
    table_line,
    table_paths,
    write_dropped,
    write_stream,
    write_table,
)
from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_directory, atomic_open


def write_data_dir(
    directory: str | Path,
    tables: Mapping[str, Mapping[str, str]],
    dropped: Iterable[Dropped] = (),
) -> None:
    """Write a whole data dir at once from dicts, one per table; adds ``spk2utt``."""
    with atomic_directory(directory) as new:
        fill_data_dir(new, tables, dropped)


def fill_data_dir(
    folder: Path,
    tables: Mapping[str, Mapping[str, str]],
    dropped: Iterable[Dropped] = (),
) -> None:
    """Write a data dir's tables into an empty folder; adds ``spk2utt``."""
    for name, table in tables.items():
        write_table(folder / name, table)
    write_spk2utt(folder)
    write_dropped(folder, dropped)


def write_spk2utt(directory: Path) -> None:
    """Write ``spk2utt`` as the inverse of ``utt2spk``."""
    utterances = defaultdict(list)
    for utterance, speaker in iterate_table(directory / "utt2spk"):
        utterances[speaker].append(utterance)
    with atomic_open(directory / "spk2utt") as stream:
        for speaker in sorted(utterances):
            stream.write(table_line(speaker, " ".join(utterances[speaker])))


def select_utterances(
    source: str | Path,
    target: str | Path,
    keep: Callable[[str], bool],
    dropped: Iterable[Dropped] = (),
) -> int:
    """Copy a data dir with only the utterances that ``keep`` accepts; count them.

    ``dropped`` is added to the source's list. The target appears whole or not at all
    and may be the source itself.
    """
    source = Path(source)
    paths = table_paths(source)
    count = 0
    with atomic_directory(target) as new:
        recordings = set() if "segments" in paths else None
        for name, path in paths.items():
            with open(new / name, "w", encoding="utf-8", newline="\n") as stream:
                for key, value in iterate_table(path):
                    if not keep(key):
                        continue
                    stream.write(table_line(key, value))
                    count += name == "utt2spk"
                    if name == "segments":
                        recordings.add(value.split(None, 1)[0])
        wanted = keep if recordings is None else recordings.__contains__
        with open(new / "wav.scp", "w", encoding="utf-8", newline="\n") as stream:
            for key, value in iterate_table(source / "wav.scp"):
                if wanted(key):
                    stream.write(table_line(key, value))
        write_spk2utt(new)
        write_dropped(new, [*read_dropped(source), *dropped])
    return count


# --- operations ---------------------------------------------------------------------


def filter_data_dir(
    source: str | Path,
    target: str | Path,
    min_seconds: float = 0.0,
    max_seconds: float = float("inf"),
    min_text_length: int = 1,
    max_text_length: float = float("inf"),
) -> tuple[int, list[Dropped]]:
    """Leave out utterances that are too short or long, or whose text is.

    Lengths of text are in characters of the transcript. Durations come from
    ``utt2num_samples``, else ``utt2dur``, else ``segments``.

    Returns:
        The number of utterances kept, and what was dropped (also in ``dropped.tsv``).
    """
    dropped = []
    for key, seconds, text in durations_and_texts(Path(source)):
        if not seconds >= min_seconds:  # also when it is NaN
            reason, detail = "too short", f"{seconds:.2f} s < {min_seconds:g} s"
        elif seconds > max_seconds:
            reason, detail = "too long", f"{seconds:.2f} s > {max_seconds:g} s"
        elif not text:
            reason, detail = "empty text", ""
        elif len(text) < min_text_length:
            reason, detail = "text too short", f"{len(text)} < {min_text_length}"
        elif len(text) > max_text_length:
            reason, detail = "text too long", f"{len(text)} > {max_text_length}"
        else:
            continue
        dropped.append(Dropped(key, "filter", reason, detail))
    gone = {entry.id for entry in dropped}
    kept = select_utterances(source, target, lambda key: key not in gone, dropped)
    if kept == 0:
        raise UserError(
            f"{source}: nothing passes the filter; see the reasons in "
            f"{Path(target) / DROPPED}"
        )
    return kept, dropped


def perturb_speed(
    source: str | Path, target: str | Path, factors: Iterable[float]
) -> None:
    """Write a data dir that holds each utterance once per speed factor.

    Factor 1 keeps ids; factor 0.9 makes utterance ``sp0.9-<utt>`` of speaker
    ``sp0.9-<spk>``, as Kaldi does, also of those that were left out so far.
    ``utt2speed`` tells the formatting stage.
    """
    factors = list(factors)
    if len(set(factors)) != len(factors) or any(factor <= 0 for factor in factors):
        raise UserError(f"speed factors must be positive and differ: {factors}")
    source = Path(source)
    paths = table_paths(source)
    if "utt2speed" in paths:
        raise UserError(f"{source}: the speeds are perturbed already (utt2speed)")
    segmented = "segments" in paths
    with atomic_directory(target) as new:
        for name, path in {**paths, "wav.scp": source / "wav.scp"}.items():
            if name == "utt2num_samples":
                continue  # formatting counts them anew
            if name == "wav.scp" and segmented:
                write_stream(new / name, iterate_table(path))
                continue
            change = _CHANGE_WITH_SPEED.get(name, lambda value, factor: value)
            tables = [_at_speed(path, factor, change) for factor in factors]
            write_stream(new / name, heapq.merge(*tables))
        speeds = [
            _at_speed(source / "utt2spk", factor, lambda value, factor: f"{factor:g}")
            for factor in factors
        ]
        write_stream(new / "utt2speed", heapq.merge(*speeds))
        write_spk2utt(new)
        gone = read_dropped(source)
        write_dropped(
            new,
            (
                replace(entry, id=_speed_prefix(factor) + entry.id)
                for factor in factors
                for entry in gone
            ),
        )


def combine_data_dirs(sources: Iterable[str | Path], target: str | Path) -> int:
    """Merge data dirs into one and count the utterances.

    All must have the same tables, except translations, which may cover a part. If
    some have ``segments``, the others' utterances become whole-file segments only
    through formatting: combine such dirs after it.
    """
    sources = [Path(source) for source in sources]
    names = [set(table_paths(source)) for source in sources]
    everywhere = {
        name for name in set.union(*names) if not TRANSLATION_TABLE.match(name)
    }
    for source, present in zip(sources, names):
        if missing := everywhere - present:
            raise UserError(
                f"{source}: has no {min(missing)}, which another of the data "
                "dirs to combine has"
            )
    count = 0
    with atomic_directory(target) as new:
        for name in sorted(set.union(*names)):
            tables = [
                iterate_table(source / name)
                for source, present in zip(sources, names)
                if name in present
            ]
            written = write_stream(new / name, heapq.merge(*tables), name)
            count = written if name == "utt2spk" else count
        scps = [iterate_table(source / "wav.scp") for source in sources]
        write_stream(new / "wav.scp", heapq.merge(*scps), same_twice=True)
        write_spk2utt(new)
        write_dropped(new, [entry for s in sources for entry in read_dropped(s)])
    return count


def subset_data_dir(
    source: str | Path,
    target: str | Path,
    count: int | None = None,
    ids: Iterable[str] | None = None,
    seed: int = 0,
) -> int:
    """Keep ``count`` utterances drawn at random (by ``seed``), or those named.

    Raises:
        UserError: an id is not in the data dir, or there are fewer than ``count``.
    """
    everything = [key for key, _ in iterate_table(Path(source) / "utt2spk")]
    if ids is not None:
        chosen = set(ids)
        if unknown := chosen.difference(everything):
            raise UserError(f"{source}: has no utterance {min(unknown)}")
    else:
        if count is None or not 0 < count <= len(everything):
            raise UserError(
                f"{source}: cannot take {count} of {len(everything)} utterances"
            )
        chosen = set(random.Random(seed).sample(everything, count))
    return select_utterances(source, target, chosen.__contains__)


def split_table(path: str | Path, outputs: list[str | Path]) -> list[int]:
    """Split a table into consecutive parts of nearly equal size; return the sizes."""
    if not outputs:
        raise UserError(f"{path}: cannot split into no parts")
    with open(path, "rb") as stream:
        total = sum(1 for _ in stream)
    if total < len(outputs):
        raise UserError(f"{path}: cannot split {total} lines into {len(outputs)} parts")
    bounds = [total * part // len(outputs) for part in range(len(outputs) + 1)]
    table = iterate_table(path)
    for output, (first, last) in zip(outputs, pairwise(bounds)):
        with atomic_open(output) as stream:
            for _ in range(last - first):
                stream.write(table_line(*next(table)))
    return [last - first for first, last in pairwise(bounds)]


def _speed_prefix(factor: float) -> str:
    return "" if factor == 1 else f"sp{factor:g}-"


_CHANGE_WITH_SPEED = {
    "utt2spk": lambda value, factor: _speed_prefix(factor) + value,
    "utt2dur": lambda value, factor: f"{float(value) / factor:.3f}",
}


def _at_speed(
    path: Path, factor: float, change: Callable[[str, float], str]
) -> Iterator[tuple[str, str]]:
    prefix = _speed_prefix(factor)
    for key, value in iterate_table(path):
        yield prefix + key, change(value, factor)
