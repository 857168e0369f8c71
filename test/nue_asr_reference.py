"""Reference implementation of Nue-ASR from transformers only, and test helpers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tiny_models import BOS, EOS, SEP, write_tokenizer
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, HubertConfig, HubertModel

from speechllm import SpeechToText

RATE = 16000


class Reference:
    """The authors' model, built from transformers only."""

    def __init__(self, folder: Path, norm: str, seed: int):
        folder.mkdir(parents=True)
        torch.manual_seed(seed)
        self.pieces = write_tokenizer(folder, size=321)
        hubert = HubertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=64, conv_dim=(16,) * 7, num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4, feat_extract_norm=norm,
            do_stable_layer_norm=norm == "layer", conv_bias=norm == "layer",
            initializer_range=0.2,
        )  # fmt: skip
        neox = GPTNeoXConfig(
            hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=96, vocab_size=len(self.pieces),
            max_position_embeddings=512, use_parallel_residual=False,
            bos_token_id=BOS, eos_token_id=EOS, pad_token_id=0, rotary_pct=0.5,
            rotary_emb_base=5000, initializer_range=0.2,
        )  # fmt: skip
        self.hubert = HubertModel(hubert).eval()
        self.llm = GPTNeoXForCausalLM(neox).eval()
        self.convs = [torch.nn.Conv1d(32, 32, 4, 2) for _ in range(2)]
        self.projection = torch.nn.Linear(32, 48)
        with torch.no_grad():
            for parameter in [*self.convs[0].parameters(), *self.convs[1].parameters()]:
                parameter.mul_(4)
            self.projection.weight.mul_(8)
            self.llm.get_output_embeddings().weight[EOS] *= 2.5  # some hypotheses end
        self.folder = folder
        config = {
            "model_type": "nue_asr",
            "architectures": ["NueASRModel"],
            "audio_encoder_config": hubert.to_dict(),
            "llm_config": neox.to_dict(),
            "bridge_conv_kernel_size": [4, 4],
            "bridge_conv_stride": [2, 2],
        }
        # rotary options as the authors' version of transformers wrote them
        config["llm_config"].pop("rope_parameters")
        config["llm_config"] |= {"rotary_pct": 0.5, "rotary_emb_base": 5000}
        (folder / "config.json").write_text(json.dumps(config))
        save_file(self.state(), folder / "model.safetensors", metadata={"format": "pt"})

    def state(self, old_names: bool = True) -> dict[str, torch.Tensor]:
        """Return the weights under old or new names of weight norm."""
        state = {f"audio_encoder.{k}": v for k, v in self.hubert.state_dict().items()}
        state |= {f"llm.{k}": v for k, v in self.llm.state_dict().items()}
        for index, conv in enumerate(self.convs):
            state[f"bridge_convs.{index}.weight"] = conv.weight.data
            state[f"bridge_convs.{index}.bias"] = conv.bias.data
        state["bridge_proj.weight"] = self.projection.weight.data
        state["bridge_proj.bias"] = self.projection.bias.data
        if old_names:
            position = "audio_encoder.encoder.pos_conv_embed.conv."
            for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
                new_name = f"{position}parametrizations.weight.{new}"
                state[position + old] = state.pop(new_name)
        if "llm.lm_head.weight" in state:  # the name since transformers 5
            state["llm.embed_out.weight"] = state.pop("llm.lm_head.weight")
        return {k: v.clone() for k, v in state.items()}

    @torch.inference_mode()
    def tokens(self, wave: np.ndarray, **generation) -> list[int]:
        """Decode one utterance like the authors' code; return its token ids."""
        hidden = self.hubert(torch.from_numpy(wave)[None]).last_hidden_state
        hidden = hidden.transpose(1, 2)
        for conv in self.convs:
            hidden = torch.nn.functional.gelu(conv(hidden))
        speech = self.projection(hidden.transpose(1, 2))
        embed = self.llm.get_input_embeddings()
        prompt = torch.cat(
            [embed(torch.tensor([[BOS]])), speech, embed(torch.tensor([[SEP]]))], 1
        )
        options = {
            "do_sample": False,
            "num_beams": 1,
            "min_new_tokens": 2,
            "max_new_tokens": int(4 * len(wave) / RATE + 20 + 0.5),
            "pad_token_id": 0,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
        }
        return self.llm.generate(inputs_embeds=prompt, **{**options, **generation})[
            0
        ].tolist()

    def text(self, tokens: list[int]) -> str:
        """Return the text of token ids, with the spaces of transformers 4."""
        text = self.pieces.decode([t for t in tokens if t > 6]).strip()
        for mark in (".", "?", "!", ","):
            text = text.replace(f" {mark}", mark)
        return text.strip()


def noise(lengths, seed: int = 0) -> list[np.ndarray]:
    """Return modulated noise of these lengths in samples."""
    generator = np.random.default_rng(seed)
    waves = [generator.standard_normal(n) * 0.3 for n in lengths]
    return [
        (w * np.sin(np.arange(len(w)) * (0.01 + 0.02 * i))).astype(np.float32)
        for i, w in enumerate(waves)
    ]


def ids(model: SpeechToText, result) -> list[int]:
    """Return the token ids of a result."""
    return model.llm.tokenizer.convert_tokens_to_ids(result.tokens)


def without_end(tokens: list[int]) -> list[int]:
    """Return token ids without the end of text."""
    return tokens[:-1] if tokens[-1] == EOS else tokens


def check(model: SpeechToText, reference, waves, expected, batch_size: int) -> None:
    """Compare decoded tokens and texts with those of the reference."""
    results = model.transcribe(waves, batch_size=batch_size)
    assert [ids(model, r) for r in results] == [without_end(t) for t in expected]
    assert [r.text for r in results] == [reference.text(t) for t in expected]


def build_similar_model(tmp_path, reference, tuning: str):
    """Build a SpeechLLM of the same architecture with other weights."""
    from speechllm.models.speech_llm import build_speech_llm

    reference.hubert.save_pretrained(tmp_path / "hubert")
    reference.llm.save_pretrained(tmp_path / "llm")
    for name in ("spiece.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(reference.folder / name, tmp_path / "llm" / name)
    return build_speech_llm(
        {
            "encoder": "hubert",
            "encoder_conf": {
                "model": str(tmp_path / "hubert"),
                "normalize": False,
                "random_init": True,
            },
            "bridge": "convolution",
            "llm": "causal_lm",
            "llm_conf": {
                "model": str(tmp_path / "llm"),
                "tuning": tuning,
                "dtype": "float32",
                "random_init": True,
            },
            "model_conf": {"ctc_weight": 0.3, "autocast": "float32"},
            "token_list": ["<blank>", "<unk>", "あ", "<sos/eos>"],
        }
    )


def change_weights(folder: Path, change) -> None:
    """Apply ``change`` to the weights of a model folder."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def change_config(folder: Path, change) -> None:
    """Apply ``change`` to the ``config.json`` of a model folder."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
