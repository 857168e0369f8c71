"""Sampling: the distribution, compared with transformers' logits processors."""

from __future__ import annotations

import pytest
import torch

from speechllm.decoding.options import SearchOptions
from speechllm.decoding.sampling import sampling_probabilities


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.6), (3, 0.7)])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampling_distribution_equals_transformers(top_k, top_p, temperature):
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    logits = 3 * torch.randn(6, 11, generator=torch.Generator().manual_seed(top_k))
    model = LlamaForCausalLM(LlamaConfig(vocab_size=11, hidden_size=8,
        intermediate_size=8, num_hidden_layers=1, num_attention_heads=1))  # fmt: skip
    config = GenerationConfig(
        do_sample=True, temperature=temperature, top_k=top_k, top_p=top_p
    )
    warpers = model._get_logits_processor(config)
    ids = torch.zeros(6, 1, dtype=torch.long)
    expected = warpers(ids, logits.log_softmax(1)).softmax(1)
    options = SearchOptions(temperature=temperature, top_k=top_k, top_p=top_p)
    found = sampling_probabilities(logits.log_softmax(1), options)
    assert torch.allclose(found, expected, atol=1e-6)
