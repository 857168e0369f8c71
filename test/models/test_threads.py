"""One model in several threads: results are those of a single thread."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from test_encoder import alone
from tiny_models import (
    LABELS,
    PROMPTS,
    write_tiny_conformer,
    write_tiny_hubert,
    write_tiny_w2v_bert,
)

from speechllm.inference.speech_to_text import SpeechToText
from speechllm.models.encoders import AutoEncoder
from speechllm.models.hubert_encoder import HubertEncoder
from speechllm.models.speech_llm import build_speech_llm
from speechllm.models.whisper_encoder import WhisperEncoder
from speechllm.text.prompts import read_prompts

THREADS = 4


@pytest.mark.parametrize(
    "kind", ["hubert", "wavlm", "whisper", "conformer", "rotary", "w2v-bert"]
)
def test_features_of_concurrent_calls(tmp_path, tiny_whisper, kind):
    if kind in ("hubert", "wavlm"):
        folder = write_tiny_hubert(tmp_path, "group", kind)
        encoder = HubertEncoder(str(folder)).eval()
    elif kind == "whisper":
        encoder = WhisperEncoder(str(tiny_whisper)).eval()
    elif kind == "w2v-bert":
        encoder = AutoEncoder(str(write_tiny_w2v_bert(tmp_path))).eval()
    else:
        positions = "relative" if kind == "conformer" else "rotary"
        folder = write_tiny_conformer(tmp_path, positions)
        encoder = AutoEncoder(str(folder)).eval()
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(800, 9000, (100,), generator=generator).tolist()
    waves = [torch.randn(n, generator=generator) * 0.1 for n in lengths]
    expected = [alone(encoder, wave) for wave in waves]
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda wave: alone(encoder, wave), waves))
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other)


def test_transcripts_of_concurrent_calls(tmp_path, tiny_llm):
    (tmp_path / "prompts.yaml").write_text(PROMPTS, "utf-8")
    torch.manual_seed(3)
    hubert = write_tiny_hubert(tmp_path / "hubert", "group")
    model = build_speech_llm(
        {
            "encoder": "hubert",
            "encoder_conf": {"model": str(hubert)},
            "bridge": "transcript",
            "llm": "causal_lm",
            "llm_conf": {"model": str(tiny_llm), "dtype": "float32"},
            "token_list": LABELS,
        }
    )
    recognizer = SpeechToText(model, read_prompts(tmp_path / "prompts.yaml"))
    generator = np.random.default_rng(1)
    waves = [
        0.1 * generator.standard_normal(n, dtype=np.float32)
        for n in generator.integers(4000, 16000, 24)
    ]

    def transcribe(wave: np.ndarray) -> tuple[str, float]:
        (result,) = recognizer.transcribe([wave], ctc_weight=0.3, word_times=True)
        return result.text, result.score

    expected = [transcribe(wave) for wave in waves]
    assert len(set(expected)) > 12
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(transcribe, waves))
    assert [text for text, _ in found] == [text for text, _ in expected]
    np.testing.assert_allclose(
        [score for _, score in found], [score for _, score in expected], rtol=1e-4
    )
