"""Decoding steps of fixed shape, on a GPU as CUDA graphs, against the usual steps."""

from __future__ import annotations

import pytest
import torch
from test_beam_search import random_prompt, search
from tiny_models import five_token_llm
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from speechllm.decoding.kv_cache import BeamKVCache
from speechllm.decoding.options import SearchOptions
from speechllm.decoding.step_graphs import StepGraphs, supports_step_graphs
from speechllm.models.llm import LanguageModel
from speechllm.models.quantization import quantize_layers

SIZES = {
    "vocab_size": 40,
    "hidden_size": 64,  # bitsandbytes quantises blocks of 64
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
FAMILIES = {
    "llama": LlamaConfig(**GROUPED),
    "gpt_neox": GPTNeoXConfig(**SIZES),
    "qwen2": Qwen2Config(**GROUPED),
    "gemma": GemmaConfig(**GROUPED, head_dim=8),
    "gpt2": GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4),
}
SEARCHES = {
    "greedy": SearchOptions(beam_size=1),
    "beam": SearchOptions(beam_size=3, nbest=3),
    "sampling": SearchOptions(sampling=True, temperature=0.7),
    "no repetition": SearchOptions(beam_size=2, no_repeat_ngram_size=2),
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def language_model(family: str, device: str = "cpu", attention: str = "sdpa"):
    """Return an LLM with random weights and the tokenizer of five tokens."""
    torch.manual_seed(1)
    causal_lm = AutoModelForCausalLM.from_config(
        FAMILIES[family], attn_implementation=attention
    )
    tokenizer = five_token_llm(11, ["a", "b", "ca", ",", ""]).tokenizer
    llm = LanguageModel(causal_lm, "frozen", tokenizer=tokenizer).eval()
    return llm.to(device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_hypotheses_are_those_of_usual_steps(family, name, device):
    """Rows join and leave, and buffers are replaced."""
    check_hypotheses(language_model(family, device), SEARCHES[name])


def check_hypotheses(llm: LanguageModel, options: SearchOptions) -> None:
    """Search with usual steps and with those of fixed shape, and compare."""
    device = llm.causal_lm.device
    sizes = [3, 9, 4, 30, 5, 6, 1]
    prompts = [random_prompt(llm, n, n).to(device) for n in sizes]
    limits = [200, 2, 30, 8, 5, 1, 12]
    found = []
    for llm.step_graphs in (False, True):
        with torch.inference_mode():
            found.append(
                search(
                    llm,
                    prompts,
                    limits,
                    options,
                    None,
                    None,
                    sizes,
                    batch_size=3,
                )
            )
    assert llm.step_graphs  # no graph failed
    for usual, fixed in zip(*found):
        assert [h.tokens for h in fixed] == [h.tokens for h in usual]
        scores = [[h.score for h in hypotheses] for hypotheses in (usual, fixed)]
        assert scores[1] == pytest.approx(scores[0], abs=1e-3)


def test_eager_attention_has_the_same_mask():
    usual, eager = (language_model("llama", attention=a) for a in ("sdpa", "eager"))
    eager.step_graphs = True
    prompts = [random_prompt(usual, n, n) for n in (2, 7)]
    pair = [search(m, prompts, [9, 9], SEARCHES["beam"]) for m in (usual, eager)]
    for one, other in zip(*pair):
        assert [h.tokens for h in one] == [h.tokens for h in other]


@torch.inference_mode()
def test_a_full_buffer_is_used_again_from_its_begin():
    llm = language_model("llama")
    cache, graphs = StepGraphs.new_cache(), StepGraphs(llm)
    prompt = random_prompt(llm, 4, 1)
    new = BeamKVCache()
    llm.body(prompt[None], torch.ones(1, 4), new)
    cache.append(new)
    graphs.log_probs([1], [5], cache)
    address, capacity = cache.layers[0].keys.data_ptr(), cache.capacity
    for _ in range(capacity):
        cache.trim(4)
        graphs.log_probs([1], [5], cache)
    assert (cache.layers[0].keys.data_ptr(), cache.capacity) == (address, capacity)
    assert len(graphs.steps) == 1


@torch.inference_mode()
def test_replaced_buffers_have_new_steps_at_any_address(monkeypatch):
    """The allocator may give new buffers the address of earlier ones."""
    monkeypatch.setattr(torch.Tensor, "data_ptr", lambda self: 1)
    llm = language_model("llama")
    cache, graphs, new = StepGraphs.new_cache(), StepGraphs(llm), BeamKVCache()
    llm.body(random_prompt(llm, 4, 1)[None], torch.ones(1, 4), new)
    cache.append(new)
    graphs.log_probs([1], [5], cache)
    first = graphs.steps[1]
    cache.reserve(64)
    graphs.log_probs([1], [6], cache)
    assert graphs.steps[1] is not first


def test_only_full_attention_on_a_gpu_is_supported():
    assert not supports_step_graphs(language_model("llama"))  # on a CPU
    torch.manual_seed(1)
    window = AutoModelForCausalLM.from_config(MistralConfig(**GROUPED))
    llm = LanguageModel(window, "frozen", tokenizer=language_model("gpt2").tokenizer)
    weight = llm.causal_lm.get_input_embeddings().weight
    assert weight.device.type == "cpu" and not supports_step_graphs(llm)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["greedy", "beam"])
def test_an_llm_in_4_bits_has_graphs(name):
    """Of its layers in float32, so that the order of sums cannot change a text."""
    llm = language_model("llama", "cuda")
    quantize_layers(llm.causal_lm)
    for layer in llm.causal_lm.modules():
        if hasattr(layer, "compute_dtype"):
            layer.compute_dtype = torch.float32
    assert supports_step_graphs(llm)
    check_hypotheses(llm, SEARCHES[name])


@pytest.mark.gpu
def test_families_on_a_gpu():
    assert all(supports_step_graphs(language_model(f, "cuda")) for f in FAMILIES)
