"""Conversion of Llama from GGUF: SmolLM2, and a small model compared exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechllm.pretrained.convert_gguf import convert_llama
from speechllm.utils.errors import UserError

TEXT = "Hello wörld 2024 日本 it's\n\n  x"


def test_converted_smollm2_generates_text(smollm2):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype="float32")
    assert getattr(model.config, "quantization_config", None) is None
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(output[0])

    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert model.config.eos_token_id == tokenizer.eos_token_id == 2
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    ids = tokenizer(prompt + TEXT).input_ids
    assert tokenizer.decode(ids) == prompt + TEXT
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 3
    assert tokenizer.tokenize("it's 2024") == ["it", "'s", "Ġ", "2", "0", "2", "4"]


@pytest.fixture(scope="module")
def small_llama():
    """Return a random Llama with grouped-query attention and its byte-level tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens += bytes_to_unicode().values()
    tokens += ["he", "ll", "hell"]
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval(), tokens


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder query or key rows as llama.cpp's ``convert_hf_to_gguf.py`` does."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def write_gguf(path, small_llama, architecture="llama", pre="smollm", kind=None):
    import gguf

    from speechllm.pretrained.convert_gguf import _LAYER_NAMES

    model, tokens = small_llama
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["h e", "l l", "he ll"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    back = {ours: theirs for theirs, ours in _LAYER_NAMES.items()}
    for name, value in model.state_dict().items():
        value = value.numpy()
        if name.startswith("model.layers."):
            index, _, module = name.removeprefix("model.layers.").partition(".")
            module = module.removesuffix(".weight")
            name = f"blk.{index}.{back[module]}.weight"
            if "attn_q" in name:
                value = interleave(value, config.num_attention_heads)
            if "attn_k" in name:
                value = interleave(value, config.num_key_value_heads)
        else:
            name = {
                "model.embed_tokens.weight": "token_embd.weight",
                "model.norm.weight": "output_norm.weight",
                "lm_head.weight": "output.weight",
            }[name]
        if kind is not None and value.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_float32_weights_are_converted_exactly(small_llama, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    convert_llama(write_gguf(tmp_path / "model.gguf", small_llama), tmp_path)
    back, info = AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values())
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        assert torch.equal(back(ids).logits, small_llama[0](ids).logits)
    assert back.config.rms_norm_eps == 1e-5

    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.tokenize("hello 12") == ["hell", "o", "Ġ", "1", "2"]
    assert tokenizer.decode(tokenizer(TEXT).input_ids) == TEXT
    assert tokenizer("<|im_start|>").input_ids == [1]


def test_quantised_weights_are_converted_within_their_precision(small_llama, tmp_path):
    import gguf
    from safetensors.numpy import load_file

    kind = gguf.GGMLQuantizationType.Q8_0
    convert_llama(write_gguf(tmp_path / "model.gguf", small_llama, kind=kind), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name, value in small_llama[0].state_dict().items():
        assert tensors[name].dtype == np.float32
        error = np.abs(tensors[name] - value.numpy()).max()
        assert error <= np.abs(value.numpy()).max() / 127


def test_unsupported_models_are_rejected(small_llama, tmp_path):
    path = write_gguf(tmp_path / "a.gguf", small_llama, architecture="gptj")
    with pytest.raises(UserError, match="architecture is 'gptj'; only llama"):
        convert_llama(path, tmp_path)
    path = write_gguf(tmp_path / "b.gguf", small_llama, pre="unheard-of")
    with pytest.raises(UserError, match="pre is 'unheard-of'; only gpt-2 and smollm"):
        convert_llama(path, tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_damaged_files_are_rejected(small_llama, tmp_path):
    data = write_gguf(tmp_path / "whole.gguf", small_llama).read_bytes()
    path = tmp_path / "damaged.gguf"
    for content in (b"", b"no GGUF at all, but long enough for a header", data[:-100]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged.gguf: not a complete GGUF file"):
            convert_llama(path, tmp_path)
    for length in range(4, len(data), 997):
        path.write_bytes(data[:length])
        with pytest.raises(UserError):
            convert_llama(path, tmp_path)
