"""Replacement of the pretrained models of a training configuration by others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechllm.pretrained.hub import names_of
from speechllm.pretrained.resolve import resolve_model
from speechllm.utils.errors import UserError

#: Values of ``encoder`` by transformers' type of the model; see ``models.encoders``.
ENCODER_KINDS = {
    "whisper": "whisper",
    "hubert": "hubert",
    "wav2vec2": "hubert",
    "wavlm": "hubert",
    "nue_asr": "hubert",
}


def replace_models(
    config: Mapping[str, Any], encoder: str | None = None, llm: str | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Replace the encoder and the LLM of a training configuration.

    All other options stay, except ``normalize``, which belongs to the old encoder, and
    ``specaug`` if the input of the new one is the waveform.

    Args:
        config: a training configuration. Without an LLM, ``llm`` changes nothing.
        encoder, llm: hub ids or folders; None: the model stays.

    Returns:
        The new configuration, and the replacements, one line each.

    Raises:
        UserError: a model cannot be found, the encoder is not a speech encoder or has
            too few layers, or the LLM is a speech encoder.
    """
    new = dict(config)
    lines = []
    if encoder is not None:
        before = dict(config.get("encoder_conf") or {})
        new["encoder"], new["encoder_conf"] = _replace_encoder(before, encoder)
        dropped = sorted(before.keys() - new["encoder_conf"].keys())
        lines.append(
            f"encoder {encoder} ({new['encoder']}) in place of {before.get('model')}"
            + f", without its {', '.join(dropped)}" * bool(dropped)
        )
    if llm is not None and config.get("llm", "causal_lm"):
        before = dict(config.get("llm_conf") or {})
        kind = _read_type("--llm", llm)[0]
        if kind in ENCODER_KINDS and kind != "nue_asr":
            raise UserError(
                f"--llm {llm}: a speech encoder ({kind}), not an LLM; name it with "
                "--encoder"
            )
        new["llm_conf"] = {**before, "model": llm}
        lines.append(f"LLM {llm} in place of {before.get('model')}")
    return new, lines


def _replace_encoder(conf: dict[str, Any], name: str) -> tuple[str, dict[str, Any]]:
    """Return the kind and the options of a new encoder.

    Args:
        conf: options of the old encoder.
        name: of the new one.
    """
    kind, shape = _encoder_kind(name)
    new = {**conf, "model": name}
    if str(conf.get("model")) not in names_of(name):
        new.pop("normalize", None)
    if not _has_log_mel_input(kind, name):
        new.pop("specaug", None)
    layer, layers = new.get("layer"), shape.get("num_hidden_layers")
    layers = shape.get("encoder_layers", layers)
    if isinstance(layer, int) and isinstance(layers, int) and layer > layers:
        raise UserError(
            f"--encoder {name}: it has {layers} layers, and encoder_conf.layer of the "
            f"config is {layer}: set it to at most {layers}, or to last"
        )
    return kind, new


def _encoder_kind(name: str) -> tuple[str, dict[str, Any]]:
    """Return the value of the option ``encoder`` for a model, and its shape."""
    kind, shape = _read_type("--encoder", name)
    if kind in ENCODER_KINDS and not shape.get("add_adapter"):
        return ENCODER_KINDS[kind], shape
    from transformers.models.auto.feature_extraction_auto import (
        FEATURE_EXTRACTOR_MAPPING_NAMES,
    )

    if kind not in FEATURE_EXTRACTOR_MAPPING_NAMES:
        raise UserError(
            f"--encoder {name}: a model of type {kind!r}, not a speech encoder; name a "
            "Whisper, HuBERT, wav2vec 2.0, WavLM or another speech model of "
            "transformers (--llm names the LLM)"
        )
    folder = resolve_model(name)
    if not (folder / "preprocessor_config.json").is_file():
        raise UserError(
            f"--encoder {name}: {folder} has no preprocessor_config.json, which "
            f"encoders of type {kind!r} need; add the one of the model on the hub"
        )
    return "auto", shape


def _has_log_mel_input(kind: str, name: str) -> bool:
    """Return whether SpecAugment can be applied to an encoder's input."""
    if kind != "auto":
        return kind == "whisper"
    settings = _read_json(resolve_model(name) / "preprocessor_config.json")
    extractor = settings.get("feature_extractor_type")
    return bool(extractor == "SeamlessM4TFeatureExtractor")


def _read_type(option: str, name: str) -> tuple[str, dict[str, Any]]:
    """Return transformers' type of a model, and its configuration.

    Of Nue-ASR's format it is the configuration of the encoder.
    """
    path = resolve_model(name) / "config.json"
    shape = _read_json(path)
    kind = shape.get("model_type")
    if not isinstance(kind, str):
        raise UserError(
            f"{option} {name}: {path} has no model_type; name a model of transformers"
        )
    return kind, shape.get("audio_encoder_config") or shape


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON mapping")
    return content
