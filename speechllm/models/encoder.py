"""Base class of the speech encoders, whose features do not depend on the batch.

Every encoder maps padded 16 kHz waveforms ``(batch, samples)`` and their lengths to
features ``(batch, frames, dim)`` and frame counts. Padding never reaches a feature:
statistics over time leave it out, convolutions read the same zeros as in a batch of
one, and attention is masked in every layer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speechllm.models.adaptation import (
    add_lora,
    checkpoint_layers,
    linear_layers,
)


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Return the mask of a padded batch.

    Args:
        lengths: (batch,)
        size: the padded length.

    Returns:
        Booleans (batch, size), True within the utterance.
    """
    return torch.arange(size, device=lengths.device)[None] < lengths[:, None]


class SpeechEncoder(nn.Module):
    """Pretrained speech encoder: layer selection and freezing.

    Args:
        model: hub id or folder of the pretrained encoder.
        layer: ``"last"``, the encoder's output; the number of a transformer layer (1
            is the first), whose output is used as it is, without the layer norm that
            follows the last layer; or ``"weighted"`` for a learnt weighted sum of all
            layers (Yang et al. 2021, SUPERB, section 3). Encoders of release 0.2
            applied HuBERT's norm after any layer: checkpoints without
            ``layer_output`` still do.
        trainable_layers: number of top transformer layers to train; 0 freezes the
            encoder, ``"all"`` trains everything but HuBERT's waveform convolutions
            (Nue-ASR, section 3).
        random_init: build the architecture from its config, without its weights.
        specaug: options of ``espnet2.asr.specaug.specaug.SpecAug``, applied in
            training; only for encoders with a log-mel input.
        dropout: dropout in the trained layers; only for Whisper, whose config has
            none.
        lora: options of ``peft.LoraConfig``: adapters on all linear layers of the
            transformer, in a frozen encoder (``trainable_layers: 0``).
        gradient_checkpointing: recompute the transformer's activations in the
            backward pass.

    Raises:
        ValueError: an invalid option, or one that this encoder does not support.
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
        lora: dict | None = None,
        gradient_checkpointing: bool = False,
    ):
        super().__init__()
        self.layer = layer
        self.trainable_layers = trainable_layers
        self.lora = lora
        self.encoder, self.config = self.load(model, random_init)
        self.specaug = None
        if specaug is not None:
            if not self.has_log_mel_input:
                raise ValueError(
                    "encoder_conf: specaug is for encoders with a log-mel input; this "
                    "encoder's input is the waveform"
                )
            from espnet2.asr.specaug.specaug import SpecAug

            self.specaug = SpecAug(**specaug)
        self.drop_unused_layers()
        self.layer_weights = None
        if layer == "weighted":
            self.layer_weights = nn.Parameter(torch.zeros(len(self.layers) + 1))
        self.freeze()
        if lora is not None:
            self.add_lora(lora)
        if dropout:
            self.set_dropout(dropout)
        if gradient_checkpointing:
            checkpoint_layers(self.layers)

    @property
    def has_log_mel_input(self) -> bool:
        """True if the input of the pretrained model is a log-mel spectrogram."""
        return False

    @property
    def output_size(self) -> int:
        """Dimension of a feature."""
        return self.config.hidden_size

    @property
    def layers(self) -> nn.ModuleList:
        """The transformer layers, first layer first."""
        return self.encoder.layers

    def load(self, model: str, random_init: bool) -> tuple[nn.Module, object]:
        """Return the transformers module and its config."""
        raise NotImplementedError

    def drop_unused_layers(self) -> None:
        """Delete the layers above the selected one.

        Raises:
            ValueError: the model has no such layer.
        """
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
        """Set the dropout of the trained layers.

        Raises:
            ValueError: the encoder takes its dropout from its own config.
        """
        raise ValueError(
            "option dropout is for Whisper; this encoder's config has its own"
        )

    def always_frozen(self) -> list[nn.Module]:
        """Return the modules that are frozen with ``trainable_layers: all``, too.

        They include all that the features do not depend on: a trained parameter
        without a gradient stops distributed training.
        """
        return []

    def use_old_layer_output(self) -> None:
        """Compute an integer ``layer`` as release 0.2 did, for its checkpoints."""

    def freeze(self) -> None:
        """Freeze everything that ``trainable_layers`` does not select.

        Raises:
            ValueError: ``trainable_layers`` is neither ``all`` nor a number of layers.
        """
        count = self.trainable_layers
        # transformers' own time masks are off
        unused = getattr(self.encoder, "masked_spec_embed", None)
        if unused is not None:
            unused.requires_grad_(False)
        if count == "all":
            for module in self.always_frozen():
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
            if isinstance(final, nn.LayerNorm) and not isinstance(self.layer, int):
                final.requires_grad_(True)

    def add_lora(self, options: dict) -> None:
        """Add adapters to the linear layers of the transformer.

        Raises:
            ValueError: layers are trained as a whole, too.
        """
        if self.trainable_layers != 0:
            raise ValueError(
                f"encoder_conf: lora and trainable_layers {self.trainable_layers!r} "
                "exclude each other; set trainable_layers to 0"
            )
        add_lora(self.layers, options, self.lora_layers())

    def lora_layers(self) -> list[str]:
        """Return the names of the layers that LoRA adapts, within ``layers``."""
        return linear_layers(self.layers)

    def train(self, mode: bool = True) -> SpeechEncoder:
        """Set the mode; frozen modules stay in evaluation mode (no dropout)."""
        super().train(mode)
        if mode:
            for module in self.encoder.modules():
                parameters = list(module.parameters())
                if parameters and not any(p.requires_grad for p in parameters):
                    module.eval()
            if self.trainable_layers == 0 and self.lora is None:
                self.encoder.eval()
        return self

    def mix(self, states: list[Tensor]) -> Tensor:
        """Return the selected layer or the weighted sum of all layers.

        Args:
            states: hidden states (batch, frames, dim), input embeddings first.

        Returns:
            (batch, frames, dim)
        """
        if self.layer_weights is None:
            return states[-1]
        weights = self.layer_weights.softmax(0)  # (layers + 1,)
        return sum(w * s for w, s in zip(weights, states, strict=True))

    def forward(self, speech: Tensor, speech_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode waveforms.

        Args:
            speech: (batch, samples), 16 kHz, padded at the end.
            speech_lengths: (batch,), in samples.

        Returns:
            features (batch, frames, dim), zero in the padding, and frames (batch,).
        """
        raise NotImplementedError
