"""Fixtures of the tests of the server."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from served import RATE, wav

from speechllm import SpeechToText
from speechllm.audio.io import load_audio


@pytest.fixture(scope="session")
def model(tiny_model) -> SpeechToText:
    return SpeechToText.from_pretrained(tiny_model)


@pytest.fixture(scope="session")
def speech(speech_file) -> np.ndarray:
    return load_audio(speech_file)


@pytest.fixture(scope="session")
def prompt(speech) -> bytes:
    """Return a WAV file of 3 s of speech."""
    return wav(speech)


@pytest.fixture(scope="session")
def lecture(speech) -> bytes:
    """Return a WAV file of 40 s: nine prompts, each after a second of silence."""
    return wav(np.concatenate([np.zeros(RATE, np.float32), speech] * 9))


@pytest.fixture
def stopped(model, monkeypatch):
    """Hold the decoding until the returned event is set."""
    go, decode = threading.Event(), model.decode_all

    def wait_and_decode(*arguments, **options):
        assert go.wait(60)
        return decode(*arguments, **options)

    monkeypatch.setattr(model, "decode_all", wait_and_decode)
    yield go
    go.set()
