"""Small random models of the baselines' architectures, with tiny tokenizers."""

from __future__ import annotations

from pathlib import Path

import torch

LETTERS = ["▁", *"abcdefghijklmnopqrstuvwxyz", *(f"▁{c}" for c in "abcdefgh")]
#: Options of a text encoder and decoder of one layer each.
ONE_LAYER = {
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}


def write_tiny_whisper_decoder(folder: Path, whisper_base: Path) -> Path:
    """Write a one-layer Whisper with Whisper-base's tokenizer and generation config.

    It generates at most 12 tokens.
    """
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperForConditionalGeneration,
        WhisperProcessor,
    )

    torch.manual_seed(1)
    config = WhisperConfig.from_pretrained(
        whisper_base, d_model=16, num_hidden_layers=1, **ONE_LAYER
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig.from_pretrained(
        whisper_base, max_length=12
    )
    processor = WhisperProcessor.from_pretrained(whisper_base)
    return save(folder, model, processor)


def write_tiny_nllb(folder: Path) -> Path:
    """Write a one-layer M2M100 with an NLLB tokenizer over letters."""
    from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

    torch.manual_seed(2)
    tokenizer = NllbTokenizer(
        vocab=vocabulary("<s>", "<pad>", "</s>", "<unk>"),
        additional_special_tokens=["eng_Latn", "deu_Latn", "fra_Latn"],
    )
    config = M2M100Config(
        vocab_size=len(tokenizer),
        d_model=16,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        max_position_embeddings=512,
        **ONE_LAYER,
    )
    return save(folder, M2M100ForConditionalGeneration(config), tokenizer)


def write_tiny_seamless(folder: Path) -> Path:
    """Write a two-layer SeamlessM4T v2 with a tokenizer over letters."""
    from transformers import (
        SeamlessM4TFeatureExtractor,
        SeamlessM4TTokenizer,
        SeamlessM4Tv2Config,
        SeamlessM4Tv2ForSpeechToText,
    )

    torch.manual_seed(3)
    tokenizer = SeamlessM4TTokenizer(
        vocab=vocabulary("<pad>", "<unk>", "<s>", "</s>"),
        additional_special_tokens=["__eng__", "__deu__", "__cmn__"],
        tgt_lang="deu",
    )
    config = SeamlessM4Tv2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        feature_projection_input_dim=160,
        speech_encoder_layers=2,
        speech_encoder_attention_heads=2,
        speech_encoder_intermediate_size=32,
        speech_encoder_chunk_size=64,
        conv_depthwise_kernel_size=5,
        t2u_encoder_layers=1,
        t2u_decoder_layers=1,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=3,
        max_position_embeddings=512,
        **ONE_LAYER,
    )
    model = SeamlessM4Tv2ForSpeechToText(config)
    return save(folder, model, tokenizer, SeamlessM4TFeatureExtractor())


def vocabulary(*special: str) -> dict[str, int]:
    """Return the ids of special tokens and letters."""
    return {token: index for index, token in enumerate([*special, *LETTERS])}


def save(folder: Path, model, *processors) -> Path:
    """Perturb a model's weights and save it with its tokenizer or processors.

    Without the perturbation, layer norms of 1 and small weights make the output nearly
    independent of the input.
    """
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    for part in (model, *processors):
        part.save_pretrained(folder)
    return folder
