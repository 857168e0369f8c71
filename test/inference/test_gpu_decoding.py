"""Decoding on a GPU: the results are those of the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_baselines
import torch

from speechllm import SpeechToText
from speechllm.models.speech_decoder import SpeechDecoder

pytestmark = pytest.mark.gpu
SEARCHES = {
    "greedy": {"beam_size": 1},
    "joint": {"beam_size": 4, "ctc_weight": 0.4, "pre_beam_size": 16},
    "hotwords": {"beam_size": 3, "hotwords": ("hello", "you")},
    "first pass": {"first_pass_beam_size": 2, "rescore_decoder_weight": 0.4},
}


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch):
    """Compute convolutions without TF32, so that results are those of the CPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def waves() -> list[np.ndarray]:
    """Return noises of 0.5 to 2 s."""
    noise = np.random.default_rng(2)
    return [
        noise.normal(size=n).astype(np.float32) / 20 for n in range(8000, 32001, 6000)
    ]


@pytest.mark.parametrize("name", SEARCHES)
def test_results_are_those_of_the_cpu(tiny_model, whisper_base, tmp_path, waves, name):
    decoder = tiny_baselines.write_tiny_whisper_decoder(tmp_path, whisper_base)
    results = []
    for device in ("cpu", "cuda"):
        model = SpeechToText.from_pretrained(tiny_model, device)
        model.load_speech_decoder = lambda d=device: SpeechDecoder(decoder).to(d)
        limits = {"tokens_per_second": 0.0, "extra_tokens": 6.0, "word_times": True}
        results.append(
            model.transcribe(
                waves, language="en", batch_size=3, **SEARCHES[name], **limits
            )
        )
    for on_cpu, on_gpu in zip(*results, strict=True):
        assert on_gpu.text == on_cpu.text
        assert on_gpu.score == pytest.approx(on_cpu.score, abs=1e-3)
        times = [[word.end for word in r.words or ()] for r in (on_cpu, on_gpu)]
        assert times[1] == pytest.approx(times[0], abs=0.03)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_decodes_every_search(tiny_model, waves, dtype):
    model = SpeechToText.from_pretrained(tiny_model, "cuda", dtype)
    for name in ("greedy", "joint", "hotwords"):
        options = {**SEARCHES[name], "extra_tokens": 6.0, "word_times": True}
        results = model.transcribe(waves, language="en", batch_size=3, **options)
        assert all(np.isfinite(result.score) for result in results)
