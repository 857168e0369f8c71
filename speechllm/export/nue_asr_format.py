"""Export in the format of the released Nue-ASR checkpoint (yky-h/nue-asr)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import (
    GPTNeoXForCausalLM,
    HubertConfig,
    HubertModel,
    Wav2Vec2FeatureExtractor,
)

from speechllm.audio.io import SAMPLING_RATE
from speechllm.models.bridge import ConvolutionBridge
from speechllm.models.nue_asr import (
    PREFIX,
    SUFFIX,
    NueASRConfig,
    NueASRModel,
    NueASRProcessor,
    model_card,
)
from speechllm.pretrained.model_folder import is_nue_asr
from speechllm.text.prompts import HOTWORDS, Prompts
from speechllm.utils.errors import UserError
from speechllm.utils.folders import FolderKind, atomic_directory

NUE_ASR_FOLDER = FolderKind(
    "model in Nue-ASR's format", ("config.json", "prompts.yaml")
)

if TYPE_CHECKING:
    from speechllm.inference.speech_to_text import SpeechToText


def check_output(folder: str | Path) -> None:
    """Check that a folder can be written and holds nothing but a Nue-ASR model.

    Raises:
        UserError: it cannot be written, or holds something else.
    """
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from error
    if not empty and not is_nue_asr(folder):
        raise UserError(
            f"{folder}: exists, but is not a model in Nue-ASR's format, so it is not "
            "replaced; name a new folder"
        )


def save_nue_asr(
    recognizer: SpeechToText, folder: str | Path, license: str = ""
) -> None:
    """Write a trained model in the released format, with a model card.

    The CTC branch is left out, since the format has no place for it.

    Args:
        recognizer: HuBERT, convolution bridge and GPT-NeoX, with adapters merged.
        folder: the folder to write; a model in it is replaced as a whole.
        license: licence of the weights for the card, as the hub names it.

    Raises:
        UserError: another architecture, a prompt that the format cannot express, or a
            folder that cannot be written or holds something else.
    """
    import yaml

    check_output(folder)
    speech_llm, prompts = recognizer.model, recognizer.prompts
    if speech_llm.llm is None:
        raise UserError("Nue-ASR's format needs an LLM, and this model is CTC only")
    encoder, bridge, llm = speech_llm.encoder, speech_llm.bridge, speech_llm.llm
    for part, kind in (
        (getattr(encoder, "encoder", encoder), HubertModel),
        (bridge, ConvolutionBridge),
        (llm.causal_lm, GPTNeoXForCausalLM),
    ):
        if not isinstance(part, kind):
            raise UserError(
                f"Nue-ASR's format needs a {kind.__name__} where this model has a "
                f"{type(part).__name__}"
            )
    if encoder.layer_weights is not None:
        raise UserError("Nue-ASR's format uses HuBERT's last layer, not a weighted sum")
    language = check_prompt(prompts, llm.tokenizer)
    audio_config = HubertConfig.from_dict(encoder.encoder.config.to_dict())
    audio_config.num_hidden_layers = len(encoder.layers)
    config = NueASRConfig(
        audio_config.to_dict(),
        {**llm.causal_lm.config.to_dict(), "use_cache": True},  # off in training
        [c.kernel_size[0] for c in bridge.convolutions],
        [c.stride[0] for c in bridge.convolutions],
    )
    with torch.device("meta"):
        nue = NueASRModel(config)
    nue.audio_encoder, nue.llm = encoder.encoder, llm.causal_lm
    nue.bridge_convs, nue.bridge_proj = bridge.convolutions, bridge.projection
    extractor = Wav2Vec2FeatureExtractor(
        do_normalize=encoder.normalize, sampling_rate=SAMPLING_RATE
    )
    with atomic_directory(folder, NUE_ASR_FOLDER) as target:
        nue.save_pretrained(target)
        NueASRProcessor(extractor, llm.tokenizer).save_pretrained(target)
        extractor.save_pretrained(target)
        content = {"tasks": {"asr": prompts.tasks["asr"].replace(HOTWORDS, "")}}
        content["languages"] = {language: prompts.languages[language]}
        (target / "prompts.yaml").write_text(
            yaml.safe_dump(content, allow_unicode=True), "utf-8"
        )
        (target / "README.md").write_text(model_card(nue, language, license), "utf-8")


def check_prompt(prompts: Prompts, tokenizer) -> str:
    """Check that a model's prompt is the format's, and return its language.

    Raises:
        UserError: the prompt differs.
    """
    language = next(iter(prompts.languages))
    expected = tuple(
        tokenizer.encode(text, add_special_tokens=False) for text in (PREFIX, SUFFIX)
    )
    if prompts.tokens("asr", language, language, tokenizer) != expected:
        raise UserError(
            f"{prompts.origin}: Nue-ASR's format has one prompt, "
            f"{PREFIX}{{speech}}{SUFFIX}, and this model was trained with another"
        )
    return language
