"""Decode an example dir: batches, shards, progress, and going on after a kill."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from speechllm.errors import UserError
from speechllm.files import atomic_open

if TYPE_CHECKING:
    import numpy as np


def decode_examples(
    model_dir: str | Path,
    examples: str | Path,
    output_dir: str | Path,
    generation: dict,
    batch_size: int = 16,
    num_shards: int = 1,
    shard: int = 1,
    device: str = "cpu",
    dtype: str = "float32",
    engine: str = "auto",
) -> int:
    """Decode what is not decoded yet, and write ``text`` when all of it is.

    Of ``asr_st`` that is the translation; ``text.transcript`` beside it holds the
    transcripts, and ``flags`` what is odd about an answer, such as ``malformed``.

    Batches wait in a queue, and each queue that is finished is appended to
    ``hypotheses.<shard>.jsonl`` and flushed to disk, one line an utterance: ``{"id",
    "text", "score", "tokens", "ctc_text", "nbest"}`` and what else ``Result.entry``
    has. A second start reads it and goes on. When the model, the options or the examples are others than those of the lines
    that are there, these lines are put aside as ``….previous`` and decoding starts
    anew. An utterance that cannot be read, or is longer than the model takes, gets an
    empty text and a line in ``failed.<shard>.tsv``; a second start tries it again.

    Args:
        model_dir: folder that stage 11 wrote.
        examples: example dir (``wav.scp``, ``utt2task``, …).
        output_dir: folder to write.
        generation: fields of ``SearchOptions``.
        batch_size: utterances decoded at once.
        num_shards, shard: decode every ``num_shards``-th utterance, ``shard`` from 1.
        device, dtype, engine: where, in what precision, and by what products.

    Returns:
        The number of utterances decoded now.

    Raises:
        UserError: no model, no examples, unknown options, a shard out of range.
    """
    from speechllm.datadir import read_table
    from speechllm.inference import search_options

    if not 1 <= shard <= num_shards:
        raise UserError(f"shard {shard}: from 1 to {num_shards}")
    search_options(generation)
    examples, output_dir = Path(examples), Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    wavs = read_table(examples / "wav.scp")
    tasks = read_table(examples / "utt2task")
    if set(wavs) != set(tasks):
        first = min(set(wavs) ^ set(tasks))
        raise UserError(f"{examples}: {first} is not in both wav.scp and utt2task")
    for name, task in tasks.items():
        if len(task.split()) != 3:
            raise UserError(
                f"{examples}/utt2task, {name}: expected '<task> <source> <target>', "
                f"found {task!r}"
            )
    samples = {k: int(v) for k, v in read_table(examples / "utt2num_samples").items()}
    ids = sorted(wavs)
    mine = ids[shard - 1 :: num_shards]
    key = settings_key(model_dir, generation, dtype, wavs, tasks)
    path = output_dir / f"hypotheses.{shard}.jsonl"
    done = read_hypotheses(path, key)
    todo = [i for i in mine if i not in done or done[i].get("failed")]
    if todo:
        (output_dir / "text").unlink(missing_ok=True)  # of other settings
        decode_todo(
            model_dir, path, key, not done, todo, wavs, tasks, samples,
            generation, batch_size, device, dtype, engine,
        )  # fmt: skip
    collect_text(output_dir, ids, key, num_shards)
    return len(todo)


def decode_todo(
    model_dir, path, key, fresh, todo, wavs, tasks, samples,
    generation, batch_size, device, dtype, engine,
) -> None:  # fmt: skip
    """Decode the utterances ``todo`` and append their lines to ``path``."""
    from tqdm import tqdm

    from speechllm.batches import batches_by_length
    from speechllm.inference import QUEUE, SpeechToText

    model = SpeechToText.from_pretrained(model_dir, device, dtype, engine)
    options = model.options(generation)
    failed = path.with_name(path.name.replace("hypotheses", "failed")).with_suffix(
        ".tsv"
    )
    failed.unlink(missing_ok=True)
    longest = getattr(model.model.encoder, "max_samples", None)
    bar = tqdm(total=len(todo), unit="utt", desc=str(path), mininterval=5)
    with open(path, "w" if fresh else "a", encoding="utf-8") as stream:
        if fresh:
            stream.write(json.dumps({"settings": key}) + "\n")
        lengths = [samples.get(i, 0) for i in todo]
        for queue in batches_by_length(lengths, QUEUE * batch_size):
            names, waves = [], []
            for name in (todo[i] for i in queue):
                try:
                    waves.append(load_utterance(wavs[name], longest))
                    names.append(name)
                except UserError as error:
                    write_failure(stream, failed, name, tasks[name].split()[0], error)
            asks = [tuple(tasks[name].split()) for name in names]
            results = model.decode(waves, asks, options, batch_size) if waves else []
            for name, result in zip(names, results):
                write_line(stream, {"id": name, **result.entry()})
            stream.flush()
            os.fsync(stream.fileno())
            bar.update(len(queue))
            print(progress(bar), flush=True)
    bar.close()
    if failed.exists():
        count = len(failed.read_text("utf-8").splitlines())
        print(f"{count} of {len(todo)} utterances failed: {failed}")


def load_utterance(path: str, longest: int | None) -> np.ndarray:
    """Read 16 kHz samples, of which there may be at most ``longest``."""
    from speechllm.audio import load_audio

    wave = load_audio(path)
    if longest is not None and len(wave) > longest:
        seconds, most = len(wave) / 16000, longest / 16000
        raise UserError(f"{path}: {seconds:.1f} s, the model takes {most:.0f} s")
    return wave


def progress(bar) -> str:
    """E.g. ``progress: 32/152 utterances, about 1 min left``."""
    rate = bar.format_dict["rate"] or bar.n / max(bar.format_dict["elapsed"], 1e-3)
    left = (bar.total - bar.n) / max(rate, 1e-9) / 60
    return f"progress: {bar.n}/{bar.total} utterances, about {left:.0f} min left"


def write_line(stream, line: dict) -> None:
    """Append one JSON line."""
    stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def write_failure(stream, failed: Path, name: str, task: str, error: UserError) -> None:
    """An empty answer to an utterance that cannot be read, and a line why in a list."""
    with open(failed, "a", encoding="utf-8") as report:
        report.write(f"{name}\t{error}\n")
    line = {"id": name, "text": "", "failed": True}
    if task == "asr_st":
        line["transcript"] = ""
    write_line(stream, line)


def settings_key(
    model_dir: str | Path, generation: dict, dtype: str, wavs: dict, tasks: dict
) -> str:
    """A digest of all that a hypothesis depends on (and so not of the batch size).

    Of the model that is every file of its folder but hidden ones and ``*.md``: config,
    weights (whole or in shards), prompts, tokenizer.
    """
    from speechllm.inference import find_model
    from speechllm.model_folder import file_sha256

    digest = hashlib.sha256()
    for file in sorted(find_model(model_dir).iterdir()):
        if file.is_file() and not file.name.startswith(".") and file.suffix != ".md":
            digest.update(f"{file.name}\0{file_sha256(file)}\n".encode())
    rest = [sorted(table.items()) for table in (generation, wavs, tasks)] + [dtype]
    digest.update(json.dumps(rest).encode())
    return digest.hexdigest()


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
