"""Fixtures: an example dir of noise and a training on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from tiny_models import LABELS, PROMPTS, TRAINING

from speechllm.bin.speechllm_train import main

UTTERANCES = 8


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> Path:
    """Example dir of noise, half a second to a second each."""
    folder = tmp_path_factory.mktemp("task") / "examples"
    folder.mkdir()
    generator = np.random.default_rng(0)
    names = [f"u{i}" for i in range(UTTERANCES)]
    samples = {name: 8000 + 1000 * i for i, name in enumerate(names)}
    tables = {
        "wav.scp": {n: folder / f"{n}.wav" for n in names},
        "text": dict.fromkeys(names, "Hello you."),
        "text_ctc": dict.fromkeys(names, "hello you"),
        "utt2task": dict.fromkeys(names, "asr en en"),
        "utt2num_samples": samples,
    }
    for name, size in samples.items():
        soundfile.write(folder / f"{name}.wav", generator.normal(size=size) / 20, 16000)
    for table, rows in tables.items():
        text = "".join(f"{key} {value}\n" for key, value in rows.items())
        (folder / table).write_text(text)
    (folder / "tokens.txt").write_text("\n".join(LABELS) + "\n")
    (folder / "prompts.yaml").write_text(PROMPTS)
    return folder


@pytest.fixture
def training_arguments(tmp_path, examples, tiny_whisper, tiny_llm):
    """Return the function that gives the arguments of a tiny model's training."""

    def arguments(
        output: Path, *, shapes: bool = True, data: Path = examples, **changes
    ) -> list[str]:
        config = {
            "encoder": "whisper",
            "encoder_conf": {"model": str(tiny_whisper)},
            "bridge": "convolution",
            "llm": "causal_lm",
            "llm_conf": {"model": str(tiny_llm), "lora": {"r": 2, "lora_dropout": 0.1}},
            "model_conf": {"ctc_weight": 0.3, "feature_dropout": 0.1},
            "max_epoch": 2,
            "keep_nbest_models": 2,
            **TRAINING,
            "seed": 1,
            **changes,
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config), "utf-8")
        line = ["--config", path, "--output_dir", output, "--ngpu", "0"]
        line += ["--ctc_token_list", examples / "tokens.txt"]
        line += ["--prompts", examples / "prompts.yaml", "--resume", "true"]
        for kind in ("train", "valid"):
            for file, name, form in (
                ("wav.scp", "speech", "sound"),
                ("text", "text", "text"),
                ("text_ctc", "text_ctc", "text"),
                ("utt2task", "task", "text"),
            ):
                line.append(f"--{kind}_data_path_and_name_and_type")
                line.append(f"{data / file},{name},{form}")
            if shapes:
                line += [f"--{kind}_shape_file", data / "utt2num_samples"]
        return [str(word) for word in line]

    return arguments


@pytest.fixture
def train(training_arguments):
    """Train a tiny model in this process: ``train(output, option=value, …)``."""

    def run(output: Path, *arguments: str, **options) -> Path:
        shapes = "--collect_stats" not in arguments
        main([*training_arguments(output, shapes=shapes, **options), *arguments])
        return output

    return run
