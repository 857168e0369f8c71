"""Whisper's own decoder: what a user would pick instead."""

from __future__ import annotations

import numpy as np

from speechllm.audio.io import SAMPLING_RATE
from speechllm.baselines.base import PretrainedSystem
from speechllm.utils.errors import UserError

WINDOW = 30 * SAMPLING_RATE  # samples that Whisper hears at once


class Whisper(PretrainedSystem):
    """Recognition in Whisper's languages, and translation of them into English.

    Speech of at most 30 s is padded to 30 s, so a batch changes nothing. Longer speech
    is decoded alone, window after window, by transformers' sequential algorithm.
    """

    architecture = "WhisperForConditionalGeneration"
    model_types = ("whisper",)

    def check(self, task: str, source: str, target: str) -> None:
        """Refuse what Whisper was not trained for."""
        if task not in ("asr", "st", "asr_st") or (task != "asr" and target != "en"):
            raise UserError(
                f"{task} from {source} into {target}: Whisper transcribes, and "
                "translates into English only; give its transcripts to nllb"
            )
        known = self.languages()
        if source not in known or (task != "asr" and not self.multilingual()):
            raise UserError(
                f"{task} from {source}: {self.name} knows {', '.join(known)}"
                + ("" if self.multilingual() else " and does not translate")
            )

    def generation_config(self):
        """The checkpoint's generation config."""
        from transformers import GenerationConfig

        return GenerationConfig.from_pretrained(self.folder)

    def multilingual(self) -> bool:
        """Whether it is one of the models without ``.en`` in their names."""
        return bool(getattr(self.generation_config(), "is_multilingual", True))

    def languages(self) -> list[str]:
        """The languages that it was trained on."""
        if not self.multilingual():
            return ["en"]
        return [code[2:-2] for code in self.generation_config().lang_to_id]

    def load(self) -> None:
        """Load the weights and the processor."""
        from transformers import WhisperProcessor

        super().load()
        self.processor = WhisperProcessor.from_pretrained(self.folder)

    def answer(
        self, inputs: list[np.ndarray], task: str, source: str, target: str
    ) -> list[dict]:
        """Transcribe, translate into English, or both."""
        answers: list[dict | None] = [None] * len(inputs)
        short = [i for i, wave in enumerate(inputs) if len(wave) <= WINDOW]
        groups = [short] if short else []
        groups += [[i] for i in range(len(inputs)) if i not in short]
        kinds = {"asr": ["transcribe"], "st": ["translate"]}
        for group in groups:
            waves = [inputs[i] for i in group]
            found = [
                self.generate(waves, source, kind)
                for kind in kinds.get(task, ["transcribe", "translate"])
            ]
            for place, index in enumerate(group):
                answers[index] = found[-1][place]
                if task == "asr_st":
                    answers[index]["transcript"] = found[0][place]["text"]
        return answers

    def generate(self, waves: list[np.ndarray], language: str, kind: str) -> list[dict]:
        """Decode waves of at most 30 s, or a single longer one."""
        import torch

        options = {"num_beams": self.beam_size}
        if self.multilingual():
            options |= {"language": language, "task": kind}
        whole = {}
        if len(waves[0]) > WINDOW:
            whole = {"truncation": False, "padding": "longest"}
            options["return_timestamps"] = True
        features = self.processor(
            waves,
            sampling_rate=SAMPLING_RATE,
            return_tensors="pt",
            return_attention_mask=True,
            **whole,
        )
        with torch.inference_mode():
            sequences = self.model.generate(
                features.input_features.to(self.device, self.torch_dtype),
                attention_mask=features.attention_mask.to(self.device),
                **options,
            )
        tokenizer = self.processor.tokenizer
        special = set(tokenizer.all_special_ids)
        texts = tokenizer.batch_decode(sequences, skip_special_tokens=True)
        return [
            {
                "text": " ".join(text.split()),
                "tokens": tokenizer.convert_ids_to_tokens(
                    [t for t in tokens.tolist() if t not in special]
                ),
            }
            for text, tokens in zip(texts, sequences)
        ]
