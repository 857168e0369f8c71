"""Shapes of pretrained models without their weights: transformers configurations."""

from __future__ import annotations

from pathlib import Path

from speechllm.pretrained.model_folder import is_nue_asr, read_model_config
from speechllm.utils.errors import UserError

_JAPANESE_GPT = {
    "model_type": "gpt_neox",
    "hidden_size": 2816,
    "intermediate_size": 11264,
    "num_hidden_layers": 36,
    "num_attention_heads": 22,
    "vocab_size": 32000,
    "use_parallel_residual": False,
}
# Shapes as in config.json on the hub, for models that are gated or large. Gemma's are
# also in transformers' convert_gemma2_weights_to_hf.py.
KNOWN = {
    "google/gemma-2-9b": {
        "model_type": "gemma2",
        "hidden_size": 3584,
        "intermediate_size": 14336,
        "num_hidden_layers": 42,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "vocab_size": 256000,
    },
    "meta-llama/Meta-Llama-3-8B": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "HuggingFaceTB/SmolLM2-1.7B": {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "openai/whisper-large-v3": {
        "model_type": "whisper",
        "d_model": 1280,
        "encoder_layers": 32,
        "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120,
        "num_mel_bins": 128,
        "vocab_size": 51866,
    },
    "facebook/hubert-large-ll60k": {
        "model_type": "hubert",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "conv_bias": True,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
    },
    # shapes of the released Nue-ASR, whose config.json holds both
    "yky-h/japanese-hubert-base": {"model_type": "hubert"},  # transformers' defaults
    "rinna/japanese-gpt-neox-3.6b": _JAPANESE_GPT,
    "yky-h/nue-asr": {"audio_encoder": {"model_type": "hubert"}, "llm": _JAPANESE_GPT},
    "rinna/bilingual-gpt-neox-4b": {**_JAPANESE_GPT, "vocab_size": 65536},
}


def load_shape(name: str, part: str = "llm"):
    """Return a model's transformers config, from a folder, a cache or the hub.

    Args:
        name: hub id or folder.
        part: ``llm`` or ``audio_encoder``, of a model in Nue-ASR's released format.

    Raises:
        UserError: it cannot be found; the message names the remedy.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    from transformers import AutoConfig

    from speechllm.pretrained.hub import available_name, names_of, refusal
    from speechllm.pretrained.resolve import cache_root

    places = [Path(name)]
    for alias in names_of(name):
        places.append(cache_root() / "models" / alias.replace("/", "--"))
        try:
            cached = try_to_load_from_cache(alias, "config.json")
        except HFValidationError:
            cached = None
        if isinstance(cached, str):
            places.append(Path(cached).parent)
    for folder in places:
        if (folder / "config.json").is_file():
            return read_part_config(folder, part)
    for known, values in KNOWN.items():
        if available_name(name) in (known, f"{known}-it", f"{known}-Instruct"):
            values = dict(values.get(part, values))
            return AutoConfig.for_model(values.pop("model_type"), **values)
    try:
        path = hf_hub_download(available_name(name), "config.json", etag_timeout=5)
    except Exception as error:  # HTTP libraries raise various classes
        raise UserError(
            f"{name}: its config.json cannot be read; hub: {refusal(name, error)}; or "
            "name a folder with it"
        ) from error
    return read_part_config(Path(path).parent, part)


def read_part_config(folder: Path, part: str):
    """Return the transformers config of a folder, of a part if it is a Nue-ASR."""
    if is_nue_asr(folder):
        from speechllm.models.nue_asr import read_config

        return getattr(read_config(folder), f"{part}_config")
    config = read_model_config(folder)
    if part == "audio_encoder":  # Parakeet's is part of the config of its head
        return getattr(config, "encoder_config", config)
    return config
