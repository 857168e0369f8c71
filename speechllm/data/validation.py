"""Validation of data dirs by the rules of Kaldi's ``utils/validate_data_dir.sh``.

Tables are sorted, ids are unique and the same in all tables, utterance ids begin with
the speaker; in addition each utterance has a language.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from speechllm.audio.sources import archive_file
from speechllm.data.kaldi_table import (
    TRANSLATION_TABLE,
    iterate_table,
    parse_segment,
    speaker_groups,
    table_paths,
)
from speechllm.utils.errors import UserError

_MAX_PROBLEMS_PER_FILE = 20


def validate_data_dir(
    directory: str | Path,
    check_files: bool = True,
    allow_pipes: bool = False,
) -> list[str]:
    """Return the problems of a data dir; each message begins with file and line.

    Empty transcripts are valid here; filtering drops and lists them.

    Args:
        directory: the data dir.
        check_files: also check that each audio file of ``wav.scp`` exists.
        allow_pipes: accept commands in ``wav.scp``.
    """
    directory = Path(directory)
    paths = table_paths(directory)
    problems = [
        f"{directory / name}: the table is missing"
        for name in ("wav.scp", "utt2spk", "utt2lang", "text", "spk2utt")
        if not (directory / name).is_file()
    ]
    if problems:
        return problems
    checks: list[Callable[[], Iterator[str]]] = [
        lambda: _check_wav_scp(directory / "wav.scp", check_files, allow_pipes),
        lambda: _check_speakers(directory),
        lambda: _check_languages(directory / "utt2lang"),
    ]
    if "utt2dur" in paths:
        checks.append(lambda: _check_durations(directory / "utt2dur"))
    if "utt2num_samples" in paths:
        checks.append(lambda: _check_num_samples(directory / "utt2num_samples"))
    if "segments" in paths:
        checks.append(lambda: _check_segments(directory))
    else:
        paths["wav.scp"] = directory / "wav.scp"
    for name in paths:
        if name != "utt2spk":
            subset = bool(TRANSLATION_TABLE.match(name))
            checks.append(
                lambda name=name, subset=subset: _compare_ids(
                    directory / "utt2spk", directory / name, subset
                )
            )
    for check in checks:
        found = 0
        try:
            for problem in check():
                if problem not in problems:
                    problems.append(problem)
                    found += 1
                if found == _MAX_PROBLEMS_PER_FILE:
                    problems.append("… and more of the same type")
                    break
        except UserError as error:
            if str(error) not in problems:
                problems.append(str(error))
    return problems


def check_data_dir(
    directory: str | Path, check_files: bool = True, allow_pipes: bool = False
) -> None:
    """Raise UserError with the first problem of a data dir, if it has any."""
    problems = validate_data_dir(directory, check_files, allow_pipes)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}")


def _check_wav_scp(path: Path, check_files: bool, allow_pipes: bool) -> Iterator[str]:
    empty = True
    for number, (key, value) in enumerate(iterate_table(path), 1):
        empty = False
        if not value:
            yield f"{path}:{number}: recording {key} has no file"
        elif value.endswith("|"):
            if not allow_pipes:
                yield f"{path}:{number}: recording {key} is a command, not a file"
        elif check_files and not os.path.isfile(value):
            archive = archive_file(value)
            if archive is None or not os.path.isfile(archive):
                yield f"{path}:{number}: the file of {key} does not exist: {value}"
    if empty:
        yield f"{path}: the table has no entries"


def _check_speakers(directory: Path) -> Iterator[str]:
    path = directory / "utt2spk"
    last = ""
    for number, (key, speaker) in enumerate(iterate_table(path), 1):
        if len(speaker.split()) != 1:
            yield f"{path}:{number}: utterance {key} needs exactly one speaker"
        elif speaker < last:
            yield (
                f"{path}:{number}: speaker {speaker} comes after {last}; begin "
                "utterance ids with the speaker, so that both have the same order"
            )
        last = speaker
    speakers = speaker_groups(path)
    wanted = next(speakers, None)
    path = directory / "spk2utt"
    for number, (speaker, value) in enumerate(iterate_table(path), 1):
        while wanted is not None and wanted[0] < speaker:
            yield f"{path}: speaker {wanted[0]} of utt2spk is missing"
            wanted = next(speakers, None)
        if wanted is None or speaker < wanted[0]:
            yield f"{path}:{number}: speaker {speaker} is not in utt2spk"
            continue
        utterances = value.split()
        if len(utterances) != len(wanted[1]):
            yield (
                f"{path}:{number}: speaker {speaker} has {len(utterances)} utterances "
                f"here and {len(wanted[1])} in utt2spk"
            )
        elif set(utterances) != set(wanted[1]):
            yield (
                f"{path}:{number}: speaker {speaker} has other utterances here than "
                "in utt2spk"
            )
        wanted = next(speakers, None)
    while wanted is not None:
        yield f"{path}: speaker {wanted[0]} of utt2spk is missing"
        wanted = next(speakers, None)


def _check_languages(path: Path) -> Iterator[str]:
    for number, (key, language) in enumerate(iterate_table(path), 1):
        if not re.fullmatch("[a-z]{2,3}", language):
            yield (
                f"{path}:{number}: {language!r} is not a language code of 2 or 3 "
                f"letters (utterance {key})"
            )


def _check_durations(path: Path) -> Iterator[str]:
    for number, (key, seconds) in enumerate(iterate_table(path), 1):
        number_form = re.fullmatch(r"[0-9]+(\.[0-9]*)?(e[+-]?[0-9]+)?", seconds)
        if not number_form or not 0 < float(seconds) < math.inf:
            yield f"{path}:{number}: {seconds!r} is not a duration (utterance {key})"


def _check_num_samples(path: Path) -> Iterator[str]:
    for number, (key, samples) in enumerate(iterate_table(path), 1):
        if not re.fullmatch("[0-9]{1,15}", samples) or not int(samples):
            yield (
                f"{path}:{number}: {samples!r} is not a number of samples (utterance "
                f"{key})"
            )


def _check_segments(directory: Path) -> Iterator[str]:
    path = directory / "segments"
    recordings = {key for key, _ in iterate_table(directory / "wav.scp")}
    for number, (key, value) in enumerate(iterate_table(path), 1):
        try:
            recording, start, end = parse_segment(value)
        except ValueError:
            yield (
                f"{path}:{number}: utterance {key}: expected <recording> <start> <end>"
            )
            continue
        if recording not in recordings:
            yield f"{path}:{number}: recording {recording} of {key} is not in wav.scp"
        if not 0 <= start < end < math.inf:
            yield f"{path}:{number}: utterance {key} lasts from {start:g} to {end:g} s"


def _compare_ids(base: Path, other: Path, subset: bool) -> Iterator[str]:
    """Yield the differences between the ids of two tables.

    Args:
        subset: ``other`` may lack ids of ``base``.
    """
    expected = ((key, n) for n, (key, _) in enumerate(iterate_table(base), 1))
    found = ((key, n) for n, (key, _) in enumerate(iterate_table(other), 1))
    left, right = next(expected, None), next(found, None)
    while left or right:
        if right is None or (left is not None and left[0] < right[0]):
            if not subset:
                yield (
                    f"{base}:{left[1]}: utterance {left[0]} has no line in {other.name}"
                )
            left = next(expected, None)
        elif left is None or right[0] < left[0]:
            yield f"{other}:{right[1]}: utterance {right[0]} is not in {base.name}"
            right = next(found, None)
        else:
            left, right = next(expected, None), next(found, None)
