"""HuBERT and related encoders, with padding kept out of every statistic."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechllm.audio.io import SAMPLING_RATE
from speechllm.models.encoder import SpeechEncoder, length_mask

# Frames per pass through the waveform convolutions, on a CPU and elsewhere.
CHUNK_FRAMES = {True: 128, False: 1 << 14}


class WaveformConvolutions(nn.Module):
    """HuBERT's waveform convolutions, computed in chunks of frames.

    A frame depends on its own samples only. Chunks keep the many channels of the lower
    layers in the processor's cache. The one statistic over the whole utterance,
    GroupNorm in the base models, is computed beforehand. ``lengths`` (batch,), in
    samples, must be set before each forward pass.

    Args:
        extractor: the module of transformers; its layers are reused.

    Attributes:
        width, hop: receptive field and stride of a frame, in samples.
    """

    lengths: Tensor | None = None

    def __init__(self, extractor: nn.Module):
        super().__init__()
        self.conv_layers = extractor.conv_layers
        if isinstance(getattr(self.conv_layers[0], "layer_norm", None), nn.GroupNorm):
            self.conv_layers[0] = NormalizedConvolution(self.conv_layers[0])
        self.width, self.hop = 1, 1
        for layer in self.conv_layers:
            self.width += (layer.conv.kernel_size[0] - 1) * self.hop
            self.hop *= layer.conv.stride[0]

    def frames(self, samples: int | Tensor) -> int | Tensor:
        """Return the number of frames of ``samples`` samples."""
        return (samples - self.width) // self.hop + 1

    def forward(self, speech: Tensor) -> Tensor:
        """Map waveforms (batch, samples) to (batch, channels, frames)."""
        first = self.conv_layers[0]
        if isinstance(first, NormalizedConvolution):
            first.fold_normalization(speech, self.lengths)
        frames = self.frames(speech.shape[1])
        size = max(1, CHUNK_FRAMES[speech.device.type == "cpu"] // len(speech))
        chunks = []
        for begin in range(0, frames, size):
            last = min(begin + size, frames) - 1
            hidden = speech[:, None, begin * self.hop : last * self.hop + self.width]
            for layer in self.conv_layers:
                hidden = layer(hidden)
            chunks.append(hidden)
        return torch.cat(chunks, dim=2)


class NormalizedConvolution(nn.Module):
    """First layer of HuBERT base: convolution, GroupNorm over time, GELU.

    Each channel is a group, so that its mean and variance follow from those of the
    samples under the kernel; they are folded into weights for each utterance.

    Args:
        layer: that layer of transformers; its parameters are reused.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.conv, self.layer_norm = layer.conv, layer.layer_norm
        self.activation = layer.activation
        if self.layer_norm.num_groups != self.conv.out_channels:
            raise ValueError("GroupNorm over time takes one channel a group")

    def windows(self, speech: Tensor) -> Tensor:
        """View (batch, samples) as (batch, frames, samples under the kernel)."""
        return speech.unfold(1, self.conv.kernel_size[0], self.conv.stride[0])

    def fold_normalization(self, speech: Tensor, lengths: Tensor) -> None:
        """Set the weights for these utterances.

        Args:
            speech: (batch, samples)
            lengths: (batch,), in samples.
        """
        kernel = self.conv.weight[:, 0].double()  # (channels, width)
        scale, shift = self.layer_norm.weight.double(), self.layer_norm.bias.double()
        weights, biases = [], []
        for wave, length in zip(speech, lengths.tolist()):
            (windows,) = self.windows(wave[None, :length])  # (frames, width)
            windows = windows.double()
            centre = windows.mean(0)  # (width,)
            windows = windows - centre
            covariance = windows.T @ windows / len(windows)  # (width, width)
            variance = ((kernel @ covariance) * kernel).sum(1).clamp(min=0)
            gain = scale * torch.rsqrt(variance + self.layer_norm.eps)  # (channels,)
            weights.append(gain * kernel.T)  # (width, channels)
            biases.append(shift - gain * (kernel @ centre))
        self.weight = torch.stack(weights).to(speech.dtype)  # (batch, width, channels)
        self.bias = torch.stack(biases).to(speech.dtype)[:, None]

    def forward(self, speech: Tensor) -> Tensor:
        """Map a chunk (batch, 1, samples) to (batch, channels, frames)."""
        hidden = torch.baddbmm(self.bias, self.windows(speech[:, 0]), self.weight)
        return self.activation(hidden).transpose(1, 2)


class HubertEncoder(SpeechEncoder):
    """HuBERT (Hsu et al. 2021), wav2vec 2.0 and WavLM; 50 frames a second.

    With ``trainable_layers: all`` the waveform convolutions stay frozen, as in
    Nue-ASR.

    Args:
        model: hub id or folder, or a transformers module.
        normalize: scale each waveform to zero mean and unit variance; ``None``
            follows the model's ``preprocessor_config.json`` and, without that file,
            the pretraining ("layer" norm: yes, "group" norm: no).
    """

    num_frames_per_second = 50.0

    def __init__(
        self, model: str | nn.Module, normalize: bool | None = None, **options
    ):
        self._normalize = normalize
        super().__init__(model, **options)
        self.encoder.feature_extractor = WaveformConvolutions(
            self.encoder.feature_extractor
        )

    @property
    def layers(self) -> nn.ModuleList:
        return self.encoder.encoder.layers

    def load(
        self, model: str | nn.Module, random_init: bool
    ) -> tuple[nn.Module, object]:
        import json

        from transformers import AutoConfig, AutoModel

        from speechllm.pretrained.resolve import resolve_model

        preprocessor = None
        if isinstance(model, nn.Module):
            hubert, config = model, model.config
        else:
            path = resolve_model(model)
            preprocessor = path / "preprocessor_config.json"
            config = AutoConfig.from_pretrained(path)
            hubert = (
                AutoModel.from_config(config)
                if random_init
                else AutoModel.from_pretrained(path, dtype=torch.float32)
            )
        settings = {}
        if preprocessor is not None and preprocessor.exists():
            settings = json.loads(preprocessor.read_text("utf-8"))
        rate = settings.get("sampling_rate", SAMPLING_RATE)
        if rate != SAMPLING_RATE:
            raise ValueError(
                f"{preprocessor}: sampling_rate {rate!r}, but the input is "
                f"{SAMPLING_RATE} Hz; choose an encoder for {SAMPLING_RATE} Hz"
            )
        self.normalize = self._normalize
        if self.normalize is None:
            trained_so = config.feat_extract_norm == "layer"
            self.normalize = settings.get("do_normalize", trained_so)
        # time masks inside the model use numpy's global random state
        hubert.config.apply_spec_augment = False
        hubert.config.layerdrop = 0.0
        return hubert, config

    def always_frozen(self) -> list[nn.Module]:
        return [self.encoder.get_submodule("feature_extractor")]

    def forward(self, speech: Tensor, speech_lengths: Tensor) -> tuple[Tensor, Tensor]:
        mask = length_mask(speech_lengths, speech.shape[1])  # (batch, samples)
        if self.normalize:
            count = speech_lengths[:, None]
            mean = (speech * mask).sum(1, keepdim=True) / count
            centred = (speech - mean) * mask
            variance = (centred**2).sum(1, keepdim=True) / count
            speech = centred * torch.rsqrt(variance + 1e-7)
        speech = speech * mask
        convolutions = self.encoder.feature_extractor
        if speech.shape[1] < convolutions.width:
            speech = F.pad(speech, (0, convolutions.width - speech.shape[1]))
        speech_lengths = speech_lengths.clamp(min=convolutions.width)
        convolutions.lengths = speech_lengths
        dtype = self.encoder.feature_projection.projection.weight.dtype
        output = self.encoder(
            speech.to(dtype),
            attention_mask=length_mask(speech_lengths, speech.shape[1]).long(),
            output_hidden_states=self.layer == "weighted",
        )
        lengths = convolutions.frames(speech_lengths)  # (batch,)
        states = (
            list(output.hidden_states)
            if self.layer == "weighted"
            else [output.last_hidden_state]
        )  # each (batch, frames, dim)
        features = self.mix(states)
        keep = length_mask(lengths, features.shape[1])
        return features * keep[..., None], lengths
