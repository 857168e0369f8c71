"""Conversion of Llama models from GGUF to transformers.

GGUF (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) is llama.cpp's
single file of metadata, vocabulary and (mostly quantised) weights. The package
``gguf`` reads and dequantises it. The conversion restores transformers' names of the
tensors and the order of the query and key rows (llama.cpp interleaves the two halves
of the rotary position embedding), and writes the vocabulary as ``tokenizer.json``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from speechllm.pretrained.model_folder import write_safetensors
from speechllm.utils.errors import UserError
from speechllm.utils.io import write_json

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
# Splitting of text before the BPE merges, by llama.cpp's name of it.
_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
_PRE_TOKENIZERS = {
    "gpt-2": _BYTE_LEVEL,
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL],
    },
}
_CONTROL, _USER_DEFINED = 3, 4  # token types of GGUF


def convert_llama(source: str | Path, target: str | Path) -> None:
    """Write a Llama folder for transformers, weights dequantised to float32.

    Args:
        source: GGUF file of architecture ``llama``.
        target: existing folder that receives ``config.json``,
            ``generation_config.json``, ``model.safetensors``, ``tokenizer.json``
            and ``tokenizer_config.json`` (with the chat template).

    Raises:
        UserError: the file is damaged or not GGUF, or its model or vocabulary is of
            an unsupported type.
    """
    from gguf import GGUFReader

    source, target = Path(source), Path(target)
    try:
        reader = GGUFReader(source)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError) as error:
        raise UserError(f"{source}: not a complete GGUF file ({error})") from error
    for key, known in {
        "general.architecture": ["llama"],
        "tokenizer.ggml.model": ["gpt2"],
        "tokenizer.ggml.pre": list(_PRE_TOKENIZERS),
    }.items():
        if fields.get(key) not in known:
            raise UserError(
                f"{source}: {key} is {fields.get(key)!r}; only "
                f"{' and '.join(known)} can be converted"
            )
    config = _model_config(fields)
    tensors = _llama_tensors(source, reader.tensors, config)
    config["tie_word_embeddings"] = "lm_head.weight" not in tensors
    special = {
        f"{key}_token_id": fields[f"tokenizer.ggml.{name}_token_id"]
        for key, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        if f"tokenizer.ggml.{name}_token_id" in fields
    }
    write_json(target / "config.json", {**config, **special})
    write_json(target / "generation_config.json", special)
    write_json(target / "tokenizer.json", _tokenizer(fields))
    write_json(target / "tokenizer_config.json", _tokenizer_config(fields))
    write_safetensors(target / "model.safetensors", tensors)


def _model_config(fields: dict) -> dict:
    """Return ``config.json`` of a ``LlamaForCausalLM`` without special tokens."""
    heads = fields["llama.attention.head_count"]
    width = fields["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields.get("llama.attention.head_count_kv", heads),
        "head_dim": fields.get("llama.attention.key_length", width // heads),
        "max_position_embeddings": fields["llama.context_length"],
        # stored as float32: 1e-5 is read as 9.9999997e-06
        "rms_norm_eps": float(
            f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"
        ),
        "rope_theta": fields.get("llama.rope.freq_base", 10000.0),
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "attention_bias": False,
        "mlp_bias": False,
    }


def _llama_tensors(source: Path, stored: list, config: dict) -> dict[str, np.ndarray]:
    """Dequantise and rename the tensors as in transformers."""
    from gguf.quants import dequantize

    heads = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"],
    }
    tensors: dict[str, np.ndarray] = {}
    for tensor in stored:
        kind = ""
        if tensor.name in _TOP_NAMES:
            name = _TOP_NAMES[tensor.name]
        else:
            block, _, rest = tensor.name.partition(".")
            index, _, rest = rest.partition(".")
            kind, _, suffix = rest.partition(".")
            if block != "blk" or suffix != "weight" or kind not in _LAYER_NAMES:
                raise UserError(f"{source}: unknown tensor {tensor.name}")
            name = f"model.layers.{index}.{_LAYER_NAMES[kind]}.weight"
        # GGUF lists the fastest dimension first: (in, out) is torch's (out, in)
        value = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        value = value.reshape(tensor.shape[::-1].tolist())
        if kind in heads:
            value = _deinterleave(value, heads[kind])
        tensors[name] = np.ascontiguousarray(value)
    return tensors


def _deinterleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's interleaving of the rows of each head.

    llama.cpp rotates adjacent pairs of rows, transformers the two halves:
    (heads × size/2 × 2, in) → (heads × 2 × size/2, in).
    """
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _tokenizer(fields: dict) -> dict:
    """Return ``tokenizer.json``: byte-level BPE with the special tokens."""
    tokens = fields["tokenizer.ggml.tokens"]
    types = fields["tokenizer.ggml.token_type"]
    added = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == _CONTROL,
        }
        for index, (token, kind) in enumerate(zip(tokens, types))
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": _PRE_TOKENIZERS[fields["tokenizer.ggml.pre"]],
        "post_processor": None,
        "decoder": {**_BYTE_LEVEL, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": fields["tokenizer.ggml.merges"],
        },
    }


def _tokenizer_config(fields: dict) -> dict:
    """Return ``tokenizer_config.json``: special tokens by role, chat template."""
    tokens = fields["tokenizer.ggml.tokens"]
    config = {
        # loads tokenizer.json unchanged
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": fields["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
    }
    for role, name in {
        "bos_token": "bos",
        "eos_token": "eos",
        "unk_token": "unknown",
        "pad_token": "padding",
    }.items():
        index = fields.get(f"tokenizer.ggml.{name}_token_id")
        if index is not None:
            config[role] = tokens[index]
    if "tokenizer.chat_template" in fields:
        config["chat_template"] = fields["tokenizer.chat_template"]
    return config
