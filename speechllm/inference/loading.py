"""Find, check and load a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from speechllm.models.bridge import ConvolutionBridge
from speechllm.models.config import pretrained_names
from speechllm.models.hubert_encoder import HubertEncoder
from speechllm.models.llm import LanguageModel, resolve_dtype
from speechllm.models.nue_asr import (
    GENERATION,
    PREFIX,
    SUFFIX,
    NueASRModel,
    load_feature_extractor,
    read_weights,
)
from speechllm.models.speech_llm import SpeechLLM
from speechllm.pretrained.model_folder import is_nue_asr
from speechllm.text.prompts import Prompts, read_prompts
from speechllm.text.t5_tokenizer import load_tokenizer
from speechllm.utils.errors import UserError

if TYPE_CHECKING:
    from speechllm.inference.speech_to_text import SpeechToText


def check_device(device: str) -> None:
    """Refuse a device that this machine has not got."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {device!r} cannot be used: {reason}") from None


def find_model(path: str | Path) -> Path:
    """The inference folder that a path or hub id means.

    It holds ``config.yaml`` (ours), or ``config.json`` (Nue-ASR's released format).
    """
    for folder in (Path(path), Path(path) / "model"):
        if is_model(folder):
            return folder
    if Path(path).exists():
        raise UserError(
            f"{path}: no model (config.yaml and model.safetensors, or a config.json "
            "with model_type nue_asr); run stage 11"
        )
    from huggingface_hub import snapshot_download

    from speechllm.pretrained.hub import cached_snapshot

    folder = cached_snapshot(str(path))
    if folder is None:
        try:
            folder = Path(snapshot_download(str(path)))
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{path}: no such folder, and the hub has no such model ({reason})"
            ) from error
    if not is_model(folder):
        raise UserError(f"{path}: on the hub, but no model of this kind")
    return folder


def is_model(folder: Path) -> bool:
    """Whether a folder is one that can be loaded here."""
    if (folder / "config.yaml").exists() and (folder / "model.safetensors").exists():
        return True
    return is_nue_asr(folder)


def check_origin(folder: Path, config: dict) -> None:
    """Refuse pretrained weights that differ from those the model was trained on."""
    from speechllm.pretrained.model_folder import model_fingerprint
    from speechllm.pretrained.resolve import resolve_model

    for name in pretrained_names(config):
        expected = (config.get("stands_on") or {}).get(name)
        if expected is None:
            continue
        found = model_fingerprint(resolve_model(name))
        if found != expected:
            raise UserError(
                f"{folder}: trained on {name} with sha256 {expected[:12]}…, but "
                f"{resolve_model(name)} has {found[:12]}…; put the same weights there"
            )


def merge_adapters(llm: LanguageModel) -> None:
    """Add LoRA's products to the weights they adapt, and leave plain layers."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    modules = dict(llm.causal_lm.named_modules())
    for name, module in modules.items():
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(modules[parent], child, module.get_base_layer())


# --- reading ------------------------------------------------------------------------


def load_nue_asr(folder: str | Path, dtype: str = "float32") -> SpeechToText:
    """Load a folder in the released format.

    Args:
        folder: ``config.json``, weights (safetensors or torch files, whole or in
            shards) and the tokenizer's files; where ``prompts.yaml`` and
            ``preprocessor_config.json`` are missing, Japanese is recognised and
            waveforms are not normalised, as in the authors' code.
        dtype: of the weights.

    Raises:
        UserError: the folder is no such model; the message says what is wrong.
    """
    folder = Path(folder)
    nue = read_weights(folder, resolve_dtype(dtype))
    tokenizer = load_tokenizer(folder)
    for token in (PREFIX, SUFFIX):
        if len(tokenizer.encode(token, add_special_tokens=False)) != 1:
            raise UserError(f"{folder}: {token} is not one token of its tokenizer")
    if len(tokenizer) > nue.config.llm_config.vocab_size:
        raise UserError(
            f"{folder}: {len(tokenizer)} tokens in the tokenizer, but the LLM has "
            f"{nue.config.llm_config.vocab_size}"
        )
    if (folder / "prompts.yaml").exists():
        prompts = read_prompts(folder / "prompts.yaml")
    else:
        prompts = released_prompts(str(folder))
    normalize = load_feature_extractor(folder).do_normalize
    return as_speech_to_text(nue, tokenizer, prompts, normalize)


def released_prompts(origin: str) -> Prompts:
    """The one prompt of the released model, for Japanese."""
    return Prompts(
        tasks={"asr": PREFIX + "{speech}" + SUFFIX},
        languages={"ja": "Japanese"},
        origin=origin,
    )


def as_speech_to_text(
    nue: NueASRModel, tokenizer, prompts: Prompts, normalize: bool = False
) -> SpeechToText:
    """Put a model's parts behind the batched search; they are shared, not copied."""
    from speechllm.inference.speech_to_text import SpeechToText

    encoder = HubertEncoder(nue.audio_encoder, normalize=normalize)
    bridge = ConvolutionBridge(
        encoder.output_size,
        nue.config.llm_config.hidden_size,
        nue.config.bridge_conv_kernel_size,
        nue.config.bridge_conv_stride,
    )
    bridge.convolutions, bridge.projection = nue.bridge_convs, nue.bridge_proj
    llm = LanguageModel(nue.llm, tuning="frozen", tokenizer=tokenizer)
    model = SpeechLLM(encoder, None, bridge, llm, ctc_weight=0.0)
    return SpeechToText(model, prompts, GENERATION)
