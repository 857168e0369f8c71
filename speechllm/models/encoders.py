"""Registry of the speech encoders, and a generic one for ``AutoModel``."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechllm.audio.io import SAMPLING_RATE
from speechllm.models.encoder import SpeechEncoder, length_mask
from speechllm.models.hubert_encoder import HubertEncoder, without_wavlm_attention
from speechllm.models.whisper_encoder import WhisperEncoder
from speechllm.pretrained.model_folder import (
    NO_CODE,
    load_pretrained,
    read_model_config,
)

#: Minimum input of a feature extractor, in samples: two frames of w2v-BERT's filter
#: banks, whose variance is undefined for one, and one frame of waveform encoders.
MIN_SAMPLES = {"input_features": 560, "input_values": 400}
RATE_SECONDS = (2, 10)  # lengths of speech by which the frame rate is measured
_POSITIONS = threading.Lock()


class AutoEncoder(SpeechEncoder):
    """Any other speech encoder that ``transformers.AutoModel`` loads.

    The model's own feature extractor computes its input (waveform or log-mel).
    w2v-BERT 2.0 encodes a batch at once. With other models utterances are encoded one
    by one: an unknown model may treat padding in any way, and features must not
    depend on the batch.

    With an integer ``layer`` one more layer is computed, so that the output is
    transformers' ``hidden_states[layer]`` for any model.
    """

    def load(
        self, model: str | nn.Module, random_init: bool
    ) -> tuple[nn.Module, object]:
        from transformers import AutoFeatureExtractor, AutoModel

        from speechllm.pretrained.resolve import resolve_model

        if isinstance(model, nn.Module):  # for an estimate, which has inputs
            encoder, config = model, model.config
        else:
            path = resolve_model(model)
            config = read_model_config(path)
            self.feature_extractor = AutoFeatureExtractor.from_pretrained(
                path, **NO_CODE
            )
            encoder = (
                AutoModel.from_config(config, **NO_CODE)
                if random_init
                else load_pretrained(AutoModel, path, "decoder.", dtype=torch.float32)
            )
        if hasattr(config, "encoder_config"):  # Parakeet with a CTC or transducer head
            encoder, config = encoder.encoder, config.encoder_config
        elif hasattr(encoder, "get_encoder") and config.is_encoder_decoder:
            encoder = encoder.get_encoder()
        # time masks inside the model use numpy's global random state
        encoder.config.apply_spec_augment = False
        encoder.config.layerdrop = 0.0
        for module in encoder.modules():
            if hasattr(module, "layerdrop"):  # a copy of the config's
                module.layerdrop = 0.0
        positions = getattr(self.owner_of_layers(encoder), "embed_positions", None)
        if positions is not None:  # its tables grow with the input
            positions.forward = functools.partial(locked, positions.forward)
        self.batched = config.model_type == "wav2vec2-bert"
        return encoder, config

    def train(self, mode: bool = True) -> AutoEncoder:
        """Set the mode; batch normalisation keeps the pretrained statistics."""
        super().train(mode)
        for module in self.encoder.modules():
            if isinstance(module, nn.BatchNorm1d):  # would use those of one utterance
                module.eval()
        return self

    @staticmethod
    def owner_of_layers(encoder: nn.Module) -> nn.Module:
        """Return the module with the list of transformer layers.

        Raises:
            ValueError: there is none.
        """
        for owner in (encoder, getattr(encoder, "encoder", None)):
            if hasattr(owner, "layers"):
                return owner
        raise ValueError(f"{type(encoder).__name__} has no list of layers")

    @property
    def layers(self) -> nn.ModuleList:
        layers = self.owner_of_layers(self.encoder).layers
        # without the extra one of an integer layer
        return layers[: self.layer] if isinstance(self.layer, int) else layers

    @property
    def adapter_output(self) -> bool:
        """True if the features are those of the model's own adapter layers."""
        has_adapter = getattr(self.encoder, "adapter", None) is not None
        return has_adapter and self.layer == "last"

    @property
    def output_size(self) -> int:
        if self.adapter_output:
            return self.config.output_hidden_size
        return self.config.hidden_size

    @property
    def has_log_mel_input(self) -> bool:
        # other feature extractors have other layouts
        return type(self.feature_extractor).__name__ == "SeamlessM4TFeatureExtractor"

    @functools.cached_property
    def num_frames_per_second(self) -> float:  # type: ignore[override]
        """Frames per second, measured on silence of two lengths.

        Raises:
            ValueError: the number of frames does not depend on the length.
        """
        device = next(self.encoder.parameters()).device
        lengths = []
        training = self.training
        self.eval()
        with torch.no_grad():
            for length in RATE_SECONDS:
                speech = torch.zeros(1, length * SAMPLING_RATE, device=device)
                size = torch.tensor([speech.shape[1]], device=device)
                lengths.append(int(self(speech, size)[1]))
        self.train(training)
        rate = (lengths[1] - lengths[0]) / (RATE_SECONDS[1] - RATE_SECONDS[0])
        if rate <= 0:
            raise ValueError(
                f"{type(self.encoder).__name__} has {lengths[0]} frames for any length "
                "of speech; word times need an encoder without padding"
            )
        return rate

    def drop_unused_layers(self) -> None:
        layers = self.owner_of_layers(self.encoder).layers
        if not isinstance(self.layer, int):
            super().drop_unused_layers()
            return
        if not 1 <= self.layer <= len(layers):
            raise ValueError(
                f"encoder layer {self.layer}: the model has {len(layers)} layers"
            )
        del layers[self.layer + 1 :]
        self.old_layer_output = False
        self.register_buffer("layer_output", torch.tensor(1))

    def use_old_layer_output(self) -> None:
        if isinstance(self.layer, int):
            del self.owner_of_layers(self.encoder).layers[self.layer :]
            self.old_layer_output = True

    def lora_layers(self) -> list[str]:
        return without_wavlm_attention(self.layers, self.config, self.lora)

    def always_frozen(self) -> list[nn.Module]:
        owner = self.owner_of_layers(self.encoder)
        frozen: list[nn.Module | None] = []
        if isinstance(self.layer, int):
            frozen += owner.layers[self.layer :]
        if self.layer != "last":
            conformer = self.config.model_type == "wav2vec2-conformer"
            if conformer or getattr(self.config, "do_stable_layer_norm", False):
                frozen.append(owner.layer_norm)  # after the last layer
            for name in ("adapter", "intermediate_ffn"):
                frozen.append(getattr(self.encoder, name, None))
        if self.config.model_type == "wav2vec2-conformer":
            frozen.append(owner.pos_conv_embed)  # transformers never calls it
        return [module for module in frozen if module is not None]

    def inputs(self, wave: Tensor) -> dict[str, Tensor]:
        """Return the model's input for one waveform (samples,), on its device."""
        parameter = next(self.encoder.parameters())
        name = self.feature_extractor.model_input_names[0]
        shortest = MIN_SAMPLES.get(name, 0)
        wave = F.pad(wave, (0, max(0, shortest - len(wave))))
        inputs = self.feature_extractor(
            wave.float().cpu().numpy(),
            sampling_rate=SAMPLING_RATE,
            return_tensors="pt",
        ).to(parameter.device)
        if self.training and self.specaug is not None:
            frames = inputs[name]  # (1, frames, stacked mel bins)
            mel = frames.reshape(1, -1, self.feature_extractor.num_mel_bins)
            mel, _ = self.specaug(mel, torch.tensor([mel.shape[1]]))
            inputs[name] = mel.reshape(frames.shape)
        return {
            key: value.to(parameter.dtype) if value.is_floating_point() else value
            for key, value in inputs.items()
        }

    def run(self, **inputs: Tensor) -> Tensor:
        """Return the selected features (batch, frames, dim)."""
        needs_states = self.layer == "weighted" or (
            isinstance(self.layer, int) and not self.old_layer_output
        )
        output = self.encoder(**inputs, output_hidden_states=needs_states)
        if not needs_states:
            return self.mix([output.last_hidden_state])
        if isinstance(self.layer, int):
            return output.hidden_states[self.layer]
        return self.mix(list(output.hidden_states))

    def forward(self, speech: Tensor, speech_lengths: Tensor) -> tuple[Tensor, Tensor]:
        inputs = [
            self.inputs(wave[:length])
            for wave, length in zip(speech, speech_lengths.tolist())
        ]
        if self.batched and not self.adapter_output and len(inputs) > 1:
            columns = {
                name: nn.utils.rnn.pad_sequence(
                    [row[name][0] for row in inputs], batch_first=True
                )
                for name in inputs[0]
            }
            sizes = [row["input_features"].shape[1] for row in inputs]
            lengths = torch.tensor(sizes, device=speech.device)
            features = self.run(**columns)
            keep = length_mask(lengths, features.shape[1])
            return features * keep[..., None], lengths
        rows = [self.run(**row)[0] for row in inputs]
        lengths = torch.tensor([len(row) for row in rows], device=speech.device)
        return nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths


def locked(forward: Callable, *args: Tensor) -> Tensor:
    """Call a function while no other thread does."""
    with _POSITIONS:
        return forward(*args)


#: Values of the option ``encoder``.
ENCODERS = {"whisper": WhisperEncoder, "hubert": HubertEncoder, "auto": AutoEncoder}
