"""Models of random weights and noise to train and decode, for checks of a machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from speechllm.audio.io import SAMPLING_RATE
from speechllm.benchmarks.decoding_systems import VOCABULARY, number_tokenizer
from speechllm.models.speech_llm import SpeechLLM
from speechllm.training.amount_of_speech import UTTERANCE_SECONDS
from speechllm.training.resource_estimate import PROMPT_TOKENS, TOKENS_PER_SECOND

#: Of whisper-base and a Llama of 1.1 billion parameters, and of tiny ones.
WHISPER = {
    "full": {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8,
        "encoder_ffn_dim": 2048},
    "tiny": {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64},
}  # fmt: skip
LLAMA = {
    "full": {"hidden_size": 2048, "num_hidden_layers": 22, "intermediate_size": 5632,
        "num_attention_heads": 32, "num_key_value_heads": 4},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
        "num_attention_heads": 4, "num_key_value_heads": 2},
}  # fmt: skip
PROMPTS = 'languages: {en: English}\ntasks:\n  asr: "{speech}"\n'


def training_config(folder: Path, size: str, tuning: str) -> dict[str, Any]:
    """Write encoder and LLM with random weights; return a training configuration."""
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperModel,
    )

    torch.manual_seed(0)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    whisper = WhisperConfig(
        **WHISPER[size],
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=64,
        vocab_size=64,
        decoder_start_token_id=1,
        init_std=0.3,  # of 0.02 the features of all utterances are alike
        **special,
    )
    WhisperModel(whisper).save_pretrained(folder / "encoder")
    WhisperFeatureExtractor().save_pretrained(folder / "encoder")
    tokenizer = number_tokenizer()
    llama = LlamaConfig(
        **LLAMA[size],
        vocab_size=VOCABULARY,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    dtype = torch.bfloat16 if size == "full" else torch.float32
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        LlamaForCausalLM(llama).to(dtype).save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    llm = {"model": str(folder / "llm"), "tuning": tuning}
    if tuning != "full":
        llm["lora"] = {"r": 16, "lora_alpha": 32}
    return {
        "encoder": "whisper",
        "encoder_conf": {"model": str(folder / "encoder")},
        "bridge": "convolution",
        "bridge_conf": {},
        "llm": "causal_lm",
        "llm_conf": llm,
        "ctc_conf": {},
        "model_conf": {"ctc_weight": 0.0},
    }


def random_batch(
    model: SpeechLLM, utterances: int, seconds: float = UTTERANCE_SECONDS
) -> dict[str, Tensor]:
    """Return a batch of noise and random target tokens, on the model's device."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(1)
    samples, tokens = int(seconds * SAMPLING_RATE), int(seconds * TOKENS_PER_SECOND)
    # noises of different colours, so that features differ
    speech = torch.randn(utterances, samples, generator=generator)
    for row, wave in enumerate(speech):
        tone = torch.arange(samples) * (2 * torch.pi * 200 * (row + 1) / SAMPLING_RATE)
        wave.mul_(0.01).add_(0.3 * torch.sin(tone))
    text = torch.randint(7, VOCABULARY, (utterances, tokens), generator=generator)
    text[:, -1] = model.llm.eos_id
    prefix = torch.full((utterances, PROMPT_TOKENS // 2), 1)
    batch = {
        "speech": speech,
        "speech_lengths": torch.full((utterances,), samples),
        "text": text,
        "text_lengths": torch.full((utterances,), tokens),
    }
    for name in ("prompt_prefix", "prompt_suffix"):
        batch[name] = prefix
        batch[f"{name}_lengths"] = torch.full((utterances,), prefix.shape[1])
    if seconds != UTTERANCE_SECONDS:  # to be decoded with an empty prompt
        for name in ("prompt_prefix", "prompt_suffix"):
            batch[name] = prefix[:, :0]
            batch[f"{name}_lengths"] = torch.zeros(utterances, dtype=torch.long)
    return {name: tensor.to(device) for name, tensor in batch.items()}


def train_steps(
    model: SpeechLLM, batch: dict[str, Tensor], steps: int, lr: float = 1e-3
) -> list[float]:
    """Train on one batch and return the loss of each step."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr)
    losses = []
    for _ in range(steps):
        loss, _, _ = model(**batch)
        optimizer.zero_grad()
        loss.sum().backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def export(model: SpeechLLM, config: dict[str, Any], folder: Path) -> Path:
    """Write a model folder, as stage 10 does."""
    import yaml
    from safetensors.torch import save_file

    folder.mkdir()
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    (folder / "prompts.yaml").write_text(PROMPTS, "utf-8")
    return folder


def noise_examples(folder: Path, utterances: int, seconds: float) -> Path:
    """Write an example dir of noise whose texts are a few numbers."""
    import soundfile

    examples = folder / "examples"
    examples.mkdir()
    generator = np.random.default_rng(0)
    names = [f"u{index:03d}" for index in range(utterances)]  # sorted
    samples = int(seconds * SAMPLING_RATE)
    tables = {
        "wav.scp": {name: examples / f"{name}.wav" for name in names},
        "text": {name: str(100 + index) for index, name in enumerate(names)},
        "utt2task": dict.fromkeys(names, "asr en en"),
        "utt2num_samples": dict.fromkeys(names, samples),
    }
    for name in names:
        noise = generator.normal(size=samples) / 20
        soundfile.write(examples / f"{name}.wav", noise, SAMPLING_RATE)
    for table, rows in tables.items():
        text = "".join(f"{key} {value}\n" for key, value in rows.items())
        (examples / table).write_text(text, "utf-8")
    (folder / "prompts.yaml").write_text(PROMPTS, "utf-8")
    return examples
