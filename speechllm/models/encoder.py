"""Pretrained speech encoders whose features do not depend on the batch.

Every encoder maps padded waveforms ``(batch, samples)`` at 16 kHz and their lengths
to features ``(batch, frames, dim)`` and frame counts. What stands behind the end of
an utterance never reaches its features: statistics over time leave padding out,
convolutions see the zeros that they would see in a batch of one, and attention is
masked to the last layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechllm.audio.io import SAMPLING_RATE

FRAMES_AT_ONCE = {True: 128, False: 1 << 14}  # of HuBERT's waveform: a CPU, or others


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Tell which places of a padded batch are filled.

    Args:
        lengths: (batch,)
        size: the padded length.

    Returns:
        Booleans (batch, size), true where the utterance has something.
    """
    return torch.arange(size, device=lengths.device)[None] < lengths[:, None]


class SpeechEncoder(nn.Module):
    """What all encoders share: which layer is read, and what is trained.

    Args:
        model: hub id or folder of the pretrained encoder.
        layer: ``"last"``, the number of a transformer layer (1 is the first), or
            ``"weighted"`` for a learnt mixture of all of them (Yang et al. 2021,
            SUPERB, section 3).
        trainable_layers: how many of the top transformer layers are trained; 0
            freezes the encoder, ``"all"`` trains everything but HuBERT's waveform
            convolutions (Nue-ASR, section 3).
        random_init: build the architecture from its config, without its weights.
        specaug: masks put on the log-mel spectrogram in training, as the options of
            ``espnet2.asr.specaug.specaug.SpecAug``; only for encoders that read one.
        dropout: of Whisper's trained layers, which have none themselves.
    """

    num_frames_per_second: float

    def __init__(
        self,
        model: str,
        layer: str | int = "last",
        trainable_layers: int | str = 0,
        random_init: bool = False,
        specaug: dict | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.layer = layer
        self.trainable_layers = trainable_layers
        self.encoder, self.config = self.load(model, random_init)
        self.specaug = None
        if specaug is not None:
            from espnet2.asr.specaug.specaug import SpecAug

            self.specaug = SpecAug(**specaug)
        self.cut_unused_layers()
        self.layer_weights = None
        if layer == "weighted":
            self.layer_weights = nn.Parameter(torch.zeros(len(self.layers) + 1))
        self.choose_trainable()
        if dropout:
            self.set_dropout(dropout)

    @property
    def output_size(self) -> int:
        """Dimension of a feature."""
        return self.config.hidden_size

    @property
    def layers(self) -> nn.ModuleList:
        """The transformer layers, bottom first."""
        return self.encoder.layers

    def load(self, model: str, random_init: bool) -> tuple[nn.Module, object]:
        """Return the transformers module and its config."""
        raise NotImplementedError

    def cut_unused_layers(self) -> None:
        """Drop the layers above the one that is read."""
        if isinstance(self.layer, str):
            if self.layer not in ("last", "weighted"):
                raise ValueError(f"encoder layer {self.layer!r}: last, weighted or N")
            return
        if not 1 <= self.layer <= len(self.layers):
            raise ValueError(
                f"encoder layer {self.layer}: the model has {len(self.layers)} layers"
            )
        del self.layers[self.layer :]

    def set_dropout(self, dropout: float) -> None:
        """Give the trained layers dropout."""
        raise ValueError(
            "option dropout is for Whisper; this encoder's config has its own"
        )

    def untrained_modules(self) -> list[nn.Module]:
        """What stays as it is even when all layers are trained."""
        return []

    def choose_trainable(self) -> None:
        """Freeze all but what ``trainable_layers`` names."""
        count = self.trainable_layers
        if count == "all":
            for module in self.untrained_modules():
                module.requires_grad_(False)
            return
        if not isinstance(count, int) or not 0 <= count <= len(self.layers):
            raise ValueError(
                f"trainable_layers {count!r}: 'all' or 0 to {len(self.layers)}"
            )
        self.encoder.requires_grad_(False)
        if count:
            for layer in self.layers[-count:]:
                layer.requires_grad_(True)
            final = getattr(self.encoder, "layer_norm", None)
            if isinstance(final, nn.LayerNorm):
                final.requires_grad_(True)

    def train(self, mode: bool = True) -> SpeechEncoder:
        """Set the mode; what is frozen stays in evaluation mode (no dropout)."""
        super().train(mode)
        if mode:
            for module in self.encoder.modules():
                parameters = list(module.parameters())
                if parameters and not any(p.requires_grad for p in parameters):
                    module.eval()
            if self.trainable_layers == 0:
                self.encoder.eval()
        return self

    def mix(self, states: list[Tensor]) -> Tensor:
        """Return the layer that is read: (batch, frames, dim)."""
        if self.layer_weights is None:
            return states[-1]
        weights = self.layer_weights.softmax(0)
        return sum(w * s for w, s in zip(weights, states, strict=True))

    def forward(self, speech: Tensor, speech_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode waveforms.

        Args:
            speech: (batch, samples), 16 kHz, padded behind the end.
            speech_lengths: (batch,), in samples.

        Returns:
            features (batch, frames, dim), zero behind the end, and frames (batch,).
        """
        raise NotImplementedError


class WhisperEncoder(SpeechEncoder):
    """Whisper's encoder (Radford et al. 2022), cut to the utterance's true length.

    Whisper pads every utterance to 30 s; this one computes the log-mel spectrogram
    of what is there and 50 frames a second from it, with the positions it was
    trained with. Utterances over 30 s do not fit its positions.
    """

    num_frames_per_second = 50.0

    def set_dropout(self, dropout: float) -> None:
        for layer in self.layers:
            if any(p.requires_grad for p in layer.parameters()):
                layer.dropout = layer.activation_dropout = dropout

    def load(self, model: str, random_init: bool) -> tuple[nn.Module, object]:
        from transformers import AutoConfig, WhisperFeatureExtractor, WhisperModel

        from speechllm.pretrained.resolve import resolve_model

        path = resolve_model(model)
        config = AutoConfig.from_pretrained(path)
        whisper = (
            WhisperModel(config)
            if random_init
            else WhisperModel.from_pretrained(path, dtype=torch.float32)
        )
        extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
        self.hop, self.window_size = extractor.hop_length, extractor.n_fft
        # no buffers: they stay in float32 when the model is cast to less
        self.mel_filters = torch.as_tensor(extractor.mel_filters, dtype=torch.float32)
        self.window = torch.hann_window(self.window_size)
        return whisper.encoder, config

    def untrained_modules(self) -> list[nn.Module]:
        return [self.encoder.embed_positions]

    @property
    def max_samples(self) -> int:
        """Longest utterance that the positions reach."""
        return self.config.max_source_positions * 2 * self.hop

    def log_mel(self, waveform: Tensor) -> Tensor:
        """Whisper's log-mel spectrogram of one utterance: (mel bins, frames).

        Same as ``transformers.WhisperFeatureExtractor`` without padding.
        """
        if len(waveform) <= self.window_size // 2:  # reflection needs that many
            waveform = F.pad(waveform, (0, self.window_size // 2 + 1 - len(waveform)))
        self.mel_filters = self.mel_filters.to(waveform.device)
        self.window = self.window.to(waveform.device)
        spectrum = torch.stft(
            waveform.float(),
            self.window_size,
            self.hop,
            window=self.window,
            return_complex=True,
        )[:, :-1]
        power = spectrum.abs() ** 2  # (bins, frames)
        log = (self.mel_filters.T @ power).clamp(min=1e-10).log10()
        log = torch.maximum(log, log.max() - 8.0)
        return (log + 4.0) / 4.0

    def forward(self, speech: Tensor, speech_lengths: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), torch.autocast(speech.device.type, enabled=False):
            mels = [
                self.log_mel(wave[:length])
                for wave, length in zip(speech, speech_lengths.tolist())
            ]
            mel_lengths = torch.tensor([m.shape[1] for m in mels], device=speech.device)
            mel = nn.utils.rnn.pad_sequence(
                [m.T for m in mels], batch_first=True
            )  # (batch, mel frames, mel bins)
            if self.training and self.specaug is not None:
                mel, _ = self.specaug(mel, mel_lengths)
            mel = mel * length_mask(mel_lengths, mel.shape[1])[..., None]
        lengths = (mel_lengths + 1) // 2
        limit = self.config.max_source_positions
        if int(lengths.max()) > limit:
            raise ValueError(
                f"an utterance of {int(lengths.max()) / 50:.1f} s: Whisper's encoder "
                f"takes at most {limit / 50:.0f} s"
            )
        mel = mel.to(self.encoder.conv1.weight.dtype).transpose(1, 2)
        hidden = F.gelu(self.encoder.conv1(mel))  # (batch, dim, mel frames)
        hidden = hidden * length_mask(mel_lengths, hidden.shape[2])[:, None]
        hidden = F.gelu(self.encoder.conv2(hidden)).transpose(1, 2)
        hidden = hidden + self.encoder.embed_positions.weight[: hidden.shape[1]]
        mask = length_mask(lengths, hidden.shape[1])  # (batch, frames)
        attention = torch.zeros_like(mask, dtype=hidden.dtype)
        attention = attention.masked_fill(~mask, torch.finfo(hidden.dtype).min)
        attention = attention[:, None, None, :].expand(-1, 1, hidden.shape[1], -1)
        states = [hidden]
        for layer in self.layers:
            output = layer(states[-1], attention)
            states.append(output[0] if isinstance(output, tuple) else output)
        if not isinstance(self.layer, int):
            states[-1] = self.encoder.layer_norm(states[-1])
        return self.mix(states) * mask[..., None], lengths


class WaveformConvolutions(nn.Module):
    """HuBERT's convolutions of the waveform, some frames at a time.

    A frame hears its own stretch of samples and nothing else, so that what the many
    channels of the lower layers hold need not leave the processor's cache. What is
    over the whole utterance, GroupNorm in the base models, is known beforehand.
    ``lengths`` (batch,), in samples, is set before each forward.

    Args:
        extractor: the module of transformers; its layers are taken over.

    Attributes:
        width, hop: samples that a frame hears, and from one frame to the next.
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
        """Frames of so many samples."""
        return (samples - self.width) // self.hop + 1

    def forward(self, speech: Tensor) -> Tensor:
        """(batch, samples) to (batch, channels, frames)."""
        first = self.conv_layers[0]
        if isinstance(first, NormalizedConvolution):
            first.hear(speech, self.lengths)
        frames = self.frames(speech.shape[1])
        at_once = max(1, FRAMES_AT_ONCE[speech.device.type == "cpu"] // len(speech))
        pieces = []
        for begin in range(0, frames, at_once):
            last = min(begin + at_once, frames) - 1
            hidden = speech[:, None, begin * self.hop : last * self.hop + self.width]
            for layer in self.conv_layers:
                hidden = layer(hidden)
            pieces.append(hidden)
        return torch.cat(pieces, dim=2)


class NormalizedConvolution(nn.Module):
    """HuBERT base's first layer: convolution, GroupNorm over time, GELU.

    Each channel is a group there, so its mean and variance follow from those of the
    samples under the kernel: they are put into weights of each utterance.

    Args:
        layer: that layer of transformers; its parameters are taken over.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.conv, self.layer_norm = layer.conv, layer.layer_norm
        self.activation = layer.activation
        if self.layer_norm.num_groups != self.conv.out_channels:
            raise ValueError("GroupNorm over time takes one channel a group")

    def windows(self, speech: Tensor) -> Tensor:
        """(batch, samples) to (batch, frames, samples under the kernel)."""
        return speech.unfold(1, self.conv.kernel_size[0], self.conv.stride[0])

    def hear(self, speech: Tensor, lengths: Tensor) -> None:
        """Make the weights of utterances (batch, samples) of these lengths."""
        kernel = self.conv.weight[:, 0].double()  # (channels, width)
        scale, shift = self.layer_norm.weight.double(), self.layer_norm.bias.double()
        weights, biases = [], []
        for wave, length in zip(speech, lengths.tolist()):
            (heard,) = self.windows(wave[None, :length])
            heard = heard.double()
            centre = heard.mean(0)
            heard = heard - centre
            products = heard.T @ heard / len(heard)  # (width, width)
            variance = ((kernel @ products) * kernel).sum(1).clamp(min=0)
            gain = scale * torch.rsqrt(variance + self.layer_norm.eps)
            weights.append(gain * kernel.T)  # (width, channels)
            biases.append(shift - gain * (kernel @ centre))
        self.weight = torch.stack(weights).to(speech.dtype)
        self.bias = torch.stack(biases).to(speech.dtype)[:, None]

    def forward(self, speech: Tensor) -> Tensor:
        """A piece (batch, 1, samples) to (batch, channels, frames)."""
        hidden = torch.baddbmm(self.bias, self.windows(speech[:, 0]), self.weight)
        return self.activation(hidden).transpose(1, 2)


class HubertEncoder(SpeechEncoder):
    """HuBERT (Hsu et al. 2021), and its kin that read waveforms: wav2vec 2.0, WavLM.

    50 frames a second. With ``trainable_layers: all`` the waveform convolutions stay
    frozen, as in Nue-ASR.

    Args:
        model: hub id or folder, or a module of transformers that is built already.
        normalize: bring each waveform to zero mean and unit variance first;
            ``None`` does what the model's ``preprocessor_config.json`` says (the
            "layer" kinds were trained so, the "group" kinds were not).
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
                f"{preprocessor}: sampling_rate {rate!r}, but speech comes here at "
                f"{SAMPLING_RATE} Hz"
            )
        self.normalize = self._normalize
        if self.normalize is None:
            trained_so = config.feat_extract_norm == "layer"
            self.normalize = settings.get("do_normalize", trained_so)
        # time masks inside the model draw from numpy's global state: leave them off
        hubert.config.apply_spec_augment = False
        hubert.config.layerdrop = 0.0
        return hubert, config

    def untrained_modules(self) -> list[nn.Module]:
        return [self.encoder.feature_extractor]

    def forward(self, speech: Tensor, speech_lengths: Tensor) -> tuple[Tensor, Tensor]:
        mask = length_mask(speech_lengths, speech.shape[1])
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
        lengths = convolutions.frames(speech_lengths)
        states = (
            list(output.hidden_states)
            if self.layer == "weighted"
            else [output.last_hidden_state]
        )
        features = self.mix(states)
        keep = length_mask(lengths, features.shape[1])
        return features * keep[..., None], lengths


class AutoEncoder(SpeechEncoder):
    """Any other speech encoder that ``transformers.AutoModel`` loads.

    The model's own feature extractor makes its input (waveform or log-mel). Since
    nothing is known of how it treats padding, utterances go through it one by one,
    so that its features never depend on the batch.
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
            )
            features.append(self.mix(states)[0])
        lengths = torch.tensor([len(f) for f in features], device=speech.device)
        return nn.utils.rnn.pad_sequence(features, batch_first=True), lengths


ENCODERS = {"whisper": WhisperEncoder, "hubert": HubertEncoder, "auto": AutoEncoder}
