"""Whisper's own decoder on an example dir: what a user would pick instead."""

from __future__ import annotations

from pathlib import Path

from speechllm.errors import UserError
from speechllm.files import atomic_open


def transcribe_with_whisper(
    model: str, examples: str | Path, output: str | Path, batch_size: int = 8
) -> int:
    """Decode with Whisper, greedily, with the language given, and write ``text``.

    Recognition in any language, and translation into English; Whisper is trained for
    no other task.

    Args:
        model: hub id or folder.
        examples: example dir with ``asr`` and ``st`` into English.
        output: decode dir to write.

    Returns:
        The number of utterances.

    Raises:
        UserError: an example asks for a task that Whisper has not.
    """
    import torch
    from tqdm import tqdm
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    from speechllm.audio import load_audio
    from speechllm.datadir import read_table
    from speechllm.pretrained import resolve_model

    wavs = read_table(Path(examples) / "wav.scp")
    groups: dict[tuple[str, str], list[str]] = {}
    for name, request in read_table(Path(examples) / "utt2task").items():
        task, source, target = request.split()
        if task not in ("asr", "st") or (task == "st" and target != "en"):
            raise UserError(
                f"{examples}/utt2task: {name} is {request!r}; Whisper transcribes, and "
                "translates into English only"
            )
        kind = "transcribe" if task == "asr" else "translate"
        groups.setdefault((kind, source), []).append(name)
    path = resolve_model(model)
    processor = WhisperProcessor.from_pretrained(path)
    whisper = WhisperForConditionalGeneration.from_pretrained(
        path, dtype=torch.float32
    ).eval()
    texts = {}
    with tqdm(total=len(wavs), unit="utt", mininterval=5) as bar:
        for (kind, language), names in groups.items():
            for begin in range(0, len(names), batch_size):
                batch = names[begin : begin + batch_size]
                features = processor(
                    [load_audio(wavs[name]) for name in batch],
                    sampling_rate=16000,
                    return_tensors="pt",
                ).input_features
                with torch.inference_mode():
                    tokens = whisper.generate(features, language=language, task=kind)
                answers = processor.batch_decode(tokens, skip_special_tokens=True)
                texts.update(zip(batch, answers))
                bar.update(len(batch))
    with atomic_open(Path(output) / "text") as stream:
        for name in sorted(texts):
            stream.write(f"{name} {' '.join(texts[name].split())}".rstrip() + "\n")
    return len(texts)
