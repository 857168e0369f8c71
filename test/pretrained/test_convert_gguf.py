"""Conversion of LLMs from GGUF: SmolLM2, and small models compared exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speechllm.pretrained.convert_gguf import convert_gguf
from speechllm.utils.errors import UserError

LAYER_NAMES = {  # transformers' name -> llama.cpp's
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
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
    tokens += ["he", "ll", "hell", "ĠĠ"]
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
    writer.add_token_merges(["h e", "l l", "he ll", "Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, value in model.state_dict().items():
        value = value.numpy()
        if name.startswith("model.layers."):
            index, _, module = name.removeprefix("model.layers.").partition(".")
            module = module.removesuffix(".weight")
            name = f"blk.{index}.{LAYER_NAMES[module]}.weight"
            if "attn_q" in name:
                value = interleave(value, config.num_attention_heads)
            if "attn_k" in name:
                value = interleave(value, config.num_key_value_heads)
        else:
            name = TOP_NAMES[name]
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

    convert_gguf(write_gguf(tmp_path / "model.gguf", small_llama), tmp_path)
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
    # transformers' own reader of GGUF tokenizers: Ġ, Ġ, 9
    assert tokenizer.tokenize("  9") == ["ĠĠ", "9"]
    assert tokenizer.decode(tokenizer(TEXT).input_ids) == TEXT
    assert tokenizer("<|im_start|>").input_ids == [1]


def test_quantised_weights_are_converted_within_their_precision(small_llama, tmp_path):
    import gguf
    from safetensors.numpy import load_file

    kind = gguf.GGMLQuantizationType.Q8_0
    convert_gguf(write_gguf(tmp_path / "model.gguf", small_llama, kind=kind), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name, value in small_llama[0].state_dict().items():
        assert tensors[name].dtype == np.float32
        error = np.abs(tensors[name] - value.numpy()).max()
        assert error <= np.abs(value.numpy()).max() / 127


def test_smollm2_has_the_checksum_of_release_0_2(smollm2):
    """Exported models record it; no byte of the files may change."""
    from speechllm.pretrained.model_folder import model_fingerprint

    found = model_fingerprint(smollm2, tokenizer=True)
    assert found == "b3965437ea8449b1488f761ef211a69f4a3bd9803f7d51b6f0d6eab8206dafd4"


def test_gemma_is_read_by_transformers(tmp_path):
    """Weights and tokenizer of another architecture than Llama."""
    import gguf
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        Gemma3ForCausalLM,
        Gemma3TextConfig,
    )

    letters = ["▁", *"abcdefghij", "ab", "abc", "▁abc"]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *letters]
    torch.manual_seed(3)
    config = Gemma3TextConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=256,
        max_position_embeddings=64,
        sliding_window=8,
    )
    model = Gemma3ForCausalLM(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("norm.weight"):
                value.normal_(0, 0.3)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "gemma3")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_block_count(6)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_key_length(16)
    writer.add_value_length(16)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(8)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(n) for n in range(len(tokens))])
    writer.add_token_types([3] * 4 + [1] * len(letters))
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    layer_names = {
        **LAYER_NAMES,
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }
    for name, parameter in model.named_parameters():
        value = parameter.detach().numpy()
        if name.endswith("norm.weight"):  # llama.cpp stores 1 + weight
            value = value + 1
        if name.startswith("model.layers."):
            index, _, module = name.removeprefix("model.layers.").partition(".")
            module = module.removesuffix(".weight")
            name = f"blk.{index}.{layer_names[module]}.weight"
        else:
            name = TOP_NAMES[name]
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    convert_gguf(tmp_path / "model.gguf", tmp_path)
    (tmp_path / "model.gguf").unlink()
    back, info = AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values())
    assert getattr(back.config, "quantization_config", None) is None
    ids = torch.arange(4, 18)[None]
    with torch.inference_mode():
        torch.testing.assert_close(back(ids).logits, model(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("abc abc").input_ids == [2, 16, 17]
    assert tokenizer.decode([16, 17]) == "abc abc"
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 0)
    assert back.config.eos_token_id == 1 and back.config.rms_norm_eps == 1e-6


def test_transformers_5_17_converts_smollm_but_no_split_of_its_own(
    small_llama, tmp_path, monkeypatch
):
    from transformers.integrations.gguf import gguf_tokenizer_mapping

    monkeypatch.delattr(gguf_tokenizer_mapping, "GGUF_PRE_TOKENIZER_SPLITS")
    convert_gguf(write_gguf(tmp_path / "a.gguf", small_llama), tmp_path / "a")
    assert (tmp_path / "a" / "tokenizer.json").exists()
    path = write_gguf(tmp_path / "b.gguf", small_llama, pre="llama-bpe")
    with pytest.raises(UserError, match="splits text as 'llama-bpe', which transf"):
        convert_gguf(path, tmp_path / "b")


def test_unsupported_models_are_rejected(small_llama, tmp_path):
    path = write_gguf(tmp_path / "a.gguf", small_llama, architecture="gptj")
    with pytest.raises(UserError, match="a.gguf: transformers cannot read it.*gptj"):
        convert_gguf(path, tmp_path)
    path = write_gguf(tmp_path / "b.gguf", small_llama, pre="unheard-of")
    with pytest.raises(UserError, match="splits text as 'unheard-of', which transf"):
        convert_gguf(path, tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_damaged_files_are_rejected(small_llama, tmp_path):
    data = write_gguf(tmp_path / "whole.gguf", small_llama).read_bytes()
    path = tmp_path / "damaged.gguf"
    for content in (b"", b"no GGUF at all, but long enough for a header", data[:-100]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged.gguf: not a complete GGUF file"):
            convert_gguf(path, tmp_path)
    for length in range(4, len(data), 997):
        path.write_bytes(data[:length])
        with pytest.raises(UserError):
            convert_gguf(path, tmp_path)
