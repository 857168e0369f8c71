"""Sound inputs that the cases damage: data dirs, example and decode dirs, a model."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

RATE = 16000
UTTERANCES = ("a-1", "a-2", "b-1")
TEXTS = {"a-1": "Hello you.", "a-2": "Press one.", "b-1": "Good night."}
FRENCH = {"a-1": "Bonjour toi.", "a-2": "Tapez un.", "b-1": "Bonne nuit."}


def tone(seconds: float, seed: int = 0) -> np.ndarray:
    """Return a modulated tone with noise, float32 (samples,) at 16 kHz."""
    time = np.arange(int(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).normal(size=time.size)
    wave = 0.3 * np.sin(2 * np.pi * 220 * time) * (1 + np.sin(2 * np.pi * 3 * time)) / 2
    return (wave + 0.02 * noise).astype(np.float32)


def wav_bytes(samples: np.ndarray, rate: int = RATE, **options) -> bytes:
    """Return a WAV file of samples (samples,) or (samples, channels)."""
    import soundfile

    stream = io.BytesIO()
    soundfile.write(
        stream, samples, rate, format=options.pop("format", "WAV"), **options
    )
    return stream.getvalue()


def write_rows(path: Path, rows: dict[str, str]) -> None:
    """Write a Kaldi table."""
    path.write_text(
        "".join(f"{k} {v}".rstrip() + "\n" for k, v in sorted(rows.items()))
    )


def write_base(folder: Path) -> None:
    """Write the sound inputs; paths in tables are relative to ``folder``."""
    (folder / "wav").mkdir(parents=True)
    for number, name in enumerate(UTTERANCES):
        (folder / "wav" / f"{name}.wav").write_bytes(wav_bytes(tone(0.5, number)))
    (folder / "good.wav").write_bytes(wav_bytes(tone(1.0, 9)))
    wavs = {name: f"wav/{name}.wav" for name in UTTERANCES}
    for place in ("data", "dump"):  # dump: formatted
        data = folder / place
        data.mkdir()
        write_rows(data / "wav.scp", wavs)
        write_rows(data / "text", TEXTS)
        write_rows(data / "text.fr", FRENCH)
        write_rows(data / "utt2spk", {n: n[0] for n in UTTERANCES})
        write_rows(data / "spk2utt", {"a": "a-1 a-2", "b": "b-1"})
        write_rows(data / "utt2lang", dict.fromkeys(UTTERANCES, "en"))
    write_rows(folder / "dump" / "utt2num_samples", dict.fromkeys(UTTERANCES, "8000"))
    segmented = folder / "segmented"
    shutil.copytree(folder / "data", segmented)
    write_rows(segmented / "wav.scp", {f"r{n}": w for n, w in wavs.items()})
    rows = {n: f"r{n} 0.1 0.4" for n in UTTERANCES}
    write_rows(segmented / "segments", rows)
    examples = folder / "examples"
    examples.mkdir()
    names = [f"{n}-asr-en" for n in UTTERANCES]
    by_name = dict(zip(names, UTTERANCES, strict=True))
    write_rows(examples / "wav.scp", {n: wavs[u] for n, u in by_name.items()})
    write_rows(examples / "text", {n: TEXTS[u] for n, u in by_name.items()})
    ctc = {n: TEXTS[u].lower().rstrip(".") for n, u in by_name.items()}
    write_rows(examples / "text_ctc", ctc)
    write_rows(examples / "utt2task", dict.fromkeys(names, "asr en en"))
    write_rows(examples / "utt2num_samples", dict.fromkeys(names, "8000"))
    write_rows(examples / "utt2spk", {n: u[0] for n, u in by_name.items()})
    write_rows(examples / "utt2lang", dict.fromkeys(names, "en"))
    decoded = folder / "exp" / "sys" / "decode" / "test"
    decoded.mkdir(parents=True)
    write_rows(decoded / "text", {n: TEXTS[u] for n, u in by_name.items()})
    other = folder / "exp" / "other" / "decode" / "test"
    other.mkdir(parents=True)
    write_rows(other / "text", dict.fromkeys(names, "Press night"))
    for scored in (decoded, other):
        row = {
            "metric": "wer", "value": 12.5, "errors": 1, "words": 8,
            "substitutions": 1, "deletions": 0, "insertions": 0, "task": "asr",
            "language": "en", "target_language": "en", "utterances": 3,
        }  # fmt: skip
        (scored / "score_asr_en").mkdir()
        for name in ("scores.tsv", "alignment.txt"):  # as every release wrote them
            (scored / "score_asr_en" / name).write_text("")
        (scored / "score_asr_en" / "scores.json").write_text(json.dumps([row]))
    (folder / "decode.yaml").write_text("beam_size: 2\n")
    (folder / "prompts.yaml").write_text(_prompts())


def _prompts() -> str:
    from tiny_models import PROMPTS

    return PROMPTS


def prepare(folder: Path) -> tuple[Path, Path]:
    """Write the sound inputs and the model below ``folder``, and load what forks use.

    Returns:
        The folder of the inputs, and the model folder.
    """
    import torch
    from tiny_models import write_tiny_model

    from speechllm.inference.speech_to_text import SpeechToText
    from speechllm.pretrained.resolve import resolve_model

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    write_base(folder / "base")
    smollm2 = resolve_model("HuggingFaceTB/SmolLM2-135M-Instruct")
    model = write_tiny_model(folder / "model", smollm2)
    for path in [*model.rglob("*"), model]:  # readable by any user
        path.chmod(0o755 if path.is_dir() else 0o644)
    load = SpeechToText.from_pretrained
    loaded = load(model)
    warm_up(folder / "base")
    with contextlib.suppress(Exception):
        loaded.transcribe([tone(0.5)])

    def from_pretrained(path, *arguments, **options):
        same = str(path) == str(model) and not options
        if same and arguments in ((), ("cpu",), ("cpu", "float32")):
            return loaded
        return load(path, *arguments, **options)

    SpeechToText.from_pretrained = from_pretrained
    return folder / "base", model


def warm_up(base: Path) -> None:
    """Import what the commands import, so that forks start fast."""
    import importlib
    import pkgutil

    import jiwer  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import sacrebleu  # noqa: F401
    import soxr  # noqa: F401

    import speechllm.training.task  # noqa: F401

    for folder in ("audio", "data", "evaluation", "export", "inference", "corpora"):
        package = importlib.import_module(f"speechllm.{folder}")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    for name in (
        "cp437",
        "utf-8-sig",
        "utf-16",
        "idna",
        "latin-1",
        "ascii",
        "unicode_escape",
    ):
        codecs.lookup(name)  # another user may not read Python's folder
    from speechllm.audio.io import load_audio

    load_audio(base / "good.wav")


def copy_model(model: Path, target: Path) -> None:
    """Copy the model folder, with its config's paths pointing to the copy."""
    shutil.copytree(model, target)
    config = target / "config.yaml"
    config.write_text(config.read_text().replace(str(model), str(target)))


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Replace the content of a file by ``change(content)``."""
    path.write_bytes(change(path.read_bytes()))


def to_folder(path: Path) -> None:
    """Replace a file by an empty folder."""
    path.unlink()
    path.mkdir()


def to_fifo(path: Path) -> None:
    """Replace a file by a named pipe."""
    path.unlink()
    os.mkfifo(path)
