"""Example dirs: formatted data dirs expanded to utterance × task × target language.

A task specification is ``asr:en`` (transcribe English), ``st:en:fr`` (translate
English speech into French) or ``asr_st:en:fr`` (both, in one output). With a weight,
``st:en:fr*2.5``, every utterance is used twice and half of them (always the same) a
third time; ``*0.5`` uses half of them. The weight of a data dir multiplies the weights
of its tasks. The tables of an example dir have the key
``<utterance>-<task>-<target language>`` (and ``-2``, ``-3`` for the repetitions):

===================  ========================================================
``wav.scp``          the utterance's audio file
``text``             the target of the task, as written (case, punctuation)
``text_ctc``         the transcript, normalised for CTC, for every task
``utt2task``         task, source language, target language
``utt2num_samples``  samples of the audio file
``utt2spk``          speaker, and its inverse ``spk2utt``
``utt2lang``         language of the speech
===================  ========================================================

The target of ``asr_st`` is transcript, tab, translation.
"""

from __future__ import annotations

import hashlib
import heapq
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from speechllm.audio.io import load_audio
from speechllm.data.data_dir import write_spk2utt
from speechllm.data.kaldi_table import (
    Dropped,
    iterate_table,
    join_tables,
    num_samples,
    open_tables,
    read_dropped,
    read_table,
    table_paths,
    translation_languages,
    write_dropped,
)
from speechllm.text.joint_target import join_texts
from speechllm.text.normalization import ctc_text
from speechllm.text.tasks import (
    Task,
    check_language,
    parse_weighted,
    split_weight,
    task_of,
)
from speechllm.utils.batching import evenly
from speechllm.utils.errors import UserError
from speechllm.utils.folders import FolderKind, atomic_directory

EXAMPLE_DIR = FolderKind("example dir", ("utt2task",))
NO_TRANSLATION = "no translation into"  # reason in dropped.tsv
_FILES = (
    "text",
    "text_ctc",
    "utt2lang",
    "utt2num_samples",
    "utt2spk",
    "utt2task",
    "wav.scp",
)


@dataclass(frozen=True)
class Example:
    """An example in memory.

    Attributes:
        name: id.
        wave: float32 samples (samples,) at 16 kHz.
        task: of the example.
        text: target.
    """

    name: str
    wave: np.ndarray
    task: Task
    text: str


def make_examples(
    sources: Iterable[str | Path],
    target: str | Path,
    tasks: Iterable[str],
    plain_transcripts: bool = False,
    keep_empty: bool = False,
) -> tuple[Counter, list[Dropped]]:
    """Write the example dir of all tasks over all data dirs.

    Args:
        sources: formatted data dirs (one audio file per utterance) without common
            utterances, with or without weights.
        target: example dir to write.
        tasks: task specifications, with or without weights.
        plain_transcripts: use the normalised transcript as target of ``asr`` and
            ``asr_st``; a few minutes of speech are too little to learn case and
            punctuation.
        keep_empty: keep utterances whose normalised transcript is empty (silence,
            ``♪ ♪``). For test sets, which score them by their insertions; training
            has no use for them.

    Returns:
        The number of examples per task (``"asr en en"``), and what was dropped (also
        in ``dropped.tsv``, after the entries of the sources): utterances without a
        translation that a task needs, and utterances with an empty normalised
        transcript.

    Raises:
        UserError: there is no task, a task is unknown or repeated, no utterance is in
            its source language, its target language has no table, a number of samples
            is none, or an id is repeated.
    """
    split = [split_weight(str(source)) for source in sources]
    weighted_sources = [(Path(source), weight) for source, weight in split]
    weighted = [parse_weighted(task) for task in tasks]
    if not weighted:
        raise UserError("no task: name at least one, such as asr:en")
    parsed = [task for task, _ in weighted]
    if repeated := [task for task, count in Counter(parsed).items() if count > 1]:
        raise UserError(f"task '{repeated[0]}' is given twice")
    _check_languages([source for source, _ in weighted_sources], parsed)
    counts: Counter[str] = Counter()
    dropped: list[Dropped] = []
    streams = []
    for source, factor in weighted_sources:
        mix = [(task, weight * factor) for task, weight in weighted]
        streams.append(
            _list_examples(source, mix, plain_transcripts, keep_empty, counts, dropped)
        )
    inputs = [source for source, _ in weighted_sources]
    with atomic_directory(target, EXAMPLE_DIR, inputs) as new:
        with open_tables(new, _FILES) as write:
            previous = ""
            for example, values in heapq.merge(*streams):
                if example == previous:
                    raise UserError(f"{target}: example {example} is in two data dirs")
                previous = example
                write(example, values)
        write_spk2utt(new, ", ".join(map(str, inputs)))
        before = [e for source, _ in weighted_sources for e in read_dropped(source)]
        write_dropped(new, [*before, *dropped])
    return counts, dropped


def read_examples(folder: str | Path, limit: int | None = None) -> list[Example]:
    """Read an example dir with its audio.

    Args:
        folder: the example dir.
        limit: maximum number of examples, evenly spaced over the sorted names.

    Raises:
        UserError: a table is missing or damaged, audio cannot be read, or there are no
            examples.
    """
    wavs, texts = (read_table(Path(folder) / n) for n in ("wav.scp", "text"))
    tasks = read_utt2task(folder)
    names = evenly(sorted(wavs), limit)
    if not names:
        raise UserError(f"{folder}: no utterances")
    if missing := [n for n in names if n not in tasks or n not in texts]:
        raise UserError(f"{folder}: {missing[0]} is not in utt2task and text")
    return [Example(n, load_audio(wavs[n]), tasks[n], texts[n]) for n in names]


def read_utt2task(folder: str | Path) -> dict[str, Task]:
    """Read the task of every example of an example dir.

    Raises:
        UserError: the table is missing, damaged or empty.
    """
    path = Path(folder) / "utt2task"
    tasks = {
        name: task_of(value, f"{path}, {name}")
        for name, value in read_table(path).items()
    }
    if not tasks:
        raise UserError(f"{path}: no example")
    return tasks


def utterance_of(example: str, task: str, target: str) -> str:
    """Return the utterance id of an example id.

    Args:
        example: ``<utterance>-<task>-<target>``, optionally followed by ``-2``.
        task: name of its task.
        target: language code of its target.
    """
    return re.sub(rf"-{re.escape(f'{task}-{target}')}(-[0-9]+)?$", "", example)


def _check_languages(sources: list[Path], tasks: list[Task]) -> None:
    spoken, written = set(), set()
    for source in sources:
        _check_tables(source)
        spoken.update(value for _, value in iterate_table(source / "utt2lang"))
        written.update(translation_languages(source))
    places = ", ".join(map(str, sources))
    for task in tasks:
        if task.source not in spoken:
            raise UserError(
                f"task '{task}': no utterance of {places} is in {task.source!r}; "
                f"spoken there: {', '.join(sorted(spoken))}"
            )
        if task.name != "asr" and task.target not in written:
            raise UserError(
                f"task '{task}': {places} has no translations into {task.target!r} "
                f"(text.{task.target}); there are: {', '.join(sorted(written))}"
            )


def _check_tables(source: Path) -> None:
    paths = table_paths(source)
    for name in ("text", "utt2lang", "utt2spk", "utt2num_samples"):
        if name not in paths:
            raise UserError(f"{source / name}: missing; format the audio first")
    if "segments" in paths:
        raise UserError(f"{source}: has segments; format the audio first")


def _list_examples(
    source: Path,
    tasks: list[tuple[Task, float]],
    plain: bool,
    keep_empty: bool,
    counts: Counter,
    dropped: list[Dropped],
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (example, values in the order of ``_FILES``), sorted by example.

    The order of examples can differ from that of utterances ("a-b" follows "a", but
    "a-b-asr-en" precedes "a-st-fr"). An example waits until the next utterance sorts
    after it, since all later ids begin with a later utterance.
    """
    waiting: list[tuple[str, tuple[str, ...]]] = []
    paths = table_paths(source)
    paths["wav.scp"] = source / "wav.scp"
    for utterance, row in join_tables(paths, "utt2spk"):
        if (value := row.get("utt2num_samples")) is not None:
            num_samples(paths["utt2num_samples"], utterance, value)
        if (language := row.get("utt2lang")) is not None:
            check_language(language, f"{paths['utt2lang']}: {utterance}")
        while waiting and waiting[0][0] <= utterance:
            yield heapq.heappop(waiting)
        for example in _examples_of(utterance, row, tasks, plain, keep_empty, dropped):
            counts[example[1][_FILES.index("utt2task")]] += 1
            heapq.heappush(waiting, example)
    while waiting:
        yield heapq.heappop(waiting)


def _examples_of(
    utterance: str,
    row: dict[str, str],
    tasks: list[tuple[Task, float]],
    plain: bool,
    keep_empty: bool,
    dropped: list[Dropped],
) -> Iterator[tuple[str, tuple[str, ...]]]:
    if "utt2lang" not in row:
        dropped.append(Dropped(utterance, "make_examples", "not in utt2lang"))
        return
    language = row["utt2lang"]
    wanted = [(task, weight) for task, weight in tasks if task.source == language]
    if not wanted:
        return
    for name in ("wav.scp", "utt2num_samples", "text"):
        if name not in row:
            dropped.append(
                Dropped(utterance, "make_examples", f"not in {name}", language=language)
            )
            return
    transcript = " ".join(row["text"].split())
    normalised = ctc_text(transcript, language)
    if not normalised and not keep_empty:
        reason = "transcript empty after normalisation"
        dropped.append(
            Dropped(utterance, "make_examples", reason, transcript, language)
        )
        return
    for task, weight in wanted:
        text = normalised if plain else transcript
        if task.name != "asr":
            translation = " ".join(row.get(f"text.{task.target}", "").split())
            silence = not normalised and f"text.{task.target}" in row
            if not translation and (not silence or task.name == "asr_st"):
                reason = f"{NO_TRANSLATION} {task.target}"
                dropped.append(Dropped(utterance, "make_examples", reason, str(task)))
                continue
            text = translation
            if task.name == "asr_st" and not transcript:
                reason = "empty text"  # the target has two
                dropped.append(Dropped(utterance, "make_examples", reason, str(task)))
                continue
            if task.name == "asr_st":
                text = join_texts(normalised if plain else transcript, translation)
        example = f"{utterance}-{task.name}-{task.target}"
        values = (
            text,
            normalised,
            language,
            row["utt2num_samples"],
            row["utt2spk"],
            str(task),
            row["wav.scp"],
        )
        for number in range(1, _repetitions(utterance, task, weight) + 1):
            yield example if number == 1 else f"{example}-{number}", values


def _repetitions(utterance: str, task: Task, weight: float) -> int:
    """Return the number of examples of an utterance and task; depends on names only."""
    digest = hashlib.sha256(f"{utterance} {task}".encode()).digest()
    chance = int.from_bytes(digest[:8], "big") / 2**64  # uniform in [0, 1)
    return int(weight + 1 - chance)
