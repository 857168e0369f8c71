"""Whisper's encoder without padding to 30 seconds."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechllm.models.encoder import SpeechEncoder, length_mask
from speechllm.pretrained.model_folder import load_pretrained, read_model_config


@functools.lru_cache
def spectrogram_constants(mel_bins: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mel filters (bins, mel bins) and window (samples,), in float32.

    They are not buffers of the encoder, since it may be cast, and are shared by all
    threads.
    """
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=mel_bins)
    with torch.inference_mode(False):
        filters = torch.as_tensor(extractor.mel_filters, dtype=torch.float32)
        return filters.to(device), torch.hann_window(extractor.n_fft, device=device)


class WhisperEncoder(SpeechEncoder):
    """Whisper's encoder (Radford et al. 2022), limited to the utterance's length.

    Whisper pads every utterance to 30 s. This encoder computes the log-mel spectrogram
    of the utterance alone and 50 frames a second from it, with the first of the
    pretrained positions. Utterances over 30 s exceed the positions.
    """

    num_frames_per_second = 50.0

    def set_dropout(self, dropout: float) -> None:
        for layer in self.layers:
            if any(p.requires_grad for p in layer.parameters()):
                layer.dropout = layer.activation_dropout = dropout

    def load(self, model: str, random_init: bool) -> tuple[nn.Module, object]:
        from transformers import WhisperFeatureExtractor, WhisperModel

        from speechllm.pretrained.resolve import resolve_model

        path = resolve_model(model)
        config = read_model_config(path)
        whisper = (
            WhisperModel(config)
            if random_init
            else load_pretrained(WhisperModel, path, "decoder.", dtype=torch.float32)
        )
        extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
        self.hop, self.window_size = extractor.hop_length, extractor.n_fft
        return whisper.encoder, config

    @property
    def has_log_mel_input(self) -> bool:
        return True

    def always_frozen(self) -> list[nn.Module]:
        frozen = [self.encoder.get_submodule("embed_positions")]
        if isinstance(self.layer, int):
            frozen.append(self.encoder.get_submodule("layer_norm"))
        return frozen

    @property
    def max_samples(self) -> int:
        """Length of the longest utterance that the positions cover, in samples."""
        return self.config.max_source_positions * 2 * self.hop

    def log_mel(self, waveform: Tensor) -> Tensor:
        """Compute Whisper's log-mel spectrogram of one utterance.

        Same as ``transformers.WhisperFeatureExtractor`` without padding.

        Args:
            waveform: (samples,), 16 kHz.

        Returns:
            (mel bins, frames), 100 frames a second.
        """
        if len(waveform) <= self.window_size // 2:  # minimum for reflection padding
            waveform = F.pad(waveform, (0, self.window_size // 2 + 1 - len(waveform)))
        filters, window = spectrogram_constants(
            self.config.num_mel_bins, waveform.device
        )
        spectrum = torch.stft(
            waveform.float(),
            self.window_size,
            self.hop,
            window=window,
            return_complex=True,
        )[:, :-1]
        power = spectrum.abs() ** 2  # (bins, frames)
        log = (filters.T @ power).clamp(min=1e-10).log10()  # (mel bins, frames)
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
        # (batch, frames, dim)
        hidden = hidden + self.encoder.embed_positions.weight[: hidden.shape[1]]
        mask = length_mask(lengths, hidden.shape[1])  # (batch, frames)
        attention = torch.zeros_like(mask, dtype=hidden.dtype)
        attention = attention.masked_fill(~mask, torch.finfo(hidden.dtype).min)
        attention = attention[:, None, None, :].expand(-1, 1, hidden.shape[1], -1)
        # (batch, 1, frames, frames)
        states = [hidden]
        for layer in self.layers:
            output = layer(states[-1], attention)
            states.append(output[0] if isinstance(output, tuple) else output)
        if not isinstance(self.layer, int):
            states[-1] = self.encoder.layer_norm(states[-1])
        return self.mix(states) * mask[..., None], lengths
