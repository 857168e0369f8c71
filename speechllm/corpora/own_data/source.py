"""Reading of a user's own data in any format; lengths and alignments of recordings."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from speechllm.corpora.own_data.audio_folder import read_folder
from speechllm.corpora.own_data.items import (
    Item,
    ReadOptions,
    Source,
    file_version,
    set_of,
    set_of_file,
)
from speechllm.corpora.own_data.kaldi_lhotse import is_cut_set, read_cuts, read_kaldi
from speechllm.corpora.own_data.manifest import MANIFEST_SUFFIXES, read_manifest
from speechllm.data.kaldi_table import Dropped
from speechllm.utils.errors import UserError

_OVERSHOOT = 0.5  # seconds that a segment may end after its recording


def read_source(data: Path, options: ReadOptions) -> Source:
    """Read the input, in the format that it has.

    Raises:
        UserError: there is no such file or folder, or nothing in it can be read.
    """
    if not data.exists():
        raise UserError(f"{data}: no such file or folder; give your data with --data")
    if data.is_file():
        return _join([(data, _reader(data))], options)
    if (data / "wav.scp").is_file():
        return _join([(data, read_kaldi)], options)
    parts = [
        (path, read_kaldi)
        for path in sorted(data.iterdir())
        if set_of(path.name) and (path / "wav.scp").is_file()
    ]
    if not parts:
        parts = [(path, _reader(path)) for path in _find_lists(data)]
    return _join(parts or [(data, read_folder)], options)


def measure(source: Source) -> list[Item]:
    """Return the items with the lengths of their recordings.

    Recordings that cannot be read, and segments outside of their recording, are listed
    as dropped.
    """
    from tqdm import tqdm

    names = sorted({item.audio for item in source.items if item.seconds is None})
    problems: dict[str, str] = {}

    def length(name: str) -> float | None:
        from speechllm.audio.io import audio_info, seconds_by_header

        if name.endswith("|"):
            return None
        try:
            seconds = seconds_by_header(name)
            return audio_info(name).seconds if seconds is None else seconds
        except UserError as error:
            problems[name] = str(error)
            return None

    with ThreadPoolExecutor(8) as pool:
        found = tqdm(
            pool.map(length, names),
            "read lengths",
            len(names),
            unit="file",
            mininterval=5,
        )
        seconds = dict(zip(names, found, strict=True))
    kept = []
    for item in source.items:
        if item.audio in problems:
            source.drop(item.name, "unreadable audio", problems[item.audio])
            continue
        length_ = item.seconds if item.seconds is not None else seconds[item.audio]
        if item.start is None and item.end is None:
            kept.append(replace(item, seconds=length_))
            continue
        start, end = item.start or 0.0, item.end if item.end is not None else length_
        if end is None:
            source.drop(item.name, "segment without an end", item.origin)
        elif length_ is not None and (start >= length_ or end > length_ + _OVERSHOOT):
            times = f"{start:.2f} to {end:.2f} s of {length_:.2f} s"
            source.drop(
                item.name, "segment outside of the audio", f"{item.origin}: {times}"
            )
        else:
            end = end if length_ is None else min(end, length_)
            kept.append(replace(item, start=start, end=end, seconds=length_))
    return kept


def too_long(item: Item, max_seconds: float) -> bool:
    """Return True for a whole recording that is too long for one utterance."""
    return item.start is None and (item.seconds or 0.0) > max_seconds


def apply_alignments(source: Source, path: Path) -> None:
    """Replace recordings by their aligned segments, and add CTC's error rates.

    Of several rows the last one counts. Rows of a file that has changed do not.

    Args:
        path: output of ``speechllm.bin.align_recordings``, one JSON object per line.
    """
    segments: dict[tuple[str, str], list[dict]] = defaultdict(list)
    errors: dict[tuple, float] = {}
    with open(path, encoding="utf-8") as stream:
        for number_, line in enumerate(stream, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                raise UserError(
                    f"{path}:{number_}: damaged; remove the file, and run stage 1 again"
                ) from None
            if "file" in row and row["file"] != file_version(row["audio"]):
                continue
            if "segments" in row:
                segments[row["audio"], row["text"]] = row["segments"]
            elif "ctc_error" in row:
                key = (row["audio"], row["start"], row["end"], row["text"])
                errors[key] = row["ctc_error"]
                if row["start"] is None:  # it is no longer too long
                    segments.pop((row["audio"], row["text"]), None)
    items = []
    for item in source.items:
        own = segments.get((item.audio, item.text))
        if own is None or item.start is not None:
            key = (item.audio, item.start, item.end, item.text)
            items.append(replace(item, ctc_error=errors.get(key)))
            continue
        source.notes.append(f"{item.origin}: aligned, {len(own)} segments")
        items += [
            replace(
                item,
                name=f"{item.name}-{place:05d}",
                text=one["text"],
                start=one["start"],
                end=one["end"],
                ctc_error=one["ctc_error"],
                translation="",
            )
            for place, one in enumerate(own, 1)
        ]
    source.items = items


def _reader(path: Path) -> Callable[[Path, ReadOptions], Source]:
    """Return the reader of a file.

    Raises:
        UserError: it has another format.
    """
    if path.name.endswith((".jsonl", ".jsonl.gz")) and is_cut_set(path):
        return read_cuts
    if path.suffix.lower() in MANIFEST_SUFFIXES:
        return read_manifest
    raise UserError(
        f"{path}: not a manifest ({', '.join(MANIFEST_SUFFIXES)}) or a CutSet "
        "(.jsonl.gz); give one of them, or the folder of your audio files"
    )


def _find_lists(folder: Path) -> list[Path]:
    """Return the manifests or CutSets of a folder, one for each set."""
    suffixes = (*MANIFEST_SUFFIXES, ".jsonl.gz")
    found = [
        path
        for path in sorted(folder.iterdir())
        if path.name.lower().endswith(suffixes) and path.is_file() and set_of_file(path)
    ]
    if not found:
        found = [
            path
            for path in sorted(folder.rglob("metadata.*"))
            if path.suffix.lower() in MANIFEST_SUFFIXES
        ]
    if not found:
        found = [
            path
            for path in sorted(folder.iterdir())
            if path.name.lower().endswith(suffixes) and path.is_file()
        ]
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UserError(
                f"{folder}: several manifests ({names}); give one of them, or name "
                "them after their sets (train.csv, dev.csv, test.csv)"
            )
    names = Counter(set_of_file(path) for path in found)
    twice = [name for name, count in names.items() if name and count > 1]
    folders = {path.parent for path in found}
    if twice and len(folders) == 1:
        same = ", ".join(path.name for path in found if set_of_file(path) == twice[0])
        raise UserError(f"{folder}: several manifests of {twice[0]} ({same}); keep one")
    return found


def _join(
    parts: Iterable[tuple[Path, Callable[[Path, ReadOptions], Source]]],
    options: ReadOptions,
) -> Source:
    sources = [read(path, options) for path, read in parts]
    joined = Source(sources[0].kind)
    for source in sources:
        joined.items += source.items
        joined.dropped += source.dropped
        joined.notes += source.notes
    if not joined.items:
        raise UserError(f"no usable utterance{first_dropped(joined.dropped)}")
    return joined


def first_dropped(dropped: Sequence[Dropped]) -> str:
    """Return the number of dropped entries and the first one, for an error."""
    if not dropped:
        return ""
    entry = dropped[0]
    detail = f": {entry.detail}" if entry.detail else ""
    return f"; left out: {len(dropped)}, first {entry.id}: {entry.reason}{detail}"
