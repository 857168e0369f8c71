"""Small random models of the baselines' architectures, with tiny tokenizers."""

from __future__ import annotations

from pathlib import Path

import torch

LETTERS = ["▁", *"abcdefghijklmnopqrstuvwxyz", *(f"▁{c}" for c in "abcdefgh")]


def enliven(model) -> None:
    """Make answers depend on the input: norms begin as 1 and 0, weights near 0."""
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)


def write_tiny_whisper_decoder(folder: Path, whisper_base: Path) -> Path:
    """Whisper of two small layers with Whisper-base's tokenizer and tokens to generate.

    Its answers end after at most 12 tokens.
    """
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperForConditionalGeneration,
        WhisperProcessor,
    )

    torch.manual_seed(1)
    config = WhisperConfig.from_pretrained(
        whisper_base,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_hidden_layers=1,
    )
    model = WhisperForConditionalGeneration(config)
    enliven(model)
    model.generation_config = GenerationConfig.from_pretrained(
        whisper_base, max_length=12
    )
    model.save_pretrained(folder)
    WhisperProcessor.from_pretrained(whisper_base).save_pretrained(folder)
    return folder


def write_tiny_nllb(folder: Path) -> Path:
    """M2M100 of one layer a side, and NLLB's tokenizer over single letters."""
    from transformers import M2M100Config, M2M100ForConditionalGeneration, NllbTokenizer

    torch.manual_seed(2)
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", *LETTERS]
    tokenizer = NllbTokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)},
        additional_special_tokens=["eng_Latn", "deu_Latn", "fra_Latn"],
    )
    config = M2M100Config(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        max_position_embeddings=512,
    )
    model = M2M100ForConditionalGeneration(config)
    enliven(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_tiny_seamless(folder: Path) -> Path:
    """SeamlessM4T v2 with two conformer layers and its tokenizer over single letters."""
    from transformers import (
        SeamlessM4TFeatureExtractor,
        SeamlessM4TTokenizer,
        SeamlessM4Tv2Config,
        SeamlessM4Tv2ForSpeechToText,
    )

    torch.manual_seed(3)
    vocabulary = ["<pad>", "<unk>", "<s>", "</s>", *LETTERS]
    languages = ["eng", "deu", "cmn"]
    tokenizer = SeamlessM4TTokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)},
        additional_special_tokens=[f"__{code}__" for code in languages],
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
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        t2u_encoder_layers=1,
        t2u_decoder_layers=1,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=3,
        max_position_embeddings=512,
    )
    model = SeamlessM4Tv2ForSpeechToText(config)
    enliven(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SeamlessM4TFeatureExtractor().save_pretrained(folder)
    return folder
