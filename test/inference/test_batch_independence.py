"""Outputs of an utterance do not depend on its batch, for all encoders and bridges."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import LABELS, PROMPTS, write_tiny_hubert

from speechllm.decoding.options import search_options
from speechllm.inference.speech_to_text import SpeechToText
from speechllm.models.speech_llm import build_speech_llm
from speechllm.text.prompts import read_prompts
from speechllm.text.tasks import Task
from speechllm.utils.errors import UserError

ENCODERS = ("whisper", "hubert-group", "hubert-layer")
BRIDGES = ("convolution", "ctc_compression", "transcript")
PAIRS = [(encoder, bridge) for encoder in ENCODERS for bridge in BRIDGES]
PAIRS += [("whisper", "stack"), ("hubert-group", "qformer")]  # one encoder is enough
SEARCHES = (
    {"beam_size": 1},
    {"beam_size": 3},
    {"beam_size": 3, "ctc_weight": 0.4, "pre_beam_size": 6},
)


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_whisper, tiny_llm) -> dict[tuple, SpeechToText]:
    """Return a tiny random model of each pair of encoder and bridge."""
    root = tmp_path_factory.mktemp("batches")
    (root / "prompts.yaml").write_text(PROMPTS)
    folders = {"whisper": tiny_whisper}
    for norm in ("group", "layer"):
        folders[f"hubert-{norm}"] = write_tiny_hubert(root / norm, norm)
    found = {}
    for encoder, bridge in PAIRS:
        torch.manual_seed(6)
        model = build_speech_llm(
            {
                "encoder": encoder.split("-")[0],
                "encoder_conf": {"model": str(folders[encoder])},
                "bridge": bridge,
                "llm": "causal_lm",
                "llm_conf": {"model": str(tiny_llm), "dtype": "float32"},
                "token_list": LABELS,
            }
        )
        prompts = read_prompts(root / "prompts.yaml")
        found[encoder, bridge] = SpeechToText(model, prompts)
    return found


@pytest.mark.parametrize("search", SEARCHES, ids=["greedy", "beam", "joint"])
@pytest.mark.parametrize(("encoder", "bridge"), PAIRS)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    seconds=st.lists(st.floats(0.1, 20.0), min_size=2, max_size=6),
    batch_size=st.integers(1, 32),
    order=st.randoms(use_true_random=False),
)
def test_text_does_not_depend_on_the_batch(
    models, encoder, bridge, search, seconds, batch_size, order
):
    model = models[encoder, bridge]
    generator = torch.Generator().manual_seed(len(seconds))
    waves = [
        (0.1 * torch.randn(int(16000 * s), generator=generator)).numpy()
        for s in seconds
    ]
    tasks = [Task("asr", "en", "en"), Task("st", "en", "fr"), Task("asr", "fr", "fr")]
    tasks = [tasks[i % 3] for i in range(len(waves))]
    options = search_options({**search, "tokens_per_second": 0.5, "extra_tokens": 4})
    alone = [model.decode([w], [t], options)[0] for w, t in zip(waves, tasks)]
    indices = list(range(len(waves)))
    order.shuffle(indices)
    found = model.decode(
        [waves[i] for i in indices], [tasks[i] for i in indices], options, batch_size
    )
    for index, result in zip(indices, found):
        assert result.tokens == alone[index].tokens
        assert result.ctc_text == alone[index].ctc_text
        assert result.score == pytest.approx(alone[index].score, abs=1e-3)


def test_sampling_does_not_depend_on_the_batch(models):
    model = models["hubert-group", "convolution"]
    waves = [
        (0.1 * torch.randn(n, generator=torch.Generator().manual_seed(n))).numpy()
        for n in (9000, 40000, 17000, 30000)
    ]
    tasks = [Task("asr", "en", "en")] * 4
    options = search_options({"sampling": True, "top_p": 0.9, "extra_tokens": 6})
    alone = [model.decode([w], [t], options)[0].tokens for w, t in zip(waves, tasks)]
    for batch_size in (1, 2, 4):
        found = model.decode(waves, tasks, options, batch_size)
        assert [result.tokens for result in found] == alone
    other = search_options({"sampling": True, "top_p": 0.9, "seed": 1})
    found = model.decode(waves, tasks, other)
    assert [result.tokens for result in found] != alone
    with pytest.raises(UserError, match="sampling draws one output"):
        search_options({"sampling": True, "beam_size": 2})
    with pytest.raises(UserError, match="top_p"):
        search_options({"sampling": True, "top_p": 0})
