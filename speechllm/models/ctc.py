"""CTC branch: a linear layer from encoder features to labels, and the CTC loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from speechllm.text.ctc_labels import BLANK

#: Options of ESPnet's CTC that have one value here; older configurations name them.
ESPNET_OPTIONS = {
    "dropout_rate": 0.0,
    "ctc_type": "builtin",
    "reduce": True,
    "ignore_nan_grad": None,
    "brctc_risk_strategy": "exp",
    "brctc_group_strategy": "end",
    "brctc_risk_factor": 0.0,
}


class CTC(nn.Module):
    """CTC branch whose parameters have the names of ESPnet's (``ctc_lo``).

    Args:
        num_labels: number of labels, the blank included.
        input_size: dimension of a feature.
        zero_infinity: an utterance with fewer frames than its labels need has a loss
            and gradients of 0 instead of infinity.
    """

    def __init__(self, num_labels: int, input_size: int, zero_infinity: bool = True):
        super().__init__()
        self.ctc_lo = nn.Linear(input_size, num_labels)
        self.zero_infinity = zero_infinity

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (batch, frames, labels) of features (batch, frames, dim)."""
        return self.ctc_lo(features)

    def loss(
        self, logits: Tensor, frames: Tensor, labels: Tensor, lengths: Tensor
    ) -> Tensor:
        """Return the CTC loss in nats, summed over the batch.

        Args:
            logits: (batch, frames, labels)
            frames: (batch,)
            labels: (batch, labels), padded.
            lengths: (batch,) of the labels.
        """
        targets = torch.cat([row[:n] for row, n in zip(labels, lengths)])
        return nn.functional.ctc_loss(
            logits.transpose(0, 1).float().log_softmax(2),
            targets,  # (sum of lengths,)
            frames,
            lengths,
            blank=BLANK,
            reduction="sum",
            zero_infinity=self.zero_infinity,
        )


def ctc_options(conf: Mapping | None) -> dict:
    """Return the options of :class:`CTC` in the group ``ctc_conf`` of a configuration.

    Raises:
        ValueError: an unknown option, or one of ESPnet's with a value other than its
            default.
    """
    options = dict(conf or {})
    for name, value in ESPNET_OPTIONS.items():
        found = options.pop(name, value)
        if found != value:
            raise ValueError(f"ctc_conf: {name} {found!r}: only {value!r}")
    if unknown := sorted(set(options) - {"zero_infinity"}):
        raise ValueError(f"ctc_conf: unknown option {unknown[0]!r}; zero_infinity")
    return options
