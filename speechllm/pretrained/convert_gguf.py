"""Conversion of an LLM from GGUF into a folder for transformers.

transformers' own reader supplies the weights, dequantised to float32, and for most
files configuration and tokenizer, too. It does not know SmolLM2's tokenizer ("smollm"),
which separates digits from the spaces before them, and splits text as GPT-2 does
(release 5.23: "a  9" as "a", "Ġ", "Ġ", "9" instead of "a", "ĠĠ", "9"). That tokenizer
is written here, and the configuration next to it: models that were trained on SmolLM2
record its checksum.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from speechllm.pretrained.model_folder import NO_CODE, write_safetensors
from speechllm.utils.errors import UserError, is_out_of_memory, reason_of
from speechllm.utils.io import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SMOLLM = "smollm"  # llama.cpp's name of a split of text before the BPE merges
_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
_CONTROL, _USER_DEFINED = 3, 4  # token types of GGUF


def convert_gguf(source: str | Path, target: str | Path) -> None:
    """Write a model folder for transformers, weights dequantised to float32.

    Args:
        source: GGUF file.
        target: existing folder that receives ``config.json``,
            ``generation_config.json``, ``model.safetensors`` and the files of the
            tokenizer.

    Raises:
        UserError: the file is damaged or not GGUF, or transformers does not know its
            architecture or its tokenizer.
    """
    source, target = Path(source), Path(target)
    fields = _read_fields(source)
    model = _load_model(source)
    _check_tokenizer(source, fields)
    tensors = {  # tied weights once
        name: value.detach().numpy() for name, value in model.named_parameters()
    }
    special = {
        f"{key}_token_id": fields[f"tokenizer.ggml.{name}_token_id"]
        for key, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        if f"tokenizer.ggml.{name}_token_id" in fields
    }
    if fields.get("tokenizer.ggml.pre") == _SMOLLM:
        config = _llama_config(fields)
        config["tie_word_embeddings"] = "lm_head.weight" not in tensors
        write_json(target / "tokenizer.json", _smollm_tokenizer(fields))
        write_json(target / "tokenizer_config.json", _smollm_tokenizer_config(fields))
    else:
        config = _portable_config(model)
        _load_tokenizer(source).save_pretrained(target)
    write_json(target / "config.json", {**config, **special})
    write_json(target / "generation_config.json", special)
    write_safetensors(target / "model.safetensors", tensors)


def _read_fields(source: Path) -> dict[str, Any]:
    """Return the metadata of a GGUF file.

    Raises:
        UserError: it is damaged, cut off, or another file.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(source)
        return {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError) as error:
        raise UserError(f"{source}: not a complete GGUF file ({error})") from error


def _check_tokenizer(source: Path, fields: dict[str, Any]) -> None:
    """Check that the split of text before the BPE merges is known.

    transformers would split as GPT-2 without a warning.

    Raises:
        UserError: it is unknown.
    """
    from transformers.integrations.gguf import gguf_tokenizer_mapping

    split = fields.get("tokenizer.ggml.pre", "gpt-2")
    # transformers 5.17 has no such table, and splits all as GPT-2.
    known = {"gpt-2", *getattr(gguf_tokenizer_mapping, "GGUF_PRE_TOKENIZER_SPLITS", ())}
    if fields.get("general.architecture") == "llama":
        known.add(_SMOLLM)
    if fields.get("tokenizer.ggml.model") == "gpt2" and split not in known:
        raise UserError(
            f"{source}: its tokenizer splits text as {split!r}, which transformers "
            "does not know; use the original model in place of the GGUF file"
        )


def _load_model(source: Path) -> PreTrainedModel:
    """Load the causal LM of a GGUF file with transformers.

    Raises:
        UserError: transformers cannot read it, or it lacks weights.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    model: PreTrainedModel
    info: dict[str, Any]
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
            **NO_CODE,
        )
    except Exception as error:  # of many classes
        if is_out_of_memory(error):
            raise
        reason = reason_of(error)[:300]
        raise UserError(f"{source}: transformers cannot read it: {reason}") from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{source}: {len(missing)} weights are missing: {', '.join(missing[:3])}"
        )
    return model


def _load_tokenizer(source: Path) -> Any:
    """Load the tokenizer of a GGUF file with transformers.

    Raises:
        UserError: transformers cannot read it.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            source.parent, gguf_file=source.name, **NO_CODE
        )
    except Exception as error:  # of many classes
        if is_out_of_memory(error):
            raise
        reason = reason_of(error)[:300]
        raise UserError(
            f"{source}: transformers cannot read its tokenizer: {reason}"
        ) from error


def _portable_config(model: PreTrainedModel) -> dict[str, Any]:
    """Return ``config.json`` without the version and the file it was made with."""
    config = model.config.to_diff_dict()
    for name in ("quantization_config", "transformers_version", "_name_or_path"):
        config.pop(name, None)
    if "rms_norm_eps" in config:
        config["rms_norm_eps"] = _shortest(config["rms_norm_eps"])
    return {"architectures": [type(model).__name__], **config, "dtype": "float32"}


def _shortest(number: float) -> float:
    """Return a number that was stored as float32: 1e-5 is read as 9.9999997e-06."""
    return float(f"{number:.6g}")


def _llama_config(fields: dict[str, Any]) -> dict[str, Any]:
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
        "rms_norm_eps": _shortest(fields["llama.attention.layer_norm_rms_epsilon"]),
        "rope_theta": fields.get("llama.rope.freq_base", 10000.0),
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "attention_bias": False,
        "mlp_bias": False,
    }


def _smollm_tokenizer(fields: dict[str, Any]) -> dict[str, Any]:
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
    digits = {"type": "Digits", "individual_digits": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, _BYTE_LEVEL]},
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


def _smollm_tokenizer_config(fields: dict[str, Any]) -> dict[str, Any]:
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
