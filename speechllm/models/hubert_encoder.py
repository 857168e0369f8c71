"""HuBERT and related encoders, with padding kept out of every statistic."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechllm.audio.io import SAMPLING_RATE
from speechllm.models.adaptation import linear_layers
from speechllm.models.encoder import SpeechEncoder, length_mask
from speechllm.models.precision import to_float64_device
from speechllm.pretrained.model_folder import (
    NO_CODE,
    is_nue_asr,
    load_pretrained,
    read_model_config,
)

# Frames per pass through the waveform convolutions, on a CPU and elsewhere.
CHUNK_FRAMES = {True: 128, False: 1 << 14}


class WaveformConvolutions(nn.Module):
    """HuBERT's waveform convolutions, computed in chunks of frames.

    A frame depends on its own samples only. Chunks keep the many channels of the lower
    layers in the processor's cache. The one statistic over the whole utterance,
    GroupNorm in the base models, is computed beforehand.

    Args:
        extractor: the module of transformers; its layers are reused.

    Attributes:
        width, hop: receptive field and stride of a frame, in samples.
    """

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

    def forward(self, features: Tensor) -> Tensor:
        """Return the output of :meth:`extract`; transformers calls this module."""
        return features

    def extract(self, speech: Tensor, lengths: Tensor) -> Tensor:
        """Map waveforms (batch, samples) to (batch, channels, frames).

        Args:
            lengths: (batch,), in samples.
        """
        first, rest = self.conv_layers[0], list(self.conv_layers)[1:]
        if isinstance(first, NormalizedConvolution):
            folded = first.fold_normalization(speech, lengths)
            first = functools.partial(first, folded=folded)
        frames = self.frames(speech.shape[1])
        size = max(1, CHUNK_FRAMES[speech.device.type == "cpu"] // len(speech))
        chunks = []
        for begin in range(0, frames, size):
            last = min(begin + size, frames) - 1
            hidden = speech[:, None, begin * self.hop : last * self.hop + self.width]
            for layer in (first, *rest):
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

    def fold_normalization(
        self, speech: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return weights and biases of each utterance, with the norm in them.

        Args:
            speech: (batch, samples)
            lengths: (batch,), in samples.

        Returns:
            (batch, width, channels) and (batch, 1, channels).
        """
        kernel = to_float64_device(self.conv.weight[:, 0]).double()  # (channels, width)
        scale = to_float64_device(self.layer_norm.weight).double()
        shift = to_float64_device(self.layer_norm.bias).double()
        weights, biases = [], []
        for wave, length in zip(speech, lengths.tolist()):
            (windows,) = self.windows(wave[None, :length])  # (frames, width)
            windows = to_float64_device(windows).double()
            centre = windows.mean(0)  # (width,)
            windows = windows - centre
            covariance = windows.T @ windows / len(windows)  # (width, width)
            variance = ((kernel @ covariance) * kernel).sum(1).clamp(min=0)
            gain = scale * torch.rsqrt(variance + self.layer_norm.eps)  # (channels,)
            weights.append(gain * kernel.T)  # (width, channels)
            biases.append(shift - gain * (kernel @ centre))
        return torch.stack(weights).to(speech), torch.stack(biases).to(speech)[:, None]

    def forward(self, speech: Tensor, folded: tuple[Tensor, Tensor]) -> Tensor:
        """Map a chunk (batch, 1, samples) to (batch, channels, frames).

        Args:
            folded: of :meth:`fold_normalization`.
        """
        weight, bias = folded
        hidden = torch.baddbmm(bias, self.windows(speech[:, 0]), weight)
        return self.activation(hidden).transpose(1, 2)


def without_wavlm_attention(
    layers: nn.ModuleList, config: object, lora: dict | None
) -> list[str]:
    """Return the linear layers that LoRA can adapt.

    WavLM's attention multiplies by the weights of its projections without calling
    them, so that adapters on them would have no effect.

    Raises:
        ValueError: ``target_modules`` of ``lora`` names such a projection.
    """
    names = linear_layers(layers)
    if getattr(config, "model_type", None) != "wavlm":
        return names
    projections = ("q_proj", "k_proj", "v_proj", "out_proj")
    wanted = (lora or {}).get("target_modules", "all-linear")
    if wanted != "all-linear" and any(p in str(wanted) for p in projections):
        raise ValueError(
            "encoder_conf: LoRA has no effect on the attention projections of WavLM; "
            "set target_modules to intermediate_dense and output_dense"
        )
    return [n for n in names if not n.endswith(projections)]


class HubertEncoder(SpeechEncoder):
    """HuBERT (Hsu et al. 2021), wav2vec 2.0 and WavLM; 50 frames a second.

    With ``trainable_layers: all`` the waveform convolutions stay frozen, as in
    Nue-ASR.

    Args:
        model: hub id or folder (of Nue-ASR: its HuBERT), or a transformers module.
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

        from transformers import AutoModel

        from speechllm.pretrained.resolve import resolve_model

        preprocessor = None
        if isinstance(model, nn.Module):
            hubert, config = model, model.config
        else:
            path = resolve_model(model)
            preprocessor = path / "preprocessor_config.json"
            if is_nue_asr(path):
                from speechllm.models.nue_asr import load_part

                hubert = load_part(path, "audio_encoder", torch.float32, random_init)
                config = hubert.config
            elif random_init:
                config = read_model_config(path)
                hubert = AutoModel.from_config(config, **NO_CODE)
            else:
                config = read_model_config(path)
                hubert = load_pretrained(AutoModel, path, dtype=torch.float32)
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
        if getattr(config, "add_adapter", False):
            raise ValueError(
                f"{model}: an encoder with adapter layers (add_adapter); use encoder: "
                "auto"
            )
        # time masks inside the model use numpy's global random state
        hubert.config.apply_spec_augment = False
        hubert.config.layerdrop = 0.0
        return hubert, config

    @property
    def final_norm(self) -> nn.Module | None:
        """The layer norm after the last layer; the base models have none there."""
        if self.config.do_stable_layer_norm:
            return self.encoder.encoder.get_submodule("layer_norm")
        return None

    def drop_unused_layers(self) -> None:
        super().drop_unused_layers()
        if isinstance(self.layer, int) and self.final_norm is not None:
            # kept as a module: checkpoints of release 0.2 contain its weights
            self.final_norm.forward = nn.Identity().forward
            self.register_buffer("layer_output", torch.tensor(1))

    def use_old_layer_output(self) -> None:
        if self.final_norm is not None:
            self.final_norm.__dict__.pop("forward", None)

    def lora_layers(self) -> list[str]:
        return without_wavlm_attention(self.layers, self.config, self.lora)

    def always_frozen(self) -> list[nn.Module]:
        frozen = [self.encoder.get_submodule("feature_extractor")]
        if self.layer != "last" and self.final_norm is not None:
            frozen.append(self.final_norm)
        return frozen

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
        dtype = self.encoder.feature_projection.projection.weight.dtype
        output = self.encoder(
            convolutions.extract(speech.to(dtype), speech_lengths),
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
