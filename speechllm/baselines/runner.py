"""Decode an example dir with a baseline: batching, resuming and the decode dir."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from speechllm.audio.io import SAMPLING_RATE, load_audio
from speechllm.baselines.base import Baseline, gib
from speechllm.data.examples import read_utt2task, utterance_of
from speechllm.data.kaldi_table import read_num_samples, read_table
from speechllm.inference.backends import device_name
from speechllm.inference.decode_dir import (
    DECODE_DIR,
    Timing,
    read_hypotheses,
    write_hypotheses,
    write_tables,
)
from speechllm.text.tasks import Task
from speechllm.utils.batching import batches_by_length
from speechllm.utils.errors import OutOfMemoryError, UserError
from speechllm.utils.folders import claim_directory


def run_baseline(
    system: Baseline,
    examples: str | Path,
    output: str | Path,
    transcripts: str | Path | None = None,
    batch_size: int = 8,
    debug: bool = False,
) -> int:
    """Decode every example that has no hypothesis yet.

    The decode dir has the format of ``speechllm.inference.decode_examples``, with the
    time of decoding if the input is speech: ``hypotheses.1.jsonl``, written line by
    line, and at the end ``text`` (with ``text.transcript`` for ``asr_st``) and
    ``rtf.json``. A re-run resumes; with another model, other
    options or other examples it starts again. For an example that cannot be read or
    decoded, the text is empty and ``failed.1.tsv`` has a line.

    Args:
        system: a baseline, not loaded yet.
        examples: example dir.
        output: decode dir to write.
        transcripts: for a baseline that takes transcripts: decode dir of the
            recognition, or an example dir for the reference transcripts.
        batch_size: maximum number of examples, of one task and language pair, in a
            batch.
        debug: raise unexpected errors of an example instead of listing them.

    Returns:
        The number of examples decoded by this call.

    Raises:
        UserError: the system does not support an example, a transcript is missing,
            or the GPU has too little memory.
    """
    examples, output = Path(examples), Path(output)
    tasks = read_utt2task(examples)
    first_examples = {task: name for name, task in reversed(tasks.items())}
    for task, name in first_examples.items():
        try:
            system.check(*task)
        except UserError as error:
            raise UserError(f"{examples}/utt2task, {name}: {error}") from None
    if system.takes_speech:
        inputs = read_table(examples / "wav.scp")
        lengths = dict.fromkeys(tasks, 0) | read_num_samples(examples)
        if missing := sorted(tasks.keys() - inputs.keys()):
            raise UserError(f"{examples}/wav.scp: {missing[0]} is missing")
    else:
        inputs = read_transcripts(transcripts, tasks)
        lengths = {name: len(text) for name, text in inputs.items()}
    claim_directory(output, DECODE_DIR, [examples])
    key = settings_key(system.settings(), inputs, tasks)
    path = output / "hypotheses.1.jsonl"
    done = read_hypotheses(path, key)
    todo = [n for n in sorted(tasks) if n not in done or done[n].get("failed")]
    if todo:
        (output / "text").unlink(missing_ok=True)  # of an earlier, other run
        system.load()
        timing = None
        if system.takes_speech:
            timing = Timing(
                f"{device_name(system.device)}, {system.dtype}, "
                f"batch size {batch_size}",
                lambda wave: len(wave) / SAMPLING_RATE,
            )
        write_hypotheses(
            path,
            key,
            bool(done),
            batches_by_task(todo, tasks, lengths, batch_size),
            tasks,
            lambda name: (
                load_audio(inputs[name]) if system.takes_speech else inputs[name]
            ),
            lambda names, batch, _: decode_batch(system, batch, tasks[names[0]]),
            debug,
            timing,
        )
    write_tables(output, sorted(tasks), key)
    return len(todo)


def batches_by_task(
    names: list[str],
    tasks: dict[str, Task],
    lengths: dict[str, int],
    batch_size: int,
) -> list[list[str]]:
    """Batch examples of similar length with the same task and languages."""
    groups: dict[tuple, list[str]] = {}
    for name in names:
        groups.setdefault(tasks[name], []).append(name)
    return [
        [group[i] for i in batch]
        for group in groups.values()
        for batch in batches_by_length([lengths[n] for n in group], batch_size)
    ]


def decode_batch(system: Baseline, inputs: list, task: Task) -> list[dict]:
    """Decode one batch.

    Raises:
        OutOfMemoryError: of a GPU; the message names smaller settings.
    """
    import torch

    try:
        return system.decode(inputs, *task)
    except torch.OutOfMemoryError:
        free, total = torch.cuda.mem_get_info(system.device)
        remedy = "another GPU, --dtype bfloat16 or a smaller model"
        if len(inputs) > 1:
            remedy = f"--batch_size {len(inputs) // 2}, or {remedy}"
        elif system.beam_size > 1:
            remedy = f"--beam_size 1, {remedy}"
        raise OutOfMemoryError(
            f"{system.device} ({gib(total)}, {gib(free)} free): too little memory for "
            f"a batch of {len(inputs)}; use {remedy}; hypotheses written so far are "
            "kept"
        ) from None


def read_transcripts(
    folder: str | Path | None, tasks: dict[str, Task]
) -> dict[str, str]:
    """Return the transcript of every example's utterance.

    It is the text of the utterance's ``asr`` example or, without one, the entry of the
    ``asr_st`` example itself in ``text.transcript``.

    Raises:
        UserError: no folder is given, or it has no transcript of an utterance.
    """
    from speechllm.evaluation.groups import read_texts

    if folder is None:
        raise UserError(
            "this system translates text and needs transcripts: give --transcripts"
        )
    folder = Path(folder)
    texts, joint = read_texts(folder / "text"), {}
    if (folder / "text.transcript").exists():
        joint = read_texts(folder / "text.transcript")
    found = {}
    for name, task in tasks.items():
        utterance = utterance_of(name, task.name, task.target)
        asr_example = f"{utterance}-asr-{task.source}"
        if asr_example not in texts and name not in joint:
            raise UserError(
                f"{folder}/text: no transcript of {name} ({asr_example} is missing); "
                "decode the asr examples of the same utterances first"
            )
        found[name] = texts[asr_example] if asr_example in texts else joint[name]
    return found


def settings_key(settings: dict, inputs: dict, tasks: dict[str, Task]) -> str:
    """Return a digest of everything the hypotheses depend on; not the batch size."""
    parts = [settings, sorted(inputs.items()), sorted(tasks.items())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
