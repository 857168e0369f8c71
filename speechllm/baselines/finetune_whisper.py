"""Fine-tuning of Whisper on an example dir, for the first pass or as a baseline.

Training, LoRA and the choice of the best weights are those of transformers' ``Trainer``
and of peft; the result is a transformers folder that ``python -m speechllm.bin.baseline
whisper`` decodes with, too.

Whisper's encoder takes 30 s of input however short the speech is. Here a batch is
padded to little more than its longest utterance, which is several times faster for
short prompts: the encoder then uses the first of its position embeddings.

The fine-tuned weights can be averaged with the pretrained ones (Wortsman et al. 2022,
"Robust fine-tuning of zero-shot models", equation 1).
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from speechllm.audio.io import SAMPLING_RATE, load_audio
from speechllm.baselines.progress import PROGRESS_SECONDS, print_progress
from speechllm.baselines.whisper import Whisper
from speechllm.data.examples import read_utt2task
from speechllm.data.kaldi_table import read_table
from speechllm.models.speech_decoder import LONGEST, padded_samples
from speechllm.pretrained.model_folder import load_pretrained, model_fingerprint
from speechllm.training.signals import StopRequest, handle_stop_signals
from speechllm.utils.errors import UserError, describe_error
from speechllm.utils.folders import FolderKind, atomic_directory, require_output
from speechllm.utils.io import name_full_disk, write_json
from speechllm.utils.names import utf8_name

if TYPE_CHECKING:
    from torch import Tensor

    from speechllm.baselines.whisper_trainer import WhisperTrainer

KIND = FolderKind("fine-tuned Whisper")
RECORD = "finetuning.json"  # settings and course of the training, in the model folder
HOP = 160  # samples of one frame of the spectrogram: 10 ms
LORA_MODULES = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


@dataclass(frozen=True)
class FinetuneOptions:
    """Options of the training.

    Attributes:
        tuning: ``lora`` trains adapters of every linear layer, which are merged into
            the weights at the end; ``full`` trains all weights.
        lr: peak learning rate; linear warm-up over the first tenth of the training,
            then linear decay to zero.
        epochs: maximum number of passes over the examples.
        max_minutes: wall-clock time of the call, with reading and validation (writing
            takes seconds more); None is no limit. The learning rate decays over what
            ends first, the time or the epochs.
        batch_size: examples per step.
        pretrained_share: weight of the pretrained weights in the average that is
            written, from 0 to 1; 0 writes the fine-tuned weights.
        seed: of the order of the examples and of LoRA's initial weights.
    """

    tuning: str = "full"
    lr: float = 3e-5
    epochs: int = 3
    max_minutes: float | None = None
    batch_size: int = 16
    pretrained_share: float = 0.0
    seed: int = 1


class Example(NamedTuple):
    """An utterance with its labels.

    Attributes:
        audio: entry of ``wav.scp``, which each epoch reads again.
        samples: their number at 16 kHz.
        labels: prefix, text and end in Whisper's tokens, shape (tokens,).
    """

    audio: str
    samples: int
    labels: list[int]

    def wave(self) -> np.ndarray:
        """Read the audio; what was mended was reported when it was measured."""
        return load_audio(self.audio, report=lambda _: None)


def finetune_whisper(
    model: str,
    examples: str | Path,
    valid: str | Path,
    output: str | Path,
    options: FinetuneOptions,
) -> dict:
    """Fine-tune Whisper and write it as a transformers folder.

    The weights with the highest token accuracy on the validation examples are written
    (the loss rises long before the error rate does). ``asr`` examples and ``st``
    examples into English are used, all others are not. If ``output`` has the result of
    the same settings and data, nothing is done. The training saves every half hour and
    on SIGTERM and SIGUSR1, in ``<output>.checkpoints``, where the same call resumes.

    Args:
        model: hub id or folder of a Whisper checkpoint.
        examples: example dir to train on.
        valid: example dir for the validation.
        output: folder to write; examples that cannot be used are listed in its
            ``left_out.tsv``.
        options: see :class:`FinetuneOptions`.

    Returns:
        Number of examples, steps, epochs and seconds, the validations, and that of the
        average with the pretrained weights (``averaged``), if they have a share.

    Raises:
        UserError: no example can be used, Whisper does not support a language, the
            loss is not finite, or the training was stopped by a signal.
    """
    begin = time.monotonic()
    output = Path(output)
    require_output(output, KIND, [examples, valid])
    system = Whisper(model)
    settings = {
        "model": model_fingerprint(system.folder, tokenizer=True),
        "train": tables_digest(examples),
        "valid": tables_digest(valid),
        **asdict(options),
    }
    checkpoints = output.with_name(f"{output.name}.checkpoints")
    if (record := read_record(output)).get("settings") == settings:
        remove_left_checkpoints(checkpoints, settings)
        return record["result"]
    system.load()
    whisper, processor = system.model, system.processor
    left_out: dict[str, str] = {}
    trained, validated = (
        read_examples(folder, system, left_out) for folder in (examples, valid)
    )
    if left_out:
        print(f"{len(left_out)} examples left out, see left_out.tsv", file=sys.stderr)

    # after the checks: Trainer takes seconds to import, and bitsandbytes prints a line
    from speechllm.baselines.checkpoints import (
        Checkpoints,
        find_checkpoint,
        remove_checkpoints,
    )
    from speechllm.baselines.whisper_trainer import (
        Pace,
        WhisperTrainer,
        training_arguments,
    )

    def collate(batch: list[Example]) -> dict[str, Tensor]:
        return collate_examples(processor, batch)

    whisper.config.use_cache = False
    torch.manual_seed(options.seed)
    pace = Pace(begin, options.max_minutes)
    # some of the audio may not have been readable when the training began
    read = {**settings, "audio": audio_digest(trained + validated)}
    last, stop = find_checkpoint(checkpoints, read), StopRequest()
    trainer = WhisperTrainer(
        model=adapted(whisper, options.tuning),
        args=training_arguments(
            checkpoints, options.lr, options.epochs, options.batch_size, options.seed
        ),
        train_dataset=trained,
        eval_dataset=validated,
        data_collator=collate,
        pace=pace,
        checkpoints=Checkpoints(checkpoints, stop),
    )
    # to the end, so that a signal after the last step does not lose the training
    with handle_stop_signals(stop):
        with name_full_disk(checkpoints):
            trainer.train_from(last)
        best_step = trainer.state.best_global_step
        losses = {entry["step"]: entry["loss"] for entry in pace.validation}
        if not math.isfinite(losses[best_step]):
            remove_checkpoints(checkpoints)
            raise UserError(
                f"{examples}: the loss is not finite with --lr {options.lr:g}; "
                "use a smaller learning rate"
            )
        with atomic_directory(output, KIND, [examples, valid]) as folder:
            averaged = write_model(trainer, system, options, folder)
            if left_out:
                lines = [
                    f"{name}\t{utf8_name(why)}\n" for name, why in left_out.items()
                ]
                (folder / "left_out.tsv").write_text("".join(lines), "utf-8")
            result = {
                "examples": len(trained),
                "left_out": len(left_out),
                "steps": trainer.state.global_step,
                "best_step": best_step,
                "epochs": round(trainer.state.epoch, 2),
                "trained_parameters": pace.trained_parameters,
                "validation": pace.validation,
                **averaged,
                "seconds": round(time.monotonic() - pace.begin, 1),
            }
            write_json(folder / RECORD, {"settings": settings, "result": result})
        remove_checkpoints(checkpoints)
        return result


def write_model(
    trainer: WhisperTrainer, system: Whisper, options: FinetuneOptions, folder: Path
) -> dict:
    """Write the trained weights, averaged with the pretrained ones by their share.

    Args:
        trainer: after the training; it has the best weights.
        system: the pretrained model.
        options: see :class:`FinetuneOptions`.
        folder: to write the transformers folder into.

    Returns:
        The validation of the average (``averaged``), if there is one.
    """
    from speechllm.baselines.whisper_trainer import set_positions

    whisper, averaged = trainer.model, {}
    if options.tuning == "lora":
        whisper = whisper.merge_and_unload()
    if options.pretrained_share:
        average_weights(whisper, system.folder, options.pretrained_share)
        trainer.model = trainer.model_wrapped = whisper
        trainer.evaluate()
        averaged = {"averaged": trainer.pace.validation.pop()}
    set_positions(whisper, LONGEST // HOP // 2)
    whisper.config.use_cache = True
    whisper.half().save_pretrained(folder)
    system.processor.save_pretrained(folder)
    return averaged


def average_weights(whisper: Any, folder: str | Path, share: float) -> None:
    """Average the weights with those in ``folder``, which get ``share``."""
    pretrained = load_pretrained(type(whisper), folder, dtype=torch.float32)
    weights = dict(pretrained.named_parameters())
    with torch.no_grad():
        for name, weight in whisper.named_parameters():
            weight.lerp_(weights[name].to(weight), share)


def tables_digest(folder: str | Path) -> str:
    """Return a digest of the tables of an example dir that the training reads."""
    tables = [
        sorted(read_table(Path(folder) / name).items())
        for name in ("wav.scp", "text", "utt2task")
    ]
    return hashlib.sha256(json.dumps(tables).encode()).hexdigest()


def audio_digest(examples: Sequence[Example]) -> str:
    """Return a digest of the audio that is trained on, and of its lengths."""
    rows = [(example.audio, example.samples) for example in examples]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def remove_left_checkpoints(folder: Path, settings: dict) -> None:
    """Remove the checkpoints that a kill after the end of the training has left."""
    if folder.is_dir():
        from speechllm.baselines.checkpoints import read_settings, remove_checkpoints

        if settings.items() <= (read_settings(folder) or {}).items():
            remove_checkpoints(folder)


def read_record(folder: Path) -> dict:
    """Return the record of an earlier training, empty if there is none."""
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    is_whole = isinstance(record, dict) and {"settings", "result"} <= record.keys()
    return record if is_whole else {}


def read_examples(
    folder: str | Path, system: Whisper, left_out: dict[str, str]
) -> list[Example]:
    """Return the examples that Whisper can be trained on; all audio is read once.

    Args:
        folder: example dir.
        system: a loaded Whisper.
        left_out: the reason is added for every example that is damaged or too long.

    Raises:
        UserError: no example is left, a table lacks an example, or Whisper does not
            support a language.
    """
    folder = Path(folder)
    texts, waves = read_table(folder / "text"), read_table(folder / "wav.scp")
    most_tokens = system.config.max_target_positions
    tasks = {
        name: task
        for name, task in read_utt2task(folder).items()
        if task.name == "asr" or (task.name == "st" and task.target == "en")
    }
    for name, task in tasks.items():
        system.check(*task)
        for table, path in ((texts, "text"), (waves, "wav.scp")):
            if name not in table:
                raise UserError(
                    f"{folder / path}: {name} is missing; run stage 5 again"
                )
    samples = count_samples([waves[name] for name in tasks])
    found, reason = [], ""
    for name, task in tasks.items():
        audio = waves[name]
        number = samples[audio]
        if isinstance(number, str):
            left_out[name] = reason = number
            continue
        labels = target_tokens(system, task.name, task.source, texts[name])
        if number > LONGEST:
            seconds = LONGEST / SAMPLING_RATE
            left_out[name] = reason = f"{audio}: longer than {seconds:g} s"
        elif len(labels) > most_tokens:
            left_out[name] = reason = f"text: more than {most_tokens} tokens"
        else:
            found.append(Example(audio, number, labels))
    if not found:
        raise UserError(
            f"{folder}: no example to train Whisper on"
            + (f" (the last one: {reason})" if reason else "")
            + "; it takes asr examples and st examples into English"
        )
    return found


def count_samples(audio: Iterable[str]) -> dict[str, int | str]:
    """Read audio on all cores and return its samples at 16 kHz, or what is wrong."""

    def count(source: str) -> int | str:
        try:
            return len(load_audio(source))
        except Exception as error:
            return describe_error(error)

    sources = list(dict.fromkeys(audio))
    found: dict[str, int | str] = {}
    reported = time.monotonic()
    with ThreadPoolExecutor() as pool:
        for source, number in zip(sources, pool.map(count, sources)):
            found[source] = number
            if time.monotonic() - reported > PROGRESS_SECONDS:
                reported = time.monotonic()
                print_progress(f"audio, {len(found)}/{len(sources)} utterances")
    return found


def target_tokens(system: Whisper, task: str, source: str, text: str) -> list[int]:
    """Return prefix, text and end; the text begins with a space, as in pretraining."""
    tokenizer = system.processor.tokenizer
    if system.multilingual():
        tokenizer.set_prefix_tokens(
            source, "transcribe" if task == "asr" else "translate", False
        )
    labels = tokenizer(" " + " ".join(text.split())).input_ids
    return labels[1:]  # the model adds the start token itself


def collate_examples(processor: Any, batch: list[Example]) -> dict[str, Tensor]:
    """Return features (batch, mels, frames) and labels (batch, tokens)."""
    longest = max(example.samples for example in batch)
    features = processor.feature_extractor(
        [example.wave() for example in batch],
        sampling_rate=SAMPLING_RATE,
        max_length=padded_samples(longest),
        return_tensors="pt",
    ).input_features
    width = max(len(example.labels) for example in batch)
    labels = torch.full((len(batch), width), -100)
    for row, example in zip(labels, batch):
        row[: len(example.labels)] = torch.tensor(example.labels)
    return {"input_features": features, "labels": labels}


def adapted(whisper: Any, tuning: str) -> Any:
    """Return the model to train: with peft's adapters, or as it is."""
    if tuning == "full":
        # sinusoids; from_pretrained undoes the freezing by the model's constructor
        whisper.model.encoder.embed_positions.requires_grad_(False)
        return whisper
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=32, lora_alpha=64, lora_dropout=0.05, target_modules=LORA_MODULES
    )
    return get_peft_model(whisper, lora)
