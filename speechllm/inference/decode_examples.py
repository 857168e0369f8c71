"""Decode an example dir: batches, shards, progress, and going on after a kill."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from speechllm.data.kaldi_table import read_table
from speechllm.inference.decode_dir import (
    answer_examples,
    collect_text,
    read_hypotheses,
    read_requests,
)
from speechllm.utils.errors import UserError

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
    has. A second start reads it and goes on. When the model, the options or the
    examples are others than those of the lines that are there, these lines are put
    aside as ``….previous`` and decoding starts anew. An utterance that cannot be read,
    or is longer than the model takes, gets an empty text and a line in
    ``failed.<shard>.tsv``; a second start tries it again.

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
        UserError: no model, no examples, unknown options, a shard out of range, or no
            example of the whole dir can be read.
    """
    from speechllm.decoding.options import search_options
    from speechllm.inference.speech_to_text import QUEUE, SpeechToText
    from speechllm.utils.batching import batches_by_length

    if not 1 <= shard <= num_shards:
        raise UserError(f"shard {shard}: from 1 to {num_shards}")
    search_options(generation)
    examples, output_dir = Path(examples), Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    wavs = read_table(examples / "wav.scp")
    requests = read_requests(examples)
    if set(wavs) != set(requests):
        first = min(set(wavs) ^ set(requests))
        raise UserError(f"{examples}: {first} is not in both wav.scp and utt2task")
    samples = {k: int(v) for k, v in read_table(examples / "utt2num_samples").items()}
    ids = sorted(wavs)
    mine = ids[shard - 1 :: num_shards]
    key = settings_key(model_dir, generation, dtype, wavs, requests)
    path = output_dir / f"hypotheses.{shard}.jsonl"
    done = read_hypotheses(path, key)
    todo = [i for i in mine if i not in done or done[i].get("failed")]
    if todo:
        (output_dir / "text").unlink(missing_ok=True)  # of other settings
        model = SpeechToText.from_pretrained(model_dir, device, dtype, engine)
        options = model.options(generation)
        longest = getattr(model.model.encoder, "max_samples", None)
        lengths = [samples.get(name, 0) for name in todo]
        queues = batches_by_length(lengths, QUEUE * batch_size)

        def answer(names: list[str], waves: list[np.ndarray]) -> list[dict]:
            asks = [requests[name] for name in names]
            results = model.decode(waves, asks, options, batch_size)
            return [result.entry() for result in results]

        answer_examples(
            path,
            key,
            bool(done),
            [[todo[i] for i in queue] for queue in queues],
            requests,
            lambda name: load_utterance(wavs[name], longest),
            answer,
        )
    collect_text(output_dir, ids, key, num_shards)
    return len(todo)


def load_utterance(path: str, longest: int | None) -> np.ndarray:
    """Read 16 kHz samples, of which there may be at most ``longest``."""
    from speechllm.audio.io import load_audio

    wave = load_audio(path)
    if longest is not None and len(wave) > longest:
        seconds, most = len(wave) / 16000, longest / 16000
        raise UserError(f"{path}: {seconds:.1f} s, the model takes {most:.0f} s")
    return wave


def settings_key(
    model_dir: str | Path, generation: dict, dtype: str, wavs: dict, tasks: dict
) -> str:
    """A digest of all that a hypothesis depends on (and so not of the batch size).

    Of the model that is every file of its folder but hidden ones and ``*.md``: config,
    weights (whole or in shards), prompts, tokenizer.
    """
    from speechllm.inference.loading import find_model
    from speechllm.utils.io import file_sha256

    digest = hashlib.sha256()
    for file in sorted(find_model(model_dir).iterdir()):
        if file.is_file() and not file.name.startswith(".") and file.suffix != ".md":
            digest.update(f"{file.name}\0{file_sha256(file)}\n".encode())
    rest = [sorted(table.items()) for table in (generation, wavs, tasks)] + [dtype]
    digest.update(json.dumps(rest).encode())
    return digest.hexdigest()
