"""SeamlessM4T v2: end-to-end speech recognition and translation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from speechllm.audio.io import SAMPLING_RATE
from speechllm.baselines.base import (
    MAX_NEW_TOKENS,
    PretrainedSystem,
    decode_tokens,
    language_token,
)
from speechllm.baselines.language_codes import seamless_code
from speechllm.pretrained.model_folder import NO_CODE

if TYPE_CHECKING:
    from torch import Tensor


class Seamless(PretrainedSystem):
    """Speech to text in the source or the target language; in both for ``asr_st``."""

    architecture = "SeamlessM4Tv2ForSpeechToText"
    model_types = ("seamless_m4t_v2",)

    def __init__(self, *arguments, **options):
        from transformers import AutoTokenizer

        super().__init__(*arguments, **options)
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder, **NO_CODE)

    def check(self, task: str, source: str, target: str) -> None:
        """Raise UserError if the checkpoint cannot write one of the output languages.

        The model does not take the source language as input, so it is checked only if
        it is an output language.
        """
        outputs = {"asr": [source], "st": [target]}.get(task, [source, target])
        for language in outputs:
            self.language_token(language)

    def language_token(self, language: str) -> int:
        """Return the id of the token that names an output language."""
        code = seamless_code(language)
        message = f"{self.name} does not write {language!r} ({code})"
        return language_token(self.tokenizer, f"__{code}__", message)

    def load(self) -> None:
        """Load the weights and the feature extractor."""
        from transformers import AutoFeatureExtractor

        super().load()
        self.features = AutoFeatureExtractor.from_pretrained(self.folder, **NO_CODE)

    def decode(
        self, inputs: list[np.ndarray], task: str, source: str, target: str
    ) -> list[dict]:
        """Transcribe, translate, or both."""
        import torch

        with torch.inference_mode():
            states, mask = self.encode(inputs)
            outputs = self.generate(states, mask, source if task == "asr" else target)
            if task == "asr_st":
                transcripts = self.generate(states, mask, source)
                for output, transcript in zip(outputs, transcripts):
                    output["transcript"] = transcript["text"]
        return outputs

    def encode(self, waves: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Return encoder states (batch, positions, hidden) and mask (batch, frames).

        Each utterance is encoded alone: the strided convolutions of transformers'
        adapter would otherwise see the padding of shorter utterances. The decoder,
        which takes most of the time, works on the whole batch.
        """
        import torch
        from torch.nn.utils.rnn import pad_sequence

        states, masks = [], []
        for wave in waves:
            features = self.features(
                wave, sampling_rate=SAMPLING_RATE, return_tensors="pt"
            )
            mask = features.attention_mask.to(self.device)
            output = self.model.speech_encoder(
                features.input_features.to(self.device, self.torch_dtype),
                attention_mask=mask,
            )
            states.append(output.last_hidden_state[0])
            masks.append(mask[0])
        return (
            pad_sequence(states, batch_first=True),
            pad_sequence(masks, batch_first=True).to(torch.long),
        )

    def generate(self, states: Tensor, mask: Tensor, language: str) -> list[dict]:
        """Generate text from encoder states (batch, positions, hidden)."""
        from transformers.modeling_outputs import BaseModelOutput

        code = seamless_code(language)
        # transformers 5 drops this table if the generation config is marked as
        # derived from a model config
        self.model.generation_config.text_decoder_lang_to_code_id = {
            code: self.language_token(language)
        }
        sequences = self.model.generate(
            inputs=None,
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask,
            tgt_lang=code,
            num_beams=self.beam_size,
            max_new_tokens=MAX_NEW_TOKENS,
        )
        return [decode_tokens(self.tokenizer, token_ids) for token_ids in sequences]
