"""Run a baseline over an example dir: batches, going on after a kill, the decode dir."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from speechllm.audio.io import load_audio
from speechllm.baselines.base import gib
from speechllm.data.examples import utterance_of
from speechllm.data.kaldi_table import read_table
from speechllm.inference.decode_dir import (
    answer_examples,
    collect_text,
    read_hypotheses,
    read_requests,
)
from speechllm.utils.batching import batches_by_length
from speechllm.utils.errors import UserError


def run_baseline(
    system,
    examples: str | Path,
    output: str | Path,
    transcripts: str | Path | None = None,
    batch_size: int = 8,
) -> int:
    """Answer every example that is not answered yet.

    The decode dir is as ``speechllm.inference.decode_examples`` writes it: ``hypotheses.1.jsonl`` line by
    line, and in the end ``text`` (with ``text.transcript`` for ``asr_st``). A second
    start goes on; with another model, other options or examples it starts anew. An
    audio file that cannot be read gets an empty text and a line in ``failed.1.tsv``.

    Args:
        system: a ``PretrainedSystem``, or what has its methods.
        examples: example dir.
        output: decode dir to write.
        transcripts: for a system that does not hear: the decode dir of the recognition
            (or an example dir, for the true transcripts).
        batch_size: examples of one language pair answered at once.

    Returns:
        The number of examples answered now.

    Raises:
        UserError: an example that the system cannot answer, or without a transcript;
            too little memory on the GPU.
    """
    examples, output = Path(examples), Path(output)
    requests = read_requests(examples)
    for request, name in {r: n for n, r in reversed(requests.items())}.items():
        try:  # each request once, with the first that asks it
            system.check(*request)
        except UserError as error:
            raise UserError(f"{examples}/utt2task, {name}: {error}") from None
    if system.hears:
        inputs = read_table(examples / "wav.scp")
        sizes = read_table(examples / "utt2num_samples")
        lengths = {name: int(sizes.get(name, 0)) for name in requests}
        if missing := sorted(requests.keys() - inputs.keys()):
            raise UserError(f"{examples}/wav.scp: {missing[0]} is missing")
    else:
        inputs = read_transcripts(transcripts, requests)
        lengths = {name: len(text) for name, text in inputs.items()}
    output.mkdir(parents=True, exist_ok=True)
    key = settings_key(system.settings(), inputs, requests)
    path = output / "hypotheses.1.jsonl"
    done = read_hypotheses(path, key)
    todo = [n for n in sorted(requests) if n not in done or done[n].get("failed")]
    if todo:
        (output / "text").unlink(missing_ok=True)
        system.load()
        answer_examples(
            path,
            key,
            bool(done),
            batches_of_pairs(todo, requests, lengths, batch_size),
            requests,
            lambda name: load_audio(inputs[name]) if system.hears else inputs[name],
            lambda names, given: answer_batch(system, given, requests[names[0]]),
        )
    collect_text(output, sorted(requests), key, 1)
    return len(todo)


def batches_of_pairs(
    names: list[str],
    requests: dict[str, tuple[str, str, str]],
    lengths: dict[str, int],
    batch_size: int,
) -> list[list[str]]:
    """Examples of like length and the same task and languages."""
    groups: dict[tuple, list[str]] = {}
    for name in names:
        groups.setdefault(requests[name], []).append(name)
    return [
        [group[i] for i in batch]
        for group in groups.values()
        for batch in batches_by_length([lengths[n] for n in group], batch_size)
    ]


def answer_batch(system, given: list, request: tuple[str, str, str]) -> list[dict]:
    """One batch; too little memory becomes a message that says what would fit."""
    import torch

    try:
        return system.answer(given, *request)
    except torch.OutOfMemoryError:
        free, total = torch.cuda.mem_get_info(system.device)
        remedy = "another GPU, --dtype bfloat16 or a smaller model"
        if len(given) > 1:
            remedy = f"--batch_size {len(given) // 2}, or {remedy}"
        elif system.beam_size > 1:
            remedy = f"--beam_size 1, {remedy}"
        raise UserError(
            f"{system.device} ({gib(total)}, {gib(free)} free) has not the memory for "
            f"{len(given)} at once; take {remedy}; what is decoded stays"
        ) from None


def read_transcripts(
    folder: str | Path | None, requests: dict[str, tuple[str, str, str]]
) -> dict[str, str]:
    """The transcript of every example's utterance.

    That is the text of its ``asr`` example, or else what ``text.transcript`` holds for
    its own ``asr_st`` example.

    Raises:
        UserError: no folder is given, or an utterance has no transcript in it.
    """
    from speechllm.evaluation.groups import read_texts

    if folder is None:
        raise UserError("this system hears nothing: --transcripts names what it reads")
    folder = Path(folder)
    texts, joint = read_texts(folder / "text"), {}
    if (folder / "text.transcript").exists():
        joint = read_texts(folder / "text.transcript")
    found = {}
    for name, (task, source, target) in requests.items():
        spoken = f"{utterance_of(name, task, target)}-asr-{source}"
        if spoken not in texts and name not in joint:
            raise UserError(
                f"{folder}/text: no transcript of {name} ({spoken} is missing); "
                "decode the asr examples of the same utterances first"
            )
        found[name] = texts[spoken] if spoken in texts else joint[name]
    return found


def settings_key(settings: dict, inputs: dict, requests: dict) -> str:
    """A digest of all that the answers depend on (and so not of the batch size)."""
    parts = [settings, sorted(inputs.items()), sorted(requests.items())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
