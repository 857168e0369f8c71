"""A decode dir: the answers to an example dir, line by line, so that a second start
goes on where the first one ended.

``hypotheses.<shard>.jsonl`` has a digest of what its answers depend on, then one line
an example: ``{"id", "text", …}``. ``text`` and its siblings (Kaldi tables) are made of
all shards when every example has its line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from speechllm.data.kaldi_table import read_table
from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_open


def read_requests(examples: Path) -> dict[str, tuple[str, str, str]]:
    """Task, source and target language of every example.

    Raises:
        UserError: a line has not three of them, or there is no line.
    """
    requests = {}
    for name, value in read_table(examples / "utt2task").items():
        requests[name] = tuple(value.split())
        if len(requests[name]) != 3:
            raise UserError(
                f"{examples}/utt2task, {name}: expected '<task> <source> <target>', "
                f"found {value!r}"
            )
    if not requests:
        raise UserError(f"{examples}/utt2task: no example")
    return requests


def read_hypotheses(path: Path, key: str) -> dict[str, dict]:
    """Read the lines of an earlier start; none if they are of other settings.

    A last line that a kill cut off is removed from the file.
    """
    if not path.exists():
        return {}
    whole, lines = 0, []
    with open(path, "rb") as stream:
        for raw in stream:
            try:
                lines.append(json.loads(raw))
            except ValueError:
                break
            if not raw.endswith(b"\n"):
                lines.pop()
                break
            whole += len(raw)
    if not lines or lines[0].get("settings") != key:
        path.replace(path.with_name(path.name + ".previous"))
        return {}
    if whole < path.stat().st_size:
        os.truncate(path, whole)
    return {line["id"]: line for line in lines[1:]}


def answer_examples(
    path: Path,
    key: str,
    done: bool,
    queues: Iterable[Sequence[str]],
    requests: dict[str, tuple[str, str, str]],
    load: Callable[[str], object],
    answer: Callable[[list[str], list], list[dict]],
) -> None:
    """Append an answer to every example, flushed to disk queue by queue.

    An example that cannot be read has an empty text and a line in
    ``failed.<shard>.tsv``.

    Args:
        path: ``hypotheses.<shard>.jsonl``.
        key: what the answers depend on, for the first line of a new file.
        done: whether the file has answers to go on from.
        queues: names of examples, so many as are answered at once.
        requests: task, source and target language of each of the whole set's
            examples, of which a shard answers some.
        load: gives the input of an example.
        answer: gives the answers to examples with such inputs.

    Raises:
        UserError: no example of the whole set could be read.
    """
    from tqdm import tqdm

    queues = [list(queue) for queue in queues]
    total = sum(map(len, queues))
    failed = path.with_name(path.name.replace("hypotheses", "failed"))
    failed = failed.with_suffix(".tsv")
    failed.unlink(missing_ok=True)
    bar = tqdm(total=total, unit="utt", desc=str(path), mininterval=5)
    with open(path, "a" if done else "w", encoding="utf-8") as stream:
        if not done:
            _write_line(stream, {"settings": key})
        for queue in queues:
            names, inputs = [], []
            for name in queue:
                try:
                    inputs.append(load(name))
                    names.append(name)
                except UserError as error:
                    _write_failure(stream, failed, name, requests[name][0], error)
            for name, entry in zip(names, answer(names, inputs) if names else []):
                _write_line(stream, {"id": name, **entry})
            stream.flush()
            os.fsync(stream.fileno())
            bar.update(len(queue))
            print(_progress(bar), flush=True)
    bar.close()
    if failed.exists():
        lines = failed.read_text("utf-8").splitlines()
        if len(lines) == len(requests):
            reason = lines[0].partition("\t")[2]
            raise UserError(f"none of {len(lines)} audio files can be read: {reason}")
        print(f"{len(lines)} of {total} utterances failed: {failed}")


def collect_text(
    output_dir: Path, ids: Sequence[str], key: str, num_shards: int
) -> None:
    """Write ``text`` and its siblings (Kaldi tables) when all shards are complete."""
    found: dict[str, dict] = {}
    for shard in range(1, min(num_shards, len(ids)) + 1):  # the rest has nothing
        path = output_dir / f"hypotheses.{shard}.jsonl"
        if not path.exists():
            return
        with open(path, encoding="utf-8") as stream:
            if json.loads(stream.readline() or "{}").get("settings") != key:
                return
            for line in stream:
                if not line.endswith("\n"):
                    return  # another shard is writing it
                entry = json.loads(line)
                found[entry["id"]] = entry
    if not set(ids) <= set(found):
        return
    tables: dict[str, dict[str, str]] = {"text.transcript": {}, "flags": {}, "text": {}}
    for name in sorted(ids):
        entry = found[name]
        tables["text"][name] = entry["text"]
        if "transcript" in entry:
            tables["text.transcript"][name] = entry["transcript"]
        if entry.get("flags"):
            tables["flags"][name] = " ".join(entry["flags"])
    for table, lines in tables.items():  # text last: it says that all is there
        if not lines:
            (output_dir / table).unlink(missing_ok=True)
            continue
        with atomic_open(output_dir / table) as stream:
            for name, value in lines.items():
                stream.write(f"{name} {value}".rstrip() + "\n")


def _write_line(stream, line: dict) -> None:
    """Append one JSON line."""
    stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def _write_failure(
    stream, failed: Path, name: str, task: str, error: UserError
) -> None:
    """An empty answer to an utterance that cannot be read, and a line why in a list."""
    with open(failed, "a", encoding="utf-8") as report:
        report.write(f"{name}\t{error}\n")
    line = {"id": name, "text": "", "failed": True}
    if task == "asr_st":
        line["transcript"] = ""
    _write_line(stream, line)


def _progress(bar) -> str:
    """E.g. ``progress: 32/152 utterances, about 1 min left``."""
    rate = bar.format_dict["rate"] or bar.n / max(bar.format_dict["elapsed"], 1e-3)
    left = (bar.total - bar.n) / max(rate, 1e-9) / 60
    return f"progress: {bar.n}/{bar.total} utterances, about {left:.0f} min left"
