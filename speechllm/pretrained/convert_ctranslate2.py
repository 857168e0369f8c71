"""Conversion of Whisper from CTranslate2 to transformers.

CTranslate2 (https://github.com/OpenNMT/CTranslate2) stores a converted Whisper as
``model.bin``, ``config.json`` (language ids, suppressed tokens, alignment heads) and
``tokenizer.json``. The weights are those of OpenAI's release, with the projections of
each attention fused and most names changed. The conversion splits and renames them as
in ``transformers.WhisperForConditionalGeneration``, and writes the other files of
OpenAI's folder on the hub.

``model.bin``, version 6, little-endian, without alignment::

    u32 version · string specification · u32 revision
    u32 number of variables, each: string name · u8 rank · u32 × rank shape
                                   u8 type · u32 bytes · data
    u32 number of aliases, each: string alias · string name
    string = u16 length · that many bytes, the last one NUL

It needs numpy and safetensors, but neither torch nor transformers.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import numpy as np

from speechllm.pretrained.model_folder import write_safetensors
from speechllm.utils.errors import UserError
from speechllm.utils.io import write_json

_TYPES = {
    0: np.dtype("<f4"),
    1: np.dtype("i1"),
    2: np.dtype("<i2"),
    3: np.dtype("<i4"),
    4: np.dtype("<f2"),
}
_TIMESTAMPS = 1501  # <|0.00|> … <|30.00|>, one token per 20 ms


def convert_whisper(source: str | Path, target: str | Path) -> None:
    """Write a Whisper folder for transformers, weights in float32.

    Args:
        source: folder with ``model.bin``, ``config.json`` and ``tokenizer.json`` of
            a Whisper that CTranslate2 converted without integer quantisation.
        target: existing folder that receives ``config.json``,
            ``generation_config.json``, ``model.safetensors``,
            ``preprocessor_config.json``, ``tokenizer.json`` and
            ``tokenizer_config.json``.

    Raises:
        UserError: a file is damaged, of another format, or quantised to integers.
    """
    source, target = Path(source), Path(target)
    specification, variables = read_model(source / "model.bin")
    if specification != "WhisperSpec":
        raise UserError(f"{source / 'model.bin'}: a {specification}, not a WhisperSpec")
    try:
        hints = json.loads((source / "config.json").read_text(encoding="utf-8"))
        tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
        tokens = {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
        tensors = _whisper_tensors(variables)
        config = _model_config(variables, tensors, tokens)
        generation = _generation_config(config, hints, tokens)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{source}: not a Whisper model of CTranslate2 ({error!r})"
        ) from error

    write_json(target / "config.json", config)
    write_json(target / "generation_config.json", generation)
    write_json(target / "preprocessor_config.json", _feature_config(config))
    _add_timestamps(tokenizer, tokens["<|notimestamps|>"] + 1)
    write_json(target / "tokenizer.json", tokenizer)
    write_json(target / "tokenizer_config.json", _tokenizer_config(tokens))
    write_safetensors(target / "model.safetensors", tensors)


def read_model(path: str | Path) -> tuple[str, dict[str, np.ndarray]]:
    """Read a CTranslate2 ``model.bin`` of version 6.

    Returns:
        The name of its specification (``"WhisperSpec"``) and its variables by name
        (read-only views of one buffer, shapes and types as stored).

    Raises:
        UserError: the file is truncated, or has another version or an unknown type.
    """
    path = Path(path)
    data = path.read_bytes()
    position = 0

    def take(form: str) -> tuple:
        nonlocal position
        values = struct.unpack_from("<" + form, data, position)
        position += struct.calcsize("<" + form)
        return values

    def take_string() -> str:
        (length,) = take("H")
        return take(f"{length}s")[0][:-1].decode("utf-8")

    variables: dict[str, np.ndarray] = {}
    try:
        (version,) = take("I")
        if version != 6:
            raise UserError(
                f"{path}: CTranslate2 format {version}, only 6 is supported"
            )
        specification = take_string()
        _revision, count = take("II")
        for _ in range(count):
            name = take_string()
            (rank,) = take("B")
            shape = take(f"{rank}I")
            kind, size = take("BI")
            dtype = _TYPES[kind]
            elements = int(np.prod(shape, dtype=np.int64))
            if elements * dtype.itemsize != size:
                raise ValueError(f"{name}: {shape} does not take {size} bytes")
            variables[name] = np.frombuffer(data, dtype, elements, position).reshape(
                shape
            )
            position += size
        (aliases,) = take("I")
        for _ in range(aliases):
            alias, name = take_string(), take_string()
            variables[alias] = variables[name]
    except (struct.error, KeyError, ValueError) as error:
        raise UserError(
            f"{path}: damaged or truncated at byte {position} of {len(data)} ({error})"
        ) from error
    return specification, variables


def _whisper_tensors(variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename and split the variables as in transformers, in float32.

    The output projection is tied to the embeddings and therefore not stored.
    """
    tensors: dict[str, np.ndarray] = {}

    def put(name: str, value: np.ndarray) -> None:
        if value.dtype.kind != "f":
            raise ValueError(f"{name} is quantised to {value.dtype}")
        tensors["model." + name] = np.ascontiguousarray(value, dtype=np.float32)

    def linear(source: str, names: list[str]) -> None:
        """Put one projection, or several stacked along their outputs (n × out, in)."""
        weights = np.split(variables[f"{source}/weight"], len(names))
        biases = np.split(variables[f"{source}/bias"], len(names))
        for name, weight, bias in zip(names, weights, biases):
            put(f"{name}.weight", weight)
            if not name.endswith("k_proj"):
                put(f"{name}.bias", bias)
            elif np.any(bias):
                raise ValueError(f"{source}: the keys have a bias, unlike Whisper's")

    def norm(source: str, name: str) -> None:
        put(f"{name}.weight", variables[f"{source}/gamma"])
        put(f"{name}.bias", variables[f"{source}/beta"])

    def attention(source: str, name: str, fused: list[list[str]]) -> None:
        for index, parts in enumerate(fused):
            linear(f"{source}/linear_{index}", [f"{name}.{part}" for part in parts])
        norm(f"{source}/layer_norm", f"{name}_layer_norm")

    for side in ("encoder", "decoder"):
        put(
            f"{side}.embed_positions.weight",
            variables[f"{side}/position_encodings/encodings"],
        )
        norm(f"{side}/layer_norm", f"{side}.layer_norm")
        for index in range(_count_layers(variables, side)):
            source, name = f"{side}/layer_{index}", f"{side}.layers.{index}"
            attention(
                f"{source}/self_attention",
                f"{name}.self_attn",
                [["q_proj", "k_proj", "v_proj"], ["out_proj"]],
            )
            if side == "decoder":
                attention(
                    f"{source}/attention",
                    f"{name}.encoder_attn",
                    [["q_proj"], ["k_proj", "v_proj"], ["out_proj"]],
                )
            norm(f"{source}/ffn/layer_norm", f"{name}.final_layer_norm")
            linear(f"{source}/ffn/linear_0", [f"{name}.fc1"])
            linear(f"{source}/ffn/linear_1", [f"{name}.fc2"])
    for conv in ("conv1", "conv2"):
        put(f"encoder.{conv}.weight", variables[f"encoder/{conv}/weight"])
        put(f"encoder.{conv}.bias", variables[f"encoder/{conv}/bias"])
    put("decoder.embed_tokens.weight", variables["decoder/embeddings/weight"])
    return tensors


def _count_layers(variables: dict[str, np.ndarray], side: str) -> int:
    pattern = re.compile(rf"{side}/layer_(\d+)/")
    return len({m.group(1) for m in map(pattern.match, variables) if m})


def _model_config(
    variables: dict[str, np.ndarray],
    tensors: dict[str, np.ndarray],
    tokens: dict[str, int],
) -> dict:
    """Return ``config.json``, from the shapes and the tokenizer's special tokens."""
    vocabulary, width = tensors["model.decoder.embed_tokens.weight"].shape
    end = tokens["<|endoftext|>"]
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "dtype": "float32",
        "activation_function": "gelu",
        "is_encoder_decoder": True,
        "vocab_size": vocabulary,
        "d_model": width,
        "num_mel_bins": tensors["model.encoder.conv1.weight"].shape[1],
        "encoder_layers": _count_layers(variables, "encoder"),
        "encoder_attention_heads": int(variables["encoder/num_heads"]),
        "encoder_ffn_dim": len(tensors["model.encoder.layers.0.fc1.bias"]),
        "decoder_layers": _count_layers(variables, "decoder"),
        "decoder_attention_heads": int(variables["decoder/num_heads"]),
        "decoder_ffn_dim": len(tensors["model.decoder.layers.0.fc1.bias"]),
        "max_source_positions": len(tensors["model.encoder.embed_positions.weight"]),
        "max_target_positions": len(tensors["model.decoder.embed_positions.weight"]),
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": tokens["<|startoftranscript|>"],
    }


def _generation_config(config: dict, hints: dict, tokens: dict[str, int]) -> dict:
    """Return ``generation_config.json`` with the ids that ``generate`` needs.

    An English-only Whisper (one token fewer in its vocabulary) has neither languages
    nor tasks.
    """
    multilingual = config["vocab_size"] >= 51865
    generation = {
        "alignment_heads": hints["alignment_heads"],
        "begin_suppress_tokens": hints["suppress_ids_begin"],
        "suppress_tokens": hints["suppress_ids"],
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": config["eos_token_id"],
        "pad_token_id": config["pad_token_id"],
        "decoder_start_token_id": config["decoder_start_token_id"],
        "no_timestamps_token_id": tokens["<|notimestamps|>"],
        "prev_sot_token_id": tokens["<|startofprev|>"],
        "is_multilingual": multilingual,
        "max_initial_timestamp_index": 50,
        "max_length": config["max_target_positions"],
        "return_timestamps": False,
    }
    # without a given language, Whisper detects it and takes the task from here
    if multilingual:
        languages = set(hints["lang_ids"])
        generation["task"] = "transcribe"
        generation["lang_to_id"] = {
            token: index for token, index in tokens.items() if index in languages
        }
        generation["task_to_id"] = {
            task: tokens[f"<|{task}|>"] for task in ("transcribe", "translate")
        }
    return generation


def _feature_config(config: dict) -> dict:
    """Return ``preprocessor_config.json``: log-mel of 30 s at 16 kHz, 10 ms hop."""
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": config["num_mel_bins"],
        "sampling_rate": 16000,
        "hop_length": 160,
        "n_fft": 400,
        "chunk_length": 30,
        "n_samples": 480000,
        "nb_max_frames": 3000,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }


def _add_timestamps(tokenizer: dict, first: int) -> None:
    """Add the timestamp tokens, which CTranslate2's ``tokenizer.json`` lacks."""
    known = {token["id"] for token in tokenizer["added_tokens"]}
    for step in range(_TIMESTAMPS):
        if first + step not in known:
            tokenizer["added_tokens"].append(
                {
                    "id": first + step,
                    "content": f"<|{step * 0.02:.2f}|>",
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": True,
                    "special": False,
                }
            )


def _tokenizer_config(tokens: dict[str, int]) -> dict:
    """Return ``tokenizer_config.json``."""
    return {
        "tokenizer_class": "WhisperTokenizer",
        "processor_class": "WhisperProcessor",
        "add_prefix_space": False,
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "additional_special_tokens": [
            token for token in tokens if not re.fullmatch(r"<\|\d+\.\d\d\|>", token)
        ],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
    }
