"""Audio formatting: cut and resample the audio of a data dir, one file per utterance.

The sorted utterances are split into shards of a thousand. The files of a shard are in
``<output>/audio/<shard>/``. Once it is complete, ``<output>/audio/<shard>.tsv`` records
the result of each utterance, after a fingerprint of all inputs. A re-run skips shards
with a valid fingerprint: it resumes a killed stage, and repeats only shards with
changed inputs.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from speechllm.audio.io import (
    MAX_OVERSHOOT_SECONDS,
    SAMPLING_RATE,
    audio_info,
    can_seek,
    change_speed,
    cut_seconds,
    encode_audio,
    load_audio,
)
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
from speechllm.utils.errors import UserError, describe_error
from speechllm.utils.folders import (
    FolderKind,
    claim_directory,
    read_marker,
    require_own_files,
    write_marker,
)
from speechllm.utils.io import atomic_open
from speechllm.utils.names import safe_file_name

SHARD_SIZE = 1000
AUDIO_FORMATS = ("flac", "wav")
_RECORD = ".tsv"  # suffix of the list of a shard's results
FORMATTED = FolderKind("formatted data dir", (f"audio/00000{_RECORD}",))
AUDIO = FolderKind("folder of formatted audio", (f"00000{_RECORD}",))
_FORMAT_VERSION = "2"  # raise it when the written samples change
_WARN_ABOVE = 0.1  # share of failed utterances
_NOTES_SHOWN = 10


@dataclass(frozen=True)
class Cut:
    """Source of an utterance.

    Attributes:
        utterance: id.
        source: recording, see :func:`~speechllm.audio.io.load_audio`.
        start, end: seconds of the recording; None for all of it.
        speed: speed factor.
    """

    utterance: str
    source: str
    start: float | None
    end: float | None
    speed: float


@dataclass(frozen=True)
class Shard:
    """The cuts of a shard, and the folder and format of its audio files."""

    cuts: list[Cut]
    folder: Path
    audio_format: str
    allow_pipes: bool
    debug: bool = False
    clamp_segments: bool = False

    @property
    def record(self) -> Path:
        """File with the results, next to the folder."""
        return self.folder.with_suffix(_RECORD)


def format_audio(
    source: str | Path,
    target: str | Path,
    jobs: int = 1,
    audio_format: str = "flac",
    allow_pipes: bool = False,
    debug: bool = False,
    clamp_segments: bool = False,
) -> tuple[int, list[Dropped]]:
    """Write each utterance of a data dir as a 16 kHz mono file.

    Segments are cut and ``utt2speed`` is applied. Utterances with unreadable audio are
    left out of all tables of ``target`` and listed in its ``dropped.tsv``. Signals that
    were mended or are silent are reported in notes on standard output.

    Args:
        source: a valid data dir.
        target: data dir to write; the audio is in ``target/audio``.
        jobs: number of processes.
        audio_format: ``flac`` or ``wav``, 16 bit.
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
    if {"\t", "\n", "\r"} & set(str(target)):
        raise UserError(
            f"{str(target)!r}: tables cannot hold a path with a tab or a line break; "
            "name another folder"
        )
    check_data_dir(source, check_files=False, allow_pipes=allow_pipes)
    marker = read_marker(target)
    if marker is not None:
        require_own_files(target, marker, _written_tables(source))
    claim_directory(target, FORMATTED, [source])
    claim_directory(target / "audio", AUDIO, [source])
    _remove_tables(target, marker.files if marker else None)
    shards = list_shards(
        source, target / "audio", audio_format, allow_pipes, debug, clamp_segments
    )
    records = _run_shards(shards, jobs, _count_utterances(source))
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
    share = len(failed_ids) / (kept + len(failed_ids))
    if share > _WARN_ABOVE:
        print(f"warning: {share:.0%} of {source} could not be read")
    return kept, failed


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


def write_shard(shard: Shard) -> Path:
    """Write the audio and the record of a shard unless they are up to date.

    The first line of the record is the fingerprint; the others are tab-separated:
    ``ok <utterance> <path> <samples> [<note>]`` or ``dropped <utterance> <reason>
    <detail>``. A note tells what was mended in the signal.

    Returns:
        The path of the record.
    """
    fingerprint = _fingerprint(shard)
    if _first_line(shard.record) == fingerprint:
        return shard.record
    shard.record.unlink(missing_ok=True)
    shutil.rmtree(shard.folder, ignore_errors=True)
    shard.folder.mkdir(parents=True)
    lines = [fingerprint]
    recordings = _Recordings(shard)
    caught = (UserError,) if shard.debug else (Exception,)
    for cut in shard.cuts:
        stem = cut.utterance.replace("%", "%25")
        path = shard.folder / safe_file_name(stem, f".{shard.audio_format}")
        try:
            samples = change_speed(recordings.read(cut), cut.speed)
            if len(samples) == 0:
                raise UserError(f"{cut.source}: the segment has no samples")
        except caught as error:
            detail = describe_error(error)
            lines.append(f"dropped\t{cut.utterance}\tunreadable audio\t{detail}")
            continue
        _write_file(path, encode_audio(samples, shard.audio_format, SAMPLING_RATE))
        notes = "".join(f"\t{' '.join(note.split())}" for note in recordings.notes)
        lines.append(f"ok\t{cut.utterance}\t{path}\t{len(samples)}{notes}")
    with atomic_open(shard.record) as stream:
        stream.write("\n".join(lines) + "\n")
    return shard.record


def read_record(path: Path) -> tuple[list[tuple[str, str, int]], list[Dropped]]:
    """Read a record: [(utterance, path, number of samples)] and the failures."""
    written, failed = [], []
    with open(path, encoding="utf-8") as stream:
        next(stream)
        for line in stream:
            kind, utterance, *rest = line.rstrip("\n").split("\t")
            if kind == "ok":
                written.append((utterance, rest[0], int(rest[1])))
            else:
                failed.append(Dropped(utterance, "format_audio", *rest))
    return written, failed


def print_notes(records: Iterable[Path]) -> None:
    """Print what was mended or is suspicious, with the number of utterances."""
    counts: Counter[str] = Counter()
    for record in records:
        with open(record, encoding="utf-8") as stream:
            for line in stream:
                if line.startswith("ok\t"):
                    counts.update(line.rstrip("\n").split("\t")[4:])
    for number, (note, count) in enumerate(counts.items()):
        if number == _NOTES_SHOWN:
            rest = len(counts) - number
            print(f"note: {rest} more in the fifth column of audio/*.tsv")
            break
        print(f"note: {note} (utterances: {count})")


class _Recordings:
    """Reader of cuts; caches the last recording that does not support seeking."""

    def __init__(self, shard: Shard) -> None:
        self.allow_pipes = shard.allow_pipes
        self.clamp_segments = shard.clamp_segments
        self.name: str | None = None
        self.samples = np.zeros(0, np.float32)
        self.notes: list[str] = []  # about the last cut and its recording
        self.recording_notes: list[str] = []
        self.error: Exception | None = None

    def read(self, cut: Cut) -> np.ndarray:
        """Return the samples (samples,) of a cut at 16 kHz and original speed.

        Raises:
            UserError: the audio cannot be read.
        """
        options = {"allow_pipes": self.allow_pipes}
        if cut.end is None or can_seek(cut.source):
            self.name, self.notes = None, []
            report = self.notes.append
            end = cut.end
            if self.clamp_segments and end is not None:
                end = self._clamp(cut, audio_info(cut.source).seconds)
            return load_audio(cut.source, cut.start, end, report=report, **options)
        if self.name != cut.source:
            self.name, self.error, self.recording_notes = cut.source, None, []
            options["report"] = self.recording_notes.append
            try:
                self.samples = load_audio(cut.source, **options)
            except Exception as error:  # raised for each cut of the recording
                self.error = error
        if self.error is not None:
            raise self.error
        self.notes, end = list(self.recording_notes), cut.end
        if self.clamp_segments:
            end = self._clamp(cut, len(self.samples) / SAMPLING_RATE)
        return cut_seconds(
            self.samples[:, None], SAMPLING_RATE, cut.start, end, cut.source
        )[:, 0]

    def _clamp(self, cut: Cut, seconds: float) -> float | None:
        """Return the end of a cut, or that of its recording if that is earlier."""
        if cut.end is None or not (cut.start or 0) < seconds < cut.end:
            return cut.end
        if cut.end > seconds + MAX_OVERSHOOT_SECONDS:
            self.notes.append("the segment ends after its recording and was cut there")
        return seconds


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


def _count_utterances(source: Path) -> int:
    return sum(1 for _ in iterate_table(source / "utt2spk"))


def _fingerprint(shard: Shard) -> str:
    """Hash all inputs of a shard, including size and time of its sources."""
    clamped = " clamped" if shard.clamp_segments else ""
    head = f"{_FORMAT_VERSION} {shard.audio_format}{clamped}"
    digest = hashlib.sha256(head.encode())
    states = {}
    for cut in shard.cuts:
        if cut.source not in states:
            states[cut.source] = _file_state(cut.source)
        digest.update(f"{cut} {states[cut.source]}\n".encode())
    return digest.hexdigest()


def _file_state(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # a pipe, an archive position, or a missing file
        return None
    return status.st_size, status.st_mtime_ns


def _first_line(path: Path) -> str | None:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.readline().rstrip("\n")
    except FileNotFoundError:
        return None


def _write_file(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:  # the error of a full disk lacks the path
        raise OSError(error.errno, error.strerror, str(path)) from None


def _run_shards(shards: Iterable[Shard], jobs: int, total: int) -> list[Path]:
    """Write all shards in ``jobs`` processes; return their records in order."""
    from tqdm import tqdm

    records = []
    with tqdm(total=total, unit="utt", desc="format audio", mininterval=1) as progress:
        if jobs <= 1:
            for shard in shards:
                records.append(write_shard(shard))
                progress.update(len(shard.cuts))
            return records
        # spawn, not fork: tqdm and the caller may have threads
        pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))
        try:
            running = {}
            for shard in shards:
                running[pool.submit(write_shard, shard)] = len(shard.cuts)
                if len(running) >= 2 * jobs:
                    _collect(running, records, progress)
            while running:
                _collect(running, records, progress)
        except BrokenProcessPool:
            raise UserError(
                "a process that formats audio was killed, perhaps for lack of memory; "
                "run again with fewer jobs (finished shards are kept)"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
    return sorted(records)


def _collect(running: dict, records: list[Path], progress) -> None:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        records.append(future.result())
        progress.update(running.pop(future))


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
    for record in audio_folder.glob(f"*{_RECORD}"):
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
            for utterance, path, samples in read_record(record)[0]:
                scp.write(table_line(utterance, path))
                lengths.write(table_line(utterance, str(samples)))
                count += 1
    return count
