"""LanguageModel: families, gradient checkpointing, attention, loss in chunks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers
from live_tensors import live_outputs
from torch.utils._python_dispatch import TorchDispatchMode

from speechllm.decoding.kv_cache import BeamKVCache
from speechllm.models import llm as llm_module
from speechllm.models.llm import LanguageModel, attention_implementation

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SLIDING = {
    "sliding_window": 4,
    "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def supported_configs() -> dict[str, transformers.PreTrainedConfig]:
    """Return tiny configs: plain, sliding windows, and multimodal."""
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2]}
    qwen_vision = {
        "depth": 1,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 16,
        "out_hidden_size": 32,
    }
    return {
        "llama": transformers.LlamaConfig(**SIZES),
        "mistral": transformers.MistralConfig(**SIZES, sliding_window=4),
        "gemma2": transformers.Gemma2Config(**SIZES, **SLIDING),
        "gemma3_text": transformers.Gemma3TextConfig(**SIZES, **SLIDING),
        "gemma3": transformers.Gemma3Config(
            text_config={**SIZES, **SLIDING},
            vision_config=VISION,
            mm_tokens_per_image=4,
        ),
        "mistral3": transformers.Mistral3Config(
            text_config={"model_type": "mistral", **SIZES},
            vision_config={"model_type": "pixtral", **VISION, "head_dim": 8},
        ),
        "qwen2_5_vl": transformers.Qwen2_5_VLConfig(
            text_config={**SIZES, "rope_parameters": rope}, vision_config=qwen_vision
        ),
    }


def refused_configs() -> dict[str, transformers.PreTrainedConfig]:
    """Return tiny configs of recurrent, hybrid and per-layer input models."""
    mamba = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 4}
    return {
        "mamba": transformers.MambaConfig(
            vocab_size=99, hidden_size=32, num_hidden_layers=2, state_size=4
        ),
        "bamba": transformers.BambaConfig(**SIZES, attn_layer_indices=[1], **mamba),
        "lfm2": transformers.Lfm2Config(**SIZES, full_attn_idxs=[1, 3]),
        "recurrent_gemma": transformers.RecurrentGemmaConfig(
            vocab_size=99,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            lru_width=32,
            attention_window_size=8,
        ),
        "gemma3n_text": transformers.Gemma3nTextConfig(
            **SIZES,
            **SLIDING,
            vocab_size_per_layer_input=99,
            hidden_size_per_layer_input=8,
            num_kv_shared_layers=0,
            laurel_rank=4,
        ),
    }


def build(config, **options) -> LanguageModel:
    """Return a model with random weights; the class is that of ``load_llm``."""
    torch.manual_seed(1)
    causal_lm = llm_module.causal_lm_class(config).from_config(
        config, attn_implementation="eager"
    )
    tokenizer = SimpleNamespace(eos_token_id=2, decode=lambda tokens: "x" * len(tokens))
    return LanguageModel(causal_lm, tokenizer=tokenizer, **options).eval()


def prompts(llm: LanguageModel) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [0.1 * torch.randn(n, llm.hidden_size, generator=generator) for n in (9, 6)]


ANSWERS = [[3, 4, 2], [5, 2]]


@pytest.mark.parametrize("family", supported_configs())
@torch.no_grad()
def test_cached_decoding_equals_transformers(family):
    """A left-padded batch with a KV cache, against each whole sequence alone."""
    llm = build(supported_configs()[family], tuning="frozen")
    rows = prompts(llm)
    padded = torch.stack(
        [torch.nn.functional.pad(row, (0, 0, 9 - len(row), 0)) for row in rows]
    )
    mask = torch.tensor([[1] * 9, [0] * 3 + [1] * 6])
    cache = BeamKVCache()
    llm.body(padded, mask, cache)
    tokens = torch.tensor([[5], [7]])
    mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
    hidden = llm.body(llm.embed(tokens), mask, cache)
    found = llm.head(hidden[:, -1])
    assert found.shape == (2, llm.config.vocab_size)
    for row, token, logits in zip(rows, tokens, found):
        whole = torch.cat([row, llm.embed(token)])[None]
        expected = llm.causal_lm(inputs_embeds=whole).logits[0, -1]
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        transformers.GraniteConfig(**SIZES, logits_scaling=8.0),
        transformers.HyperCLOVAXConfig(**SIZES, logits_scaling=0.125),
        transformers.Cohere2Config(**SIZES, logit_scale=0.125),
        transformers.Gemma2Config(**SIZES, final_logit_softcapping=0.1),
    ],
    ids=lambda config: config.model_type,
)
@torch.no_grad()
def test_scaled_logits_equal_transformers(config):
    llm = build(config, tuning="frozen")
    rows = torch.stack([row[:6] for row in prompts(llm)])
    found = llm.head(llm.body(rows, torch.ones(2, 6, dtype=torch.long)))
    torch.testing.assert_close(found, llm.causal_lm(inputs_embeds=rows).logits)


@pytest.mark.parametrize("family", refused_configs())
def test_unsupported_families_are_refused_by_name(family):
    with pytest.raises(ValueError, match=f"llm {family}: .* not supported; choose"):
        build(refused_configs()[family])


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("family", ["gemma3", "mistral3", "qwen2_5_vl"])
def test_vision_tower_is_never_trained(family, tuning):
    lora = {"r": 2, "target_modules": ["q_proj", "v_proj"]}  # names in both towers
    llm = build(supported_configs()[family], tuning=tuning, lora=lora).train()
    trained = {n: p for n, p in llm.named_parameters() if p.requires_grad}
    assert trained
    assert not [n for n in trained if "vision" in n or "visual" in n]
    llm.answer_loss(prompts(llm), ANSWERS)[0].backward()
    without = [n for n, p in trained.items() if p.grad is None]
    assert not without


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
def test_gradient_checkpointing(family, tuning):
    """Gradients of the prompts are equal; activations within layers are freed."""
    gradients, alive, calls = [], [], []
    for checkpointing in (False, True):
        llm = build(
            supported_configs()[family],
            tuning=tuning,
            gradient_checkpointing=checkpointing,
        ).train()
        layers = llm_module.language_model(llm.causal_lm).layers
        runs = []
        layers[0].input_layernorm.register_forward_hook(
            lambda *_, runs=runs: runs.append(1)
        )
        live = live_outputs(layers)
        inputs = [row.requires_grad_() for row in prompts(llm)]
        loss, _ = llm.answer_loss(inputs, ANSWERS)
        alive.append(live())
        loss.backward()
        gradients.append([row.grad for row in inputs])
        calls.append(len(runs))
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other)
    assert calls == [1, 2]
    assert alive[0] > 10_000
    assert alive[1] == 0


def test_checkpointed_model_decodes_with_a_cache():
    llm = build(
        supported_configs()["llama"], tuning="frozen", gradient_checkpointing=True
    )
    (row, _) = prompts(llm)
    cache = BeamKVCache()
    llm.body(row[None], torch.ones(1, 9, dtype=torch.long), cache)
    assert cache.get_seq_length() == 9


class LargestTensor(TorchDispatchMode):
    """Record the number of elements of the largest result of any operation."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_in_chunks(monkeypatch, smoothing):
    """Loss, best tokens and gradients do not depend on the size of a chunk."""
    config = transformers.LlamaConfig(**{**SIZES, "vocab_size": 5000})
    answers = [[3, 4, 900, 17, 8, 2], [5, 4999, 2]]
    found = []
    for limit in (1 << 26, 2 * 5000):
        monkeypatch.setattr(llm_module, "LOGITS", limit)
        llm = build(config, tuning="lora")
        inputs = [row.requires_grad_() for row in prompts(llm)]
        with LargestTensor() as largest:
            loss, best = llm.answer_loss(inputs, answers, smoothing)
            loss.backward()
        log_probs = torch.cat(llm.answer_log_probs(inputs, answers))
        found.append((loss, best, *(row.grad for row in inputs), log_probs))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other)
    assert largest.elements <= max(2 * 5000, 32 * 5000)


def test_attention_implementation(tiny_llm, monkeypatch):
    for name in ("eager", "sdpa"):
        llm = LanguageModel(str(tiny_llm), dtype="float32", attn_implementation=name)
        assert llm.causal_lm.config._attn_implementation == name
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert attention_implementation() == "eager"
    assert attention_implementation("flash_attention_2") == "eager"
    assert attention_implementation("sdpa") == "sdpa"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert attention_implementation() is None
    assert attention_implementation("flash_attention_2") == "flash_attention_2"


@pytest.mark.parametrize("tuning", ["full", "frozen", "lora"])
def test_precision_in_decoding_is_that_asked_for(tiny_llm, tuning):
    """In training a fully trained LLM has float32 weights, whatever dtype says."""
    for decoding in (False, True):
        llm = LanguageModel(
            str(tiny_llm), tuning=tuning, dtype="bfloat16", decoding=decoding
        )
        is_float32 = tuning == "full" and not decoding
        expected = torch.float32 if is_float32 else torch.bfloat16
        weights = {p.dtype for n, p in llm.named_parameters() if "lora_" not in n}
        assert weights == {expected} and llm.dtype == expected
