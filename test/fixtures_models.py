"""Fixtures: pretrained models, downloaded once and cached, and tiny random ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models

from speechllm.pretrained.resolve import resolve_model


@pytest.fixture(scope="session")
def whisper_base() -> Path:
    """Folder of openai/whisper-base."""
    return resolve_model("openai/whisper-base")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of HuggingFaceTB/SmolLM2-135M-Instruct."""
    return resolve_model("HuggingFaceTB/SmolLM2-135M-Instruct")


@pytest.fixture(scope="session")
def tokenizer(smollm2):
    """Tokenizer of SmolLM2."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="session")
def tiny_whisper(tmp_path_factory) -> Path:
    """Folder of a tiny random Whisper."""
    return tiny_models.write_tiny_whisper(tmp_path_factory.mktemp("tiny") / "whisper")


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory, smollm2) -> Path:
    """Folder of a tiny random Llama with SmolLM2's tokenizer."""
    return tiny_models.write_tiny_llm(tmp_path_factory.mktemp("tiny") / "llm", smollm2)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, smollm2) -> Path:
    """Exported model folder of a tiny random model."""
    return tiny_models.write_tiny_model(
        tmp_path_factory.mktemp("tiny") / "model", smollm2
    )


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Return a list that receives the number of utterances of each decoding."""
    from speechllm import SpeechToText

    sizes: list[int] = []
    decode = SpeechToText.decode

    def count(self, waves, *arguments, **options):
        sizes.append(len(waves))
        return decode(self, waves, *arguments, **options)

    monkeypatch.setattr(SpeechToText, "decode", count)
    return sizes
