"""Registry of the speech encoders, and a generic one for ``AutoModel``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechllm.audio.io import SAMPLING_RATE
from speechllm.models.encoder import SpeechEncoder
from speechllm.models.hubert_encoder import HubertEncoder
from speechllm.models.whisper_encoder import WhisperEncoder


class AutoEncoder(SpeechEncoder):
    """Any other speech encoder that ``transformers.AutoModel`` loads.

    The model's own feature extractor computes its input (waveform or log-mel).
    Utterances are encoded one by one: an unknown model may treat padding in any way,
    and features must not depend on the batch.
    """

    def load(self, model: str, random_init: bool) -> tuple[nn.Module, object]:
        from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

        from speechllm.pretrained.resolve import resolve_model

        path = resolve_model(model)
        config = AutoConfig.from_pretrained(path)
        self.feature_extractor = AutoFeatureExtractor.from_pretrained(path)
        encoder = (
            AutoModel.from_config(config)
            if random_init
            else AutoModel.from_pretrained(path, dtype=torch.float32)
        )
        if hasattr(encoder, "get_encoder") and config.is_encoder_decoder:
            encoder = encoder.get_encoder()
        return encoder, config

    @property
    def layers(self) -> nn.ModuleList:
        for owner in (self.encoder, getattr(self.encoder, "encoder", None)):
            if hasattr(owner, "layers"):
                return owner.layers
        raise ValueError(f"{type(self.encoder).__name__} has no list of layers")

    def forward(self, speech: Tensor, speech_lengths: Tensor) -> tuple[Tensor, Tensor]:
        features = []
        for wave, length in zip(speech, speech_lengths.tolist()):
            inputs = self.feature_extractor(
                wave[:length].float().cpu().numpy(),
                sampling_rate=SAMPLING_RATE,
                return_tensors="pt",
            ).to(speech.device)
            output = self.encoder(
                **inputs, output_hidden_states=self.layer == "weighted"
            )
            states = (
                list(output.hidden_states)
                if self.layer == "weighted"
                else [output.last_hidden_state]
            )  # each (1, frames, dim)
            features.append(self.mix(states)[0])
        lengths = torch.tensor([len(f) for f in features], device=speech.device)
        return nn.utils.rnn.pad_sequence(features, batch_first=True), lengths


#: Values of the option ``encoder``.
ENCODERS = {"whisper": WhisperEncoder, "hubert": HubertEncoder, "auto": AutoEncoder}
