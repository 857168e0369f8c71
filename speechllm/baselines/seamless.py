"""SeamlessM4T v2: recognition and translation of speech by one model, end to end."""

from __future__ import annotations

import numpy as np

from speechllm.audio.io import SAMPLING_RATE
from speechllm.baselines.base import MAX_NEW_TOKENS, PretrainedSystem
from speechllm.baselines.language_codes import seamless_code
from speechllm.baselines.nllb import spelt
from speechllm.utils.errors import UserError


class Seamless(PretrainedSystem):
    """Speech to text in the language spoken or another; twice for ``asr_st``."""

    architecture = "SeamlessM4Tv2ForSpeechToText"
    model_types = ("seamless_m4t_v2",)

    def __init__(self, *arguments, **options):
        from transformers import AutoTokenizer

        super().__init__(*arguments, **options)
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)

    def check(self, task: str, source: str, target: str) -> None:
        """Refuse languages that the checkpoint does not write.

        It is not told the language that it hears, so a source language matters only
        where it is to be written.
        """
        written = {"asr": [source], "st": [target]}.get(task, [source, target])
        for language in written:
            self.language_token(language)

    def language_token(self, language: str) -> int:
        """Id of the token that names a language."""
        code = seamless_code(language)
        token = self.tokenizer.convert_tokens_to_ids(f"__{code}__")
        if token is None or token == self.tokenizer.unk_token_id:
            raise UserError(f"{self.name} does not write {language!r} ({code})")
        return token

    def load(self) -> None:
        """Load the weights and the feature extractor."""
        from transformers import AutoFeatureExtractor

        super().load()
        self.features = AutoFeatureExtractor.from_pretrained(self.folder)

    def answer(
        self, inputs: list[np.ndarray], task: str, source: str, target: str
    ) -> list[dict]:
        """Write the language that is spoken, the other one, or both."""
        import torch

        with torch.inference_mode():
            states, mask = self.encode(inputs)
            answers = self.write(states, mask, source if task == "asr" else target)
            if task == "asr_st":
                transcripts = self.write(states, mask, source)
                for answer, transcript in zip(answers, transcripts):
                    answer["transcript"] = transcript["text"]
        return answers

    def encode(self, waves: list[np.ndarray]):
        """Encoder states (batch, positions, hidden), mask (batch, feature frames).

        Each wave goes through the encoder alone: in a batch the strided convolutions
        of transformers' adapter would see the padding behind the shorter ones. The
        decoder, which takes most of the time, works on the whole batch.
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

    def write(self, states, mask, language: str) -> list[dict]:
        """Generate text in a language from encoder states."""
        from transformers.modeling_outputs import BaseModelOutput

        code = seamless_code(language)
        # transformers 5 drops this table where a generation config says that it was
        # made from a model config
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
        return [spelt(self.tokenizer, tokens) for tokens in sequences]
