"""Kaldi data dirs: writing, filtering, combining, subsets and speed perturbation.

A data dir contains tables with one entry ``<id> <value>`` per line, sorted by the
bytes of the id (``LC_ALL=C sort``), with unique ids, UTF-8, LF. The format is Kaldi's
(https://kaldi-asr.org/doc/data_prep.html) with some more tables:

=================  ==========================================================
``wav.scp``        recording → audio file (or ``command |``, where allowed)
``segments``       optional; utterance → recording, start, end (seconds).
                   Without it, utterances are recordings
``utt2spk``        utterance → speaker, and its inverse ``spk2utt``
``utt2lang``       utterance → two-letter code of the spoken language
``text``           utterance → transcript, in the spoken language
``text.<lang>``    utterance → translation into <lang>, for some utterances
``utt2speed``      optional; speed factor, applied by formatting
``utt2dur``        optional; seconds
``utt2num_samples``  optional; samples of the formatted audio
``dropped.tsv``    id, stage, reason, detail, maybe language of all that is left out
=================  ==========================================================

A million utterances should take a minute and little memory. Therefore sorted tables
are streamed in parallel, and at most a set of ids is kept in memory.
"""

from __future__ import annotations

import heapq
import random
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from os.path import realpath
from pathlib import Path

from speechllm.data.kaldi_table import (
    DATA_DIR,
    DROPPED,
    TRANSLATION_TABLE,
    Dropped,
    IdCheck,
    durations_and_texts,
    iterate_table,
    read_dropped,
    required_tables,
    speaker_groups,
    table_line,
    write_dropped,
    write_stream,
    write_table,
)
from speechllm.utils.errors import UserError
from speechllm.utils.folders import atomic_directory
from speechllm.utils.io import atomic_open
from speechllm.utils.schema import check_options, number


def write_data_dir(
    directory: str | Path,
    tables: Mapping[str, Mapping[str, str]],
    dropped: Iterable[Dropped] = (),
) -> None:
    """Write a data dir atomically from one dict per table; add ``spk2utt``."""
    with atomic_directory(directory, DATA_DIR) as new:
        fill_data_dir(new, tables, dropped)


def fill_data_dir(
    folder: Path,
    tables: Mapping[str, Mapping[str, str]],
    dropped: Iterable[Dropped] = (),
) -> None:
    """Write the tables of a data dir into an empty folder; add ``spk2utt``."""
    for name, table in tables.items():
        write_table(folder / name, table)
    write_spk2utt(folder)
    write_dropped(folder, dropped)


def write_spk2utt(directory: Path, origin: str | Path | None = None) -> None:
    """Write ``spk2utt`` as the inverse of ``utt2spk``.

    Args:
        directory: a new data dir.
        origin: data dir that ``utt2spk`` was copied from, for the message.

    Raises:
        UserError: the speaker of an utterance is not one word.
    """
    with atomic_open(directory / "spk2utt") as stream:
        for speaker, utterances in speaker_groups(directory / "utt2spk"):
            if len(speaker.split()) != 1:
                raise UserError(
                    f"{origin or directory}/utt2spk: utterance {utterances[0]} needs "
                    f"exactly one speaker, found {reprlib.repr(speaker)}"
                )
            stream.write(table_line(speaker, " ".join(utterances)))


def select_utterances(
    source: str | Path,
    target: str | Path,
    keep: Callable[[str], bool],
    dropped: Iterable[Dropped] = (),
) -> int:
    """Copy the utterances of a data dir that ``keep`` accepts.

    The target is written atomically and may be the source itself, if this project wrote
    it.

    Args:
        dropped: entries to add to those of the source.

    Returns:
        The number of utterances.

    Raises:
        UserError: a table is missing or damaged, or lacks utterances that another has.
    """
    source = Path(source)
    paths = required_tables(source, "utt2spk")
    count, ids = 0, IdCheck()
    inputs = [] if realpath(source) == realpath(target) else [source]
    with atomic_directory(target, DATA_DIR, inputs) as new:
        recordings = set() if "segments" in paths else None
        for name, path in paths.items():
            with open(new / name, "w", encoding="utf-8", newline="\n") as stream:
                for key, value in ids.watch(name, iterate_table(path)):
                    if not keep(key):
                        continue
                    stream.write(table_line(key, value))
                    count += name == "utt2spk"
                    if name == "segments":
                        recordings.add(value.split(None, 1)[0])
        wanted = keep if recordings is None else recordings.__contains__
        with open(new / "wav.scp", "w", encoding="utf-8", newline="\n") as stream:
            table = iterate_table(source / "wav.scp")
            if recordings is None:
                table = ids.watch("wav.scp", table)
            for key, value in table:
                if wanted(key):
                    stream.write(table_line(key, value))
        ids.require_same(source)
        write_spk2utt(new, source)
        write_dropped(new, [*read_dropped(source), *dropped])
    return count


def filter_data_dir(
    source: str | Path,
    target: str | Path,
    min_seconds: float = 0.0,
    max_seconds: float = float("inf"),
    min_text_length: int = 1,
    max_text_length: float = float("inf"),
) -> tuple[int, list[Dropped]]:
    """Drop utterances with too short or too long audio or text.

    Lengths of text are in characters of the transcript; with ``min_text_length`` 0
    empty ones stay, as in test sets. Durations come from
    ``utt2num_samples``, else ``utt2dur``, else ``segments``.

    Returns:
        The number of utterances kept, and the dropped ones (also in ``dropped.tsv``).

    Raises:
        UserError: no utterance is left, durations are unknown, or a limit is negative
            or NaN.
    """
    limits = {
        "min_seconds": min_seconds,
        "max_seconds": max_seconds,
        "min_text_length": min_text_length,
        "max_text_length": max_text_length,
    }
    limit = number(least=0, infinite=True)
    check_options(limits, dict.fromkeys(limits, limit), "filter")
    dropped = []
    for key, seconds, text in durations_and_texts(Path(source)):
        if not seconds >= min_seconds:  # NaN included
            reason, detail = "too short", f"{seconds:.2f} s < {min_seconds:g} s"
        elif seconds > max_seconds:
            reason, detail = "too long", f"{seconds:.2f} s > {max_seconds:g} s"
        elif not text and min_text_length > 0:
            reason, detail = "empty text", ""
        elif len(text) < min_text_length:
            reason, detail = "text too short", f"{len(text)} < {min_text_length}"
        elif len(text) > max_text_length:
            reason, detail = "text too long", f"{len(text)} > {max_text_length}"
        else:
            continue
        dropped.append(Dropped(key, "filter", reason, detail))
    removed = {entry.id for entry in dropped}
    kept = select_utterances(source, target, lambda key: key not in removed, dropped)
    if kept == 0:
        raise UserError(
            f"{source}: no utterance passes the filter; see the reasons in "
            f"{Path(target) / DROPPED}"
        )
    return kept, dropped


def perturb_speed(
    source: str | Path, target: str | Path, factors: Iterable[float]
) -> None:
    """Write a data dir with each utterance once per speed factor.

    Factor 1 keeps ids; factor 0.9 gives utterance ``sp0.9-<utt>`` of speaker
    ``sp0.9-<spk>``, as in Kaldi, also in ``dropped.tsv``. Formatting applies the
    factors, which are in ``utt2speed``.

    Raises:
        UserError: a factor is not from 0.1 to 10 or is repeated, or the data dir has
            speed factors already.
    """
    factors = list(factors)
    if len(set(factors)) != len(factors) or not all(0.1 <= f <= 10 for f in factors):
        raise UserError(f"speed factors {factors}: different numbers from 0.1 to 10")
    source = Path(source)
    paths = required_tables(source, "utt2spk")
    ids = IdCheck()
    if "utt2speed" in paths:
        raise UserError(f"{source}: speed is perturbed already (utt2speed)")
    segmented = "segments" in paths
    with atomic_directory(target, DATA_DIR, [source]) as new:
        for name, path in {**paths, "wav.scp": source / "wav.scp"}.items():
            if name == "utt2num_samples":
                continue  # formatting counts the samples again
            if name == "wav.scp" and segmented:
                write_stream(new / name, iterate_table(path))
                continue
            tables = [_at_speed(path, factor) for factor in factors]
            write_stream(new / name, ids.watch(name, heapq.merge(*tables)))
        ids.require_same(source)
        speeds = [_speeds(source / "utt2spk", factor) for factor in factors]
        write_stream(new / "utt2speed", heapq.merge(*speeds))
        write_spk2utt(new, source)
        entries = read_dropped(source)
        write_dropped(
            new,
            (
                replace(entry, id=_speed_prefix(factor) + entry.id)
                for factor in factors
                for entry in entries
            ),
        )


def combine_data_dirs(sources: Iterable[str | Path], target: str | Path) -> int:
    """Merge data dirs into one.

    All must have the same tables, except translations, which may be missing in some.
    Data dirs with and without ``segments`` can be combined after formatting only.

    Returns:
        The number of utterances.

    Raises:
        UserError: a table is missing in one of the data dirs or lacks utterances, or
            an id is repeated.
    """
    sources = [Path(source) for source in sources]
    names = [set(required_tables(source, "utt2spk")) for source in sources]
    everywhere = {
        name for name in set.union(*names) if not TRANSLATION_TABLE.match(name)
    }
    for source, present in zip(sources, names):
        if missing := everywhere - present:
            raise UserError(
                f"{source}: has no {min(missing)}, which another of the data "
                "dirs to combine has"
            )
    count, ids = 0, IdCheck()
    places = ", ".join(map(str, sources))
    with atomic_directory(target, DATA_DIR, sources) as new:
        for name in sorted(set.union(*names)):
            tables = [
                iterate_table(source / name)
                for source, present in zip(sources, names)
                if name in present
            ]
            entries = ids.watch(name, heapq.merge(*tables))
            written = write_stream(new / name, entries, name)
            count = written if name == "utt2spk" else count
        scps = [iterate_table(source / "wav.scp") for source in sources]
        entries = heapq.merge(*scps)
        if "segments" not in everywhere:
            entries = ids.watch("wav.scp", entries)
        write_stream(new / "wav.scp", entries, same_twice=True)
        ids.require_same(places)
        write_spk2utt(new, places)
        write_dropped(new, [entry for s in sources for entry in read_dropped(s)])
    return count


def subset_data_dir(
    source: str | Path,
    target: str | Path,
    count: int | None = None,
    ids: Iterable[str] | None = None,
    seed: int = 0,
) -> int:
    """Write ``count`` random utterances (by ``seed``), or those with given ids.

    Returns:
        The number of utterances.

    Raises:
        UserError: an id is not in the data dir, or there are fewer than ``count``
            utterances.
    """
    utterances = [key for key, _ in iterate_table(Path(source) / "utt2spk")]
    if ids is not None:
        chosen = set(ids)
        if unknown := chosen.difference(utterances):
            raise UserError(f"{source}: has no utterance {min(unknown)}")
    else:
        if count is None or not 0 < count <= len(utterances):
            raise UserError(
                f"{source}: cannot take {count} of {len(utterances)} utterances"
            )
        chosen = set(random.Random(seed).sample(utterances, count))
    return select_utterances(source, target, chosen.__contains__)


def split_table(path: str | Path, outputs: list[str | Path]) -> list[int]:
    """Split a table into consecutive parts of nearly equal size; return the sizes.

    Raises:
        UserError: there are more parts than entries, or no parts, or an output is the
            table itself.
    """
    if not outputs:
        raise UserError(f"{path}: cannot split into no parts")
    with open(path, "rb") as stream:
        total = sum(1 for _ in stream)
    if same := [out for out in outputs if realpath(out) == realpath(path)]:
        raise UserError(f"{same[0]}: is the table to split; name another output")
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


def _at_speed(path: Path, factor: float) -> Iterator[tuple[str, str]]:
    """Yield the entries of a table with ids, speakers and durations at a speed."""
    prefix = _speed_prefix(factor)
    for key, value in iterate_table(path):
        if path.name == "utt2spk":
            value = prefix + value
        elif path.name == "utt2dur":
            value = f"{float(value) / factor:.3f}"
        yield prefix + key, value


def _speeds(path: Path, factor: float) -> Iterator[tuple[str, str]]:
    """Yield the entries of ``utt2speed`` for the ids of a table."""
    for key, _ in iterate_table(path):
        yield _speed_prefix(factor) + key, f"{factor:g}"
