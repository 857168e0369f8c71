"""Stage 12: decode an example dir in batches and shards; a re-run resumes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechllm.audio import SAMPLING_RATE
from speechllm.data.examples import read_utt2task
from speechllm.data.kaldi_table import read_num_samples, read_table
from speechllm.inference.decode_dir import (
    DECODE_DIR,
    Timing,
    read_finished,
    read_hypotheses,
    write_hypotheses,
    write_tables,
)
from speechllm.inference.generation_config import (
    GENERATION_FILE,
    JOB_DEFAULTS,
    Config,
    check_search,
    read_settings,
)
from speechllm.text.tasks import Task
from speechllm.utils.batching import batches_by_length, shards_of_like_length
from speechllm.utils.errors import UserError
from speechllm.utils.folders import claim_directory
from speechllm.utils.io import file_sha256

if TYPE_CHECKING:
    import numpy as np


def decode_examples(
    model_dir: str | Path,
    examples: str | Path,
    output_dir: str | Path,
    generation: dict[str, Any],
    batch_size: int | None = None,
    num_shards: int = 1,
    shard: int = 1,
    device: str = "cpu",
    dtype: str | None = None,
    engine: str | None = None,
    debug: bool = False,
    config: Config | None = None,
    strict: bool = False,
) -> int:
    """Decode the examples without a hypothesis, and write ``text`` when none is left.

    For ``asr_st``, ``text`` is the translation and ``text.transcript`` the transcript.
    ``flags`` holds the warnings about outputs, such as ``malformed``.

    Batches wait in a queue. Each finished queue is appended to
    ``hypotheses.<shard>.jsonl`` and flushed to disk, one line for each utterance:
    ``{"id", "text", "score", "tokens", "ctc_text", "nbest"}``, the rest of
    ``Result.entry``, and the time of decoding
    (:class:`~speechllm.inference.decode_dir.Timing`). A re-run decodes what is missing
    in the files of all shards, whose number may have changed. If the model, the options
    or the examples have changed, the old lines are renamed to ``….previous`` and
    decoding starts again. An utterance that cannot be read or decoded, or is longer
    than the model takes, gets an empty text and a line in ``failed.<shard>.tsv``; a
    re-run tries it again.

    Args:
        model_dir: folder that stage 10 wrote.
        examples: example dir (``wav.scp``, ``utt2task``, …).
        output_dir: folder to write.
        generation: fields of ``SearchOptions`` that override the settings.
        batch_size: utterances decoded concurrently; None: as in the settings, else 16.
        num_shards, shard: decode one of ``num_shards`` shards of similar duration,
            ``shard`` from 1.
        device, dtype, engine, config, strict: of ``SpeechToText.from_pretrained``.
        debug: raise unexpected errors of an utterance instead of listing them.

    Returns:
        The number of utterances decoded by this call.

    Raises:
        UserError: no model, no examples, unknown options, a shard out of range, no
            prompt for a task, or no example of the whole dir can be decoded.
    """
    from speechllm.decoding.options import DECODING_SCHEMA, search_options
    from speechllm.inference.backends import device_name
    from speechllm.inference.encoding import QUEUE
    from speechllm.inference.loading import choose_device, find_model
    from speechllm.inference.speech_to_text import SpeechToText
    from speechllm.utils.schema import check_options

    if not 1 <= shard <= num_shards:
        raise UserError(f"shard {shard}: from 1 to {num_shards}")
    search_options(generation)
    if batch_size is not None:
        check_options({"batch_size": batch_size}, DECODING_SCHEMA, "decoding")
    if config is not None:
        config = read_settings(config, Path())
    examples = Path(examples)
    output_dir = claim_directory(output_dir, DECODE_DIR, [examples, model_dir])
    settings = read_settings(config, find_model(model_dir))
    dtype = dtype or settings.get("dtype") or "float32"
    batch_size = batch_size or settings.get("batch_size") or 16
    chosen = {k: v for k, v in settings.items() if k not in JOB_DEFAULTS}
    check_search(engine, settings, generation)
    wavs = read_table(examples / "wav.scp")
    tasks = read_utt2task(examples)
    if set(wavs) != set(tasks):
        first = min(set(wavs) ^ set(tasks))
        raise UserError(f"{examples}: {first} is not in both wav.scp and utt2task")
    samples = read_num_samples(examples)
    ids = sorted(wavs)
    shards = shards_of_like_length([samples.get(name, 0) for name in ids], num_shards)
    mine = [ids[index] for index in shards[shard - 1]]
    kind = dtype
    if (engine or settings.get("engine")) == "vllm":
        kind += " in vLLM"  # other engines write the same texts
    key = settings_key(model_dir, chosen | generation, kind, wavs, tasks)
    path = output_dir / f"hypotheses.{shard}.jsonl"
    done = read_hypotheses(path, key)
    finished = read_finished(output_dir, key)
    todo = [i for i in mine if i not in finished or finished[i].get("failed")]
    if todo:
        (output_dir / "text").unlink(missing_ok=True)  # of other settings
        device = choose_device(device)
        model = SpeechToText.from_pretrained(
            model_dir, device, dtype, engine, config=config, strict=strict
        )
        options = model.options(generation)
        model.load_first_pass(generation)
        for task in sorted({tasks[name] for name in todo}):
            model.prompts.text(*task)
        lengths = [samples.get(name, 0) for name in todo]
        # a first pass takes seconds for each utterance: show progress more often
        size = 2 if options.first_pass_beam_size else QUEUE
        queues = batches_by_length(lengths, size * batch_size)

        def decode(
            names: list[str],
            waves: list[np.ndarray],
            on_finished: Callable[[int], object],
        ) -> list[dict]:
            wanted = [tasks[name] for name in names]
            results = model.decode(waves, wanted, options, batch_size, on_finished)
            return [result.entry() for result in results]

        write_hypotheses(
            path,
            key,
            bool(done),
            [[todo[i] for i in queue] for queue in queues],
            tasks,
            lambda name: load_utterance(wavs[name], model.max_samples),
            decode,
            debug,
            Timing(
                f"{device_name(device)}, {kind}, batch size {batch_size}",
                lambda wave: len(wave) / SAMPLING_RATE,
            ),
        )
    write_tables(output_dir, ids, key)
    return len(todo)


def load_utterance(path: str, longest: int | None) -> np.ndarray:
    """Read samples (samples,) at 16 kHz.

    Raises:
        UserError: unreadable, or more than ``longest`` samples.
    """
    from speechllm.audio import load_audio

    wave = load_audio(path)
    if longest is not None and len(wave) > longest:
        seconds, most = len(wave) / SAMPLING_RATE, longest / SAMPLING_RATE
        raise UserError(f"{path}: {seconds:.1f} s, the model takes {most:.0f} s")
    return wave


def settings_key(
    model_dir: str | Path,
    generation: Mapping[str, Any],
    dtype: str,
    wavs: Mapping[str, str],
    tasks: Mapping[str, Task],
) -> str:
    """Return a digest of everything that a hypothesis depends on.

    It covers every file of the model folder except hidden ones, ``*.md`` and the
    settings, whose values are in ``generation`` (config, weights, whole or in shards,
    prompts, tokenizer), and those of a fine-tuned first pass, but not the batch size.
    """
    from speechllm.decoding.options import ALIASES
    from speechllm.inference.loading import find_model
    from speechllm.models.speech_decoder import FOLDER

    digest = hashlib.sha256()
    folder = find_model(model_dir)
    for file in [*sorted(folder.iterdir()), *sorted((folder / FOLDER).glob("*"))]:
        if file.name.startswith((".", GENERATION_FILE)) or file.suffix == ".md":
            continue
        if file.is_file():
            name = file.relative_to(folder).as_posix()
            digest.update(f"{name}\0{file_sha256(file)}\n".encode())
    # under their old names, so that decode dirs of earlier releases are resumed
    first_names = {new: old for old, new in ALIASES.items()}
    options = {first_names.get(k, k): value for k, value in generation.items()}
    rest = [sorted(table.items()) for table in (options, wavs, tasks)] + [dtype]
    digest.update(json.dumps(rest).encode())
    return digest.hexdigest()
