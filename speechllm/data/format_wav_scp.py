"""Audio formatting: cut and resample the audio of a data dir (stage 3).

The sorted utterances are split into shards of a thousand
(:mod:`speechllm.data.audio_shards`). The jobs of an array, on one or several machines,
write every n-th shard (:func:`format_shards`); then :func:`format_audio` writes what is
missing, and the tables. Shards that are up to date and whole are skipped: a re-run
resumes a killed stage, repeats shards with changed inputs and repairs damaged ones.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

from speechllm.data.audio_shards import RECORD, Cut, Shard, read_record, write_shard
from speechllm.data.data_dir import write_spk2utt
from speechllm.data.kaldi_table import (
    DROPPED,
    Dropped,
    iterate_table,
    join_tables,
    parse_segment,
    read_dropped,
    read_table,
    table_line,
    table_paths,
    write_dropped,
)
from speechllm.data.validation import check_data_dir
from speechllm.utils.errors import UserError
from speechllm.utils.folders import (
    FolderKind,
    claim_directory,
    read_marker,
    require_own_files,
    write_marker,
)
from speechllm.utils.io import atomic_open

SHARD_SIZE = 1000
FORMATTED = FolderKind("formatted data dir", (f"audio/00000{RECORD}",))
AUDIO = FolderKind("folder of formatted audio", (f"00000{RECORD}",))
_WARN_ABOVE = 0.1  # share of failed utterances
_NOTES_SHOWN = 10


def format_audio(
    source: str | Path,
    target: str | Path,
    audio_format: str = "flac",
    allow_pipes: bool = False,
    debug: bool = False,
    clamp_segments: bool = False,
) -> tuple[int, list[Dropped]]:
    """Write each utterance of a data dir as 16 kHz mono audio.

    Segments are cut and ``utt2speed`` is applied. Utterances with unreadable audio are
    left out of all tables of ``target`` and listed in its ``dropped.tsv``. Signals that
    were mended or are silent are reported in notes on standard output, and so is audio
    of an earlier run that had to be written again because it was damaged.

    Args:
        source: a valid data dir.
        target: data dir to write; the audio is in ``target/audio``.
        audio_format: one of ``AUDIO_FORMATS``, 16 bit.
        allow_pipes: run commands in ``wav.scp``.
        debug: raise unexpected errors of an utterance, which are bugs, instead of
            listing them.
        clamp_segments: end segments that end after their recording at its end instead
            of dropping them. For test sets, which stay whole.

    Returns:
        The number of utterances written, and the dropped ones.

    Raises:
        UserError: the data dir is not valid, or no utterance can be read; or ``target``
            was not written by this function.
        OSError: the disk is full or cannot be written.
    """
    source, target = Path(source), Path(target)
    check_data_dir(source, check_files=False, allow_pipes=allow_pipes)
    _claim(source, target)
    shards = list_shards(
        source, target / "audio", audio_format, allow_pipes, debug, clamp_segments
    )
    finished = _write_shards(shards, sum(1 for _ in iterate_table(source / "utt2spk")))
    records = [record for record, _ in finished]
    damaged = list(chain.from_iterable(paths for _, paths in finished))
    _remove_others(target / "audio", records)
    failed = [entry for record in records for entry in read_record(record)[1]]
    failed_ids = {entry.id for entry in failed}
    failed = _with_languages(failed, source / "utt2lang")
    kept = _write_tables(source, target, records, failed_ids)
    write_dropped(target, [*read_dropped(source), *failed])
    if kept == 0:
        raise UserError(
            f"{source}: no audio could be read; {target / DROPPED} lists why, "
            f"first: {failed[0].detail or failed[0].reason}"
        )
    print_notes(records)
    _warn_of_damage(target, damaged)
    share = len(failed_ids) / (kept + len(failed_ids))
    if share > _WARN_ABOVE:
        print(f"warning: {share:.0%} of {source} could not be read")
    return kept, failed


def format_shards(
    source: str | Path,
    target: str | Path,
    job: int,
    num_jobs: int,
    audio_format: str = "flac",
    allow_pipes: bool = False,
    debug: bool = False,
    clamp_segments: bool = False,
) -> int:
    """Write the audio of every ``num_jobs``-th shard, but no tables.

    Args:
        source, target: as for :func:`format_audio`, which completes ``target``.
        job: of the array, from 1.
        num_jobs: size of the array.
        audio_format, allow_pipes, debug, clamp_segments: as for :func:`format_audio`.

    Returns:
        The number of shards.

    Raises:
        UserError: as :func:`format_audio`, or the job is not in the array.
    """
    if not 1 <= job <= num_jobs:
        raise UserError(f"job {job}: from 1 to {num_jobs}")
    source, target = Path(source), Path(target)
    _claim(source, target)
    shards = list_shards(
        source, target / "audio", audio_format, allow_pipes, debug, clamp_segments
    )
    finished = _write_shards(islice(shards, job - 1, None, num_jobs))
    _warn_of_damage(target, [path for _, paths in finished for path in paths])
    return len(finished)


def list_shards(
    source: Path,
    audio_folder: Path,
    audio_format: str,
    allow_pipes: bool,
    debug: bool = False,
    clamp_segments: bool = False,
) -> Iterator[Shard]:
    """Yield the shards of a data dir in the order of its utterances."""
    options = (audio_format, allow_pipes, debug, clamp_segments)
    cuts, number = [], 0
    for cut in _list_cuts(source):
        cuts.append(cut)
        if len(cuts) == SHARD_SIZE:
            folder = audio_folder / f"{number:05d}"
            yield Shard(cuts, folder, *options)
            cuts, number = [], number + 1
    if cuts:
        folder = audio_folder / f"{number:05d}"
        yield Shard(cuts, folder, *options)


def print_notes(records: Iterable[Path]) -> None:
    """Print what was mended or is suspicious, with the number of utterances."""
    counts: Counter[str] = Counter()
    for record in records:
        for entry in read_record(record)[0]:
            counts.update(entry.notes)
    for number, (note, count) in enumerate(counts.items()):
        if number == _NOTES_SHOWN:
            rest = len(counts) - number
            print(f"note: {rest} more in the sixth column of audio/*.tsv")
            break
        print(f"note: {note} (utterances: {count})")


def _list_cuts(source: Path) -> Iterator[Cut]:
    paths = table_paths(source)
    wanted = {"utt2speed": paths["utt2speed"]} if "utt2speed" in paths else {}
    if "segments" not in paths:
        wanted["wav.scp"] = source / "wav.scp"
        for utterance, row in join_tables(wanted, "wav.scp"):
            speed = _speed(source, utterance, row)
            yield Cut(utterance, row["wav.scp"], None, None, speed)
        return
    recordings = read_table(source / "wav.scp")
    wanted["segments"] = paths["segments"]
    for utterance, row in join_tables(wanted, "segments"):
        recording, start, end = parse_segment(row["segments"])
        if recording not in recordings:
            raise UserError(f"{source / 'wav.scp'}: no recording {recording}")
        speed = _speed(source, utterance, row)
        yield Cut(utterance, recordings[recording], start, end, speed)


def _speed(source: Path, utterance: str, row: dict[str, str]) -> float:
    value = row.get("utt2speed", "1")
    try:
        if 0.1 <= float(value) <= 10:
            return float(value)
    except ValueError:
        pass
    raise UserError(
        f"{source / 'utt2speed'}: the speed of {utterance} is {value!r}, not a factor "
        "between 0.1 and 10"
    )


def _claim(source: Path, target: Path) -> None:
    """Make the folders of a formatted data dir, and remove its earlier tables.

    Several jobs may do so at the same time.
    """
    if {"\t", "\n", "\r"} & set(str(target)):
        raise UserError(
            f"{str(target)!r}: tables cannot hold a path with a tab or a line break; "
            "name another folder"
        )
    marker = read_marker(target)
    if marker is not None:
        require_own_files(target, marker, _written_tables(source))
    claim_directory(target, FORMATTED, [source])
    claim_directory(target / "audio", AUDIO, [source])
    _remove_tables(target, marker.files if marker else None)


def _write_shards(
    shards: Iterable[Shard], total: int | None = None
) -> list[tuple[Path, list[str]]]:
    """Write shards with a progress bar; return the result of each.

    Args:
        total: number of their utterances, if it is known.
    """
    from tqdm import tqdm

    finished = []
    with tqdm(total=total, unit="utt", desc="format audio", mininterval=1) as progress:
        for shard in shards:
            finished.append(write_shard(shard))
            progress.update(len(shard.cuts))
    return finished


def _warn_of_damage(target: Path, damaged: list[str]) -> None:
    if damaged:
        print(
            f"warning: {target}: audio of {len(damaged)} utterances was missing or "
            f"damaged (first: {damaged[0]}); it was written again"
        )


def _remove_tables(target: Path, written: set[str] | None) -> None:
    """Remove the tables of an earlier run, so that a partial result has none.

    Args:
        target: a formatted data dir.
        written: its tables that formatting wrote; None if unknown (before release 0.3).
    """
    ours = {"wav.scp", "spk2utt", *table_paths(target)}
    for name in ours if written is None else ours & written:
        (target / name).unlink(missing_ok=True)


def _remove_others(audio_folder: Path, records: list[Path]) -> None:
    """Remove the shards of an earlier run that this run does not have."""
    current = set(records)
    for record in audio_folder.glob(f"*{RECORD}"):
        if record not in current and record.stem.isdecimal():
            shutil.rmtree(record.with_suffix(""), ignore_errors=True)
            record.unlink()


def _with_languages(failed: list[Dropped], utt2lang: Path) -> list[Dropped]:
    """Add the spoken languages of utterances, from ``utt2lang``."""
    wanted = {entry.id for entry in failed}
    known = {key: value for key, value in iterate_table(utt2lang) if key in wanted}
    return [replace(entry, language=known.get(entry.id, "")) for entry in failed]


def _written_tables(source: Path) -> set[str]:
    """Return the names of the tables that formatting writes."""
    skip = {"segments", "utt2speed", "utt2dur"}
    made = {"wav.scp", "spk2utt", "utt2num_samples", DROPPED}
    return made | table_paths(source).keys() - skip


def _write_tables(
    source: Path, target: Path, records: list[Path], failed_ids: set[str]
) -> int:
    """Write the tables of the target, ``wav.scp`` last; return the utterance count."""
    written = _written_tables(source)
    write_marker(target, FORMATTED, sorted(written))
    for name, path in table_paths(source).items():
        if name not in written or name == "utt2num_samples":
            continue
        with atomic_open(target / name) as stream:
            for key, value in iterate_table(path):
                if key not in failed_ids:
                    stream.write(table_line(key, value))
    write_spk2utt(target, source)
    count = 0
    with (
        atomic_open(target / "utt2num_samples") as lengths,
        atomic_open(target / "wav.scp") as scp,
    ):
        for record in records:
            for entry in read_record(record)[0]:
                scp.write(table_line(entry.utterance, entry.path))
                lengths.write(table_line(entry.utterance, str(entry.samples)))
                count += 1
    return count
