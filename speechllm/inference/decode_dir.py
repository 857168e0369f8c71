"""Decode dirs: the hypotheses of an example dir, written so that a re-run resumes.

``hypotheses.<shard>.jsonl`` holds a digest of the settings, then one line for each
example: ``{"id", "text", …}``. When every example has its line, all shards are joined
to ``text`` and the other Kaldi tables, and their times of decoding to ``rtf.json``.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from speechllm.text.tasks import Task
from speechllm.utils.errors import UserError, describe_error, is_out_of_memory
from speechllm.utils.folders import FolderKind, claim_directory
from speechllm.utils.io import (
    atomic_open,
    name_full_disk,
    previous_name,
    write_json,
)
from speechllm.utils.names import utf8_name

if TYPE_CHECKING:
    from tqdm import tqdm

DECODE_DIR = FolderKind("decode dir", ("hypotheses.*.jsonl",))
PROGRESS_SECONDS = 1.0  # at most one progress line in this time

TIMING_FILE = "rtf.json"
#: Fields of a line that are needed after decoding; n-best lists are far larger.
_KEPT = frozenset({"text", "transcript", "flags", "failed"})
_KEPT |= {"audio_seconds", "decoding_seconds", "device"}

#: Decode some inputs; the second argument is called when an example is finished.
DecodeFunction = Callable[[list[str], list, Callable[[int], object]], list[dict]]


@dataclass(frozen=True)
class Timing:
    """Measurement of the real-time factor.

    Attributes:
        device: hardware, precision and batch size.
        audio_seconds: returns the duration of an input.
    """

    device: str
    audio_seconds: Callable[[Any], float]

    def add(self, lines: Sequence[dict], inputs: Sequence, seconds: float) -> None:
        """Add to each line its share of the time of its queue, by duration."""
        durations = [self.audio_seconds(given) for given in inputs]
        pace = seconds / max(sum(durations), 1e-9)
        for line, duration in zip(lines, durations, strict=True):
            line["audio_seconds"] = round(duration, 6)
            line["decoding_seconds"] = round(duration * pace, 6)
            line["device"] = self.device


def read_hypotheses(path: Path, key: str) -> dict[str, dict]:
    """Read the hypotheses of an earlier run; none if its settings were different.

    These are renamed, see :func:`~speechllm.utils.io.previous_name`. An incomplete last
    line, left by a kill, is removed from the file.

    Args:
        path: ``hypotheses.<shard>.jsonl``.
        key: digest of the settings.

    Returns:
        Example id to line, without n-best list and tokens.
    """
    if not path.exists():
        return {}
    whole, settings = 0, None
    found: dict[str, dict] = {}
    with open(path, "rb") as stream:
        for raw in stream:
            try:
                line = json.loads(raw)
            except ValueError:
                break
            if not raw.endswith(b"\n"):
                break
            if whole:
                found[line["id"]] = _kept(line)
            else:
                settings = line.get("settings")
            whole += len(raw)
    if settings != key:
        path.replace(previous_name(path))
        return {}
    if whole < path.stat().st_size:
        os.truncate(path, whole)
    return found


def _kept(line: dict) -> dict:
    return {name: line[name] for name in _KEPT & line.keys()}


def read_finished(output_dir: Path, key: str) -> dict[str, dict]:
    """Read the hypotheses of all shards with these settings.

    Other shards may be writing: what follows their last line end is left out.

    Returns:
        Example id to line, without n-best list and tokens.
    """
    found: dict[str, dict] = {}
    for path in sorted(output_dir.glob("hypotheses.*.jsonl")):
        with open(path, encoding="utf-8") as stream:
            for number, raw in enumerate(stream):
                try:
                    line = json.loads(raw) if raw.endswith("\n") else {}
                except ValueError:  # left by a crash; the shard's re-run removes it
                    break
                if number == 0 and line.get("settings") != key:
                    break
                if number and line:
                    _add(found, line["id"], _kept(line))
    return found


def _add(found: dict[str, dict], name: str, line: dict) -> None:
    """Add a line; of several for an example, one that has not failed stays."""
    if not line.get("failed") or name not in found:
        found[name] = line


def write_hypotheses(
    path: Path,
    key: str,
    resumed: bool,
    queues: Iterable[Sequence[str]],
    tasks: Mapping[str, Task],
    load: Callable[[str], object],
    decode: DecodeFunction,
    debug: bool = False,
    timing: Timing | None = None,
) -> None:
    """Append the hypothesis of every example, flushed to disk queue by queue.

    An example that cannot be read or decoded gets an empty text and a line in
    ``failed.<shard>.tsv``. If a queue raises an error, its examples are decoded one by
    one.

    Args:
        path: ``hypotheses.<shard>.jsonl``.
        key: digest of the settings, for the first line of a new file.
        resumed: append to the lines of an earlier run.
        queues: ids of the examples that are decoded together.
        tasks: task of each example of the whole set, of which a shard decodes some.
        load: returns the input of an example.
        decode: returns the lines of the examples with these inputs.
        debug: raise unexpected errors of an example, which are bugs, instead of
            listing them.
        timing: how decoding is timed; None where the inputs are texts.

    Raises:
        UserError: no example of the whole set could be decoded.
    """
    from tqdm import tqdm

    queues = [list(queue) for queue in queues]
    failed = path.with_name(path.name.replace("hypotheses", "failed"))
    failed = failed.with_suffix(".tsv")
    failed.unlink(missing_ok=True)
    total = sum(map(len, queues))
    bar = tqdm(total=total, unit="utt", desc=str(path), mininterval=5)
    report = ProgressReport(bar)
    caught = UserError if debug else Exception
    with (
        name_full_disk(path),
        closing(bar),
        open(path, "a" if resumed else "w", encoding="utf-8") as stream,
    ):
        if not resumed:
            _write_line(stream, {"settings": key})
        for queue in queues:
            names, inputs = [], []
            for name in queue:
                try:
                    inputs.append(load(name))
                    names.append(name)
                except caught as error:
                    _write_failure(stream, failed, name, tasks[name], error)
            found = _decode(decode, names, inputs, report.finished, caught, timing)
            for name, line in zip(names, found, strict=True):
                if isinstance(line, Exception):
                    _write_failure(stream, failed, name, tasks[name], line)
                else:
                    _write_line(stream, {"id": name, **line})
            stream.flush()
            os.fsync(stream.fileno())
            report.queue_done(len(queue))
    if failed.exists():
        failures = failed.read_text("utf-8").splitlines()
        if len(failures) == len(tasks):
            reason = failures[0].partition("\t")[2]
            raise UserError(
                f"none of {len(failures)} utterances can be decoded: {reason}"
            )
        print(f"{len(failures)} of {total} utterances failed: {failed}")


def _decode(
    decode: DecodeFunction,
    names: list[str],
    inputs: list,
    on_finished: Callable[[int], object],
    caught: type[Exception],
    timing: Timing | None,
) -> list[dict | Exception]:
    """Return the line of each example, or its error of class ``caught``."""
    if not names:
        return []
    begin = time.perf_counter()
    try:
        lines = list(decode(names, inputs, on_finished))
    except caught as error:
        if is_out_of_memory(error):
            raise
        if len(names) == 1:
            return [error]
    else:
        if timing is not None:
            timing.add(lines, inputs, time.perf_counter() - begin)
        return [*lines]
    found: list[dict | Exception] = []
    for name, given in zip(names, inputs, strict=True):
        found += _decode(decode, [name], [given], lambda _: None, caught, timing)
    return found


def write_tables(output_dir: Path, ids: Sequence[str], key: str) -> None:
    """Write ``text``, the other Kaldi tables and ``rtf.json``.

    They are written if the shards together have all hypotheses.
    """
    found = read_finished(output_dir, key)
    if not set(ids) <= set(found):
        return
    _write_timing(output_dir / TIMING_FILE, [found[name] for name in ids])
    tables: dict[str, dict[str, str]] = {"text.transcript": {}, "flags": {}, "text": {}}
    for name in sorted(ids):
        entry = found[name]
        tables["text"][name] = entry["text"]
        if "transcript" in entry:
            tables["text.transcript"][name] = entry["transcript"]
        if entry.get("flags"):
            tables["flags"][name] = " ".join(entry["flags"])
    for table, lines in tables.items():  # text last: it marks the set as complete
        if not lines:
            (output_dir / table).unlink(missing_ok=True)
            continue
        with atomic_open(output_dir / table) as stream:
            for name, value in lines.items():
                stream.write(f"{name} {value}".rstrip() + "\n")


def pool_decode_dirs(sources: Sequence[str | Path], output_dir: str | Path) -> int:
    """Write the hypotheses of several decode dirs, such as those of folds, into one.

    Returns:
        The number of hypotheses.

    Raises:
        UserError: a decode dir is not complete, or two have the same example.
    """
    entries: dict[str, dict] = {}
    for source in map(Path, sources):
        if not (source / "text").is_file():
            raise UserError(f"{source}: no file text; finish the decoding first")
        found = _finished_hypotheses(source)
        for line in (source / "text").read_text("utf-8").splitlines():
            name = line.split(" ", 1)[0]
            if name in entries:
                raise UserError(f"{source}: {name} is also in another decode dir")
            if name not in found:
                raise UserError(
                    f"{source}: {name} is not in hypotheses.*.jsonl; decode it again"
                )
            entries[name] = found[name]
    folder = claim_directory(output_dir, DECODE_DIR, sources)
    key = "pooled"
    with atomic_open(folder / "hypotheses.1.jsonl") as stream:
        _write_line(stream, {"settings": key})
        for name in sorted(entries):
            _write_line(stream, entries[name])
    write_tables(folder, list(entries), key)
    return len(entries)


def _finished_hypotheses(folder: Path) -> dict[str, dict]:
    """Read the lines of all shards with the settings of the first shard."""
    found: dict[str, dict] = {}
    first = None
    for path in sorted(folder.glob("hypotheses.*.jsonl")):
        with open(path, encoding="utf-8") as stream:
            try:
                settings = json.loads(stream.readline())["settings"]
                first = first or settings
                if settings == first:
                    for line in map(json.loads, stream):
                        _add(found, line["id"], line)
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path}: damaged; decode this set again") from None
    return found


def _write_timing(path: Path, entries: Sequence[dict]) -> None:
    """Sum the times of the lines that have one; without any there is no file."""
    timed = [entry for entry in entries if "decoding_seconds" in entry]
    if not timed:
        path.unlink(missing_ok=True)
        return
    devices = Counter(entry["device"] for entry in timed)
    content = {
        "examples": len(timed),
        "seconds": round(sum(entry["decoding_seconds"] for entry in timed), 6),
        "audio_seconds": round(sum(entry["audio_seconds"] for entry in timed), 6),
        "devices": [device for device, _ in devices.most_common()],
    }
    write_json(path, content)


class ProgressReport:
    """Progress of the decoding, which advances with every finished utterance.

    Args:
        bar: of all utterances.
        stream: to which lines are printed; None: standard output.
    """

    def __init__(self, bar: tqdm, stream: TextIO | None = None):
        self.bar, self.stream = bar, stream
        self.done, self.printed = 0, time.monotonic()

    def finished(self, index: int) -> None:
        """Count an utterance of the queue."""
        self.bar.update(1)
        now = time.monotonic()
        if now - self.printed >= PROGRESS_SECONDS:
            self.printed = now
            print(self.line(), file=self.stream, flush=True)

    def queue_done(self, size: int) -> None:
        """Count the utterances of the queue that were not counted one by one."""
        self.done += size
        self.bar.update(self.done - self.bar.n)
        self.printed = time.monotonic()
        print(self.line(), file=self.stream, flush=True)

    def line(self) -> str:
        """Return e.g. ``progress: 32/152 utterances, about 1 min left``."""
        bar = self.bar
        seconds = max(bar.format_dict["elapsed"], 1e-3)
        left = (bar.total - bar.n) * seconds / max(bar.n, 1) / 60
        return f"progress: {bar.n}/{bar.total} utterances, about {left:.0f} min left"


def _write_line(stream: TextIO, line: dict[str, Any]) -> None:
    stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def _write_failure(
    stream: TextIO, failed: Path, name: str, task: Task, error: Exception
) -> None:
    """Write an empty hypothesis, and the reason into the list of failures."""
    with open(failed, "a", encoding="utf-8") as report:
        report.write(f"{name}\t{utf8_name(describe_error(error))}\n")
    line = {"id": name, "text": "", "failed": True}
    if task.name == "asr_st":
        line["transcript"] = ""
    _write_line(stream, line)
