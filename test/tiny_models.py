"""Tiny models with random weights for tests, written as model folders."""

from __future__ import annotations

import json
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file

LABELS = ["<blank>", "<unk>", "<space>", *"abcdefghijklmnopqrstuvwxyz", "<sos/eos>"]
PROMPTS = """\
languages: {en: English, fr: French}
tasks:
  asr: "{speech} in {source}:"
  st: "{speech} from {source} to {target}:"
"""


#: A training of a few steps, without the models.
TRAINING = {
    "optim": "adamw",
    "optim_conf": {"lr": 1.0e-3},
    "scheduler": "tristagelr",
    "scheduler_conf": {"max_steps": 6},
    "batch_type": "sorted",
    "batch_size": 4,
    "num_workers": 0,
    "best_model_criterion": [["valid", "loss", "min"]],
    "use_tensorboard": False,
    "use_matplotlib": False,
    "num_att_plot": 0,
}
#: Of the tiny speech encoders.
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def write_tiny_whisper(folder: Path) -> Path:
    """Write a two-layer Whisper encoder in transformers' format."""
    from transformers import WhisperConfig, WhisperModel

    torch.manual_seed(1)
    config = WhisperConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    WhisperModel(config).save_pretrained(folder)
    return folder


def write_tiny_hubert(folder: Path, norm: str, kind: str = "hubert") -> Path:
    """Write a two-layer HuBERT, wav2vec 2.0 or WavLM with the original strides.

    Args:
        norm: ``"group"`` (HuBERT base) or ``"layer"`` (HuBERT large).
        kind: ``hubert``, ``wav2vec2`` or ``wavlm``.
    """
    import transformers

    torch.manual_seed(4)
    names = {"hubert": "Hubert", "wav2vec2": "Wav2Vec2", "wavlm": "WavLM"}
    config = getattr(transformers, names[kind] + "Config")(
        **SIZES,
        conv_dim=(16,) * 7,
        conv_bias=norm == "layer",
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        vocab_size=32,
    )
    model = getattr(transformers, names[kind] + "Model")(config)
    for parameter in model.parameters():  # norms and biases are initialised to 1 and 0
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def write_tiny_conformer(folder: Path, positions: str = "relative") -> Path:
    """Write a two-layer Wav2Vec2-Conformer, with BatchNorm and a final norm.

    Args:
        positions: ``relative`` or ``rotary``.
    """
    from transformers import (
        Wav2Vec2ConformerConfig,
        Wav2Vec2ConformerModel,
        Wav2Vec2FeatureExtractor,
    )

    torch.manual_seed(6)
    config = Wav2Vec2ConformerConfig(
        **SIZES,
        conv_dim=(16,) * 7,
        conv_depthwise_kernel_size=3,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        position_embeddings_type=positions,
        vocab_size=32,
    )
    model = Wav2Vec2ConformerModel(config)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def write_tiny_w2v_bert(folder: Path, **options: object) -> Path:
    """Write a two-layer w2v-BERT 2.0; ``options`` are of its config."""
    from transformers import (
        SeamlessM4TFeatureExtractor,
        Wav2Vec2BertConfig,
        Wav2Vec2BertModel,
    )

    torch.manual_seed(5)
    config = Wav2Vec2BertConfig(
        **SIZES,
        conv_depthwise_kernel_size=3,
        **options,
    )
    Wav2Vec2BertModel(config).save_pretrained(folder)
    SeamlessM4TFeatureExtractor().save_pretrained(folder)
    return folder


def write_tiny_parakeet(folder: Path) -> Path:
    """Write a two-layer Parakeet with its CTC head."""
    from transformers import ParakeetCTCConfig, ParakeetFeatureExtractor, ParakeetForCTC

    torch.manual_seed(6)
    encoder = {"subsampling_conv_channels": 16, "num_mel_bins": 80, **SIZES}
    config = ParakeetCTCConfig(vocab_size=20, pad_token_id=19, encoder_config=encoder)
    ParakeetForCTC(config).save_pretrained(folder)
    ParakeetFeatureExtractor().save_pretrained(folder)
    return folder


def write_tiny_wavlm(folder: Path) -> Path:
    """Write a two-layer WavLM with its feature extractor, for ``encoder: auto``."""
    from transformers import Wav2Vec2FeatureExtractor

    write_tiny_hubert(folder, "layer", "wavlm")
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def five_token_llm(seed: int, pieces: list[str]):
    """Return a random Llama with five tokens, small enough for exhaustive search.

    Args:
        seed: seed of the weights.
        pieces: text of each token; the last one is the end of text.
    """
    from types import SimpleNamespace

    from transformers import LlamaConfig, LlamaForCausalLM

    from speechllm.models.llm import LanguageModel

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=5,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=4,
    )
    tokenizer = SimpleNamespace(
        eos_token_id=4, decode=lambda tokens: "".join(pieces[t] for t in tokens)
    )
    model = LlamaForCausalLM(config)
    return LanguageModel(model, tuning="frozen", tokenizer=tokenizer).eval()


def write_tiny_llm(folder: Path, smollm2: Path, size: int = 32) -> Path:
    """Write a two-layer Llama with SmolLM2's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(2)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    config = LlamaConfig(
        hidden_size=size,
        intermediate_size=2 * size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_tiny_model(folder: Path, smollm2: Path, size: int = 32) -> Path:
    """Write an exported model folder that contains its pretrained models.

    It has a Whisper encoder, CTC over characters, a convolution bridge and a Llama
    with LoRA of hidden size ``size``.
    """
    import yaml

    from speechllm.models.speech_llm import build_speech_llm

    folder.mkdir(parents=True)
    encoder = write_tiny_whisper(folder / "encoder")
    llm = write_tiny_llm(folder / "llm", smollm2, size)
    config = {
        "encoder": "whisper",
        "encoder_conf": {"model": str(encoder)},
        "bridge": "convolution",
        "bridge_conf": {},
        "llm": "causal_lm",
        "llm_conf": {"model": str(llm), "dtype": "float32", "lora": {"r": 2}},
        "model_conf": {"ctc_weight": 0.3},
    }
    torch.manual_seed(3)
    model = build_speech_llm({**config, "token_list": LABELS})
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    (folder / "tokens.txt").write_text("\n".join(LABELS) + "\n", "utf-8")
    (folder / "prompts.yaml").write_text(PROMPTS, "utf-8")
    return folder


BOS, EOS, SEP = 2, 3, 5  # token ids of write_tokenizer
SENTENCES = (
    "今日は良い天気です。 明日は雨が降るでしょう。 電車が遅れています。 "
    "会議は三時からです。 ありがとうございます。 日本語の音声を認識します。 "
    "東京と大阪の間を走る。 hello world 123"
).split(" ")


def write_tokenizer(
    folder: Path, size: int = 360
) -> sentencepiece.SentencePieceProcessor:
    """Write a sentencepiece tokenizer with rinna's options, and its config files.

    It has at most ``size`` pieces: with 321 as many in all versions of sentencepiece.
    """
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(SENTENCES * 20), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(folder / "spiece"), vocab_size=size,
        model_type="unigram", hard_vocab_limit=False, byte_fallback=True,
        add_dummy_prefix=False, remove_extra_whitespaces=False,
        character_coverage=0.98,
        pad_id=0, pad_piece="[PAD]", unk_id=1, unk_piece="[UNK]",
        bos_id=BOS, bos_piece="<s>", eos_id=EOS, eos_piece="</s>",
        user_defined_symbols=["[CLS]", "[SEP]", "[MASK]"],
        minloglevel=2,
    )  # fmt: skip
    corpus.unlink()
    (folder / "spiece.vocab").unlink()
    special = {
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "[UNK]",
        "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }  # fmt: skip
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    config = {**special, "extra_ids": 0, "tokenizer_class": "T5Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
