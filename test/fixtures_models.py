"""Pretrained models for tests: real ones, fetched once and kept in the cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechllm.pretrained import resolve_model


@pytest.fixture(scope="session")
def whisper_base() -> Path:
    """Folder of openai/whisper-base."""
    return resolve_model("openai/whisper-base")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """Folder of HuggingFaceTB/SmolLM2-135M-Instruct."""
    return resolve_model("HuggingFaceTB/SmolLM2-135M-Instruct")
