"""Whisper with its own decoder: speech recognition and translation into English."""

from __future__ import annotations

from typing import Any

import numpy as np

from speechllm.audio.io import SAMPLING_RATE
from speechllm.baselines.base import PretrainedSystem, decode_tokens
from speechllm.pretrained.model_folder import NO_CODE, read_mapping
from speechllm.utils.errors import UserError


class Whisper(PretrainedSystem):
    """Recognition of Whisper's languages, and translation of them into English.

    Speech of at most one window of the encoder (30 s, unless the checkpoint was
    fine-tuned with less) is padded to it, so the batch does not affect the text. Longer
    speech is decoded alone, window by window, by transformers' sequential long-form
    algorithm.
    """

    architecture = "WhisperForConditionalGeneration"
    model_types = ("whisper",)

    def check(self, task: str, source: str, target: str) -> None:
        """Raise UserError if Whisper was not trained for the task or the language."""
        if task not in ("asr", "st", "asr_st") or (task != "asr" and target != "en"):
            raise UserError(
                f"{task} from {source} into {target}: Whisper transcribes, and "
                "translates into English only; translate its transcripts with nllb"
            )
        supported = self.languages()
        if source not in supported or (task != "asr" and not self.multilingual()):
            raise UserError(
                f"{task} from {source}: {self.name} supports {', '.join(supported)}"
                + ("" if self.multilingual() else " and does not translate")
            )

    def generation_config(self) -> dict[str, Any]:
        """Return the checkpoint's generation config.

        Raises:
            UserError: it is damaged, or has no languages.
        """
        path = self.folder / "generation_config.json"
        content = read_mapping(path)
        languages = content.get("lang_to_id")
        if content.get("is_multilingual", True) and not isinstance(languages, dict):
            raise UserError(f"{path}: no lang_to_id; download the model again")
        return content

    def multilingual(self) -> bool:
        """Return True unless the checkpoint is an English-only one (``*.en``)."""
        return bool(self.generation_config().get("is_multilingual", True))

    def languages(self) -> list[str]:
        """Return the languages that the checkpoint was trained on."""
        if not self.multilingual():
            return ["en"]
        return [code[2:-2] for code in self.generation_config()["lang_to_id"]]

    def load(self) -> None:
        """Load the weights and the processor."""
        from transformers import WhisperProcessor

        super().load()
        self.processor = WhisperProcessor.from_pretrained(self.folder, **NO_CODE)
        self.window = self.processor.feature_extractor.n_samples  # samples

    def decode(
        self, inputs: list[np.ndarray], task: str, source: str, target: str
    ) -> list[dict]:
        """Transcribe, translate into English, or both."""
        modes = {"asr": ["transcribe"], "st": ["translate"]}.get(
            task, ["transcribe", "translate"]
        )
        short = [i for i, wave in enumerate(inputs) if len(wave) <= self.window]
        groups = [short] if short else []
        groups += [[i] for i, wave in enumerate(inputs) if len(wave) > self.window]
        outputs: list[dict] = [{} for _ in inputs]
        for group in groups:
            waves = [inputs[i] for i in group]
            results = [self.generate(waves, source, mode) for mode in modes]
            for row, index in enumerate(group):
                outputs[index] = results[-1][row]
                if task == "asr_st":
                    outputs[index]["transcript"] = results[0][row]["text"]
        return outputs

    def generate(self, waves: list[np.ndarray], language: str, mode: str) -> list[dict]:
        """Decode utterances of at most one window, or a single longer one.

        Args:
            mode: ``transcribe`` or ``translate``.
        """
        import torch

        options: dict[str, Any] = {"num_beams": self.beam_size}
        if self.multilingual():
            options |= {"language": language, "task": mode}
        padding: dict[str, Any] = {}
        if len(waves[0]) > self.window:
            padding = {"truncation": False, "padding": "longest"}
            options["return_timestamps"] = True
        features = self.processor(
            waves,
            sampling_rate=SAMPLING_RATE,
            return_tensors="pt",
            return_attention_mask=True,
            **padding,
        )
        with torch.inference_mode():
            sequences = self.model.generate(
                features.input_features.to(self.device, self.torch_dtype),
                attention_mask=features.attention_mask.to(self.device),
                **options,
            )
        tokenizer = self.processor.tokenizer
        return [decode_tokens(tokenizer, token_ids) for token_ids in sequences]
