"""Window-level Q-Former bridge."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class QFormerBridge(nn.Module):
    """Window-level Q-Former: learnt queries attend to one window at a time.

    Window and queries are those of Tang et al. 2024 ("SALMONN: Towards Generic Hearing
    Abilities for Large Language Models", section 3.1): windows of 17 frames, a third
    of a second after Whisper or HuBERT, and one query each, which leaves 2.9 positions
    a second. The transformer is a small pre-norm one of the project's own.

    Args:
        window: frames per window; the last window of an utterance may be shorter.
        queries: queries, and so positions, per window.
        size, layers, heads: dimensions of the transformer.
        dropout: dropout in its layers.
    """

    needs_ctc = False

    def __init__(
        self,
        input_size: int,
        output_size: int,
        window: int = 17,
        queries: int = 1,
        size: int = 512,
        layers: int = 2,
        heads: int = 8,
        dropout: float = 0.0,
    ):
        super().__init__()
        if min(window, queries, layers) < 1:
            raise ValueError("window, queries and layers of a qformer are at least 1")
        if size % heads:
            raise ValueError(f"qformer size {size} is not a multiple of heads {heads}")
        self.window = window
        self.queries = nn.Parameter(torch.randn(queries, size) * size**-0.5)
        self.input = nn.Sequential(
            nn.LayerNorm(input_size), nn.Linear(input_size, size)
        )
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                size,
                heads,
                4 * size,
                dropout,
                "gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(layers)
        )
        self.normalization = nn.LayerNorm(size)
        self.projection = nn.Linear(size, output_size)

    def forward(
        self, features: Tensor, lengths: Tensor, ctc_logits: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        batch, frames, _ = features.shape
        count = -(-frames // self.window)  # windows of the longest utterance
        memory = F.pad(self.input(features), (0, 0, 0, count * self.window - frames))
        memory = memory.reshape(batch * count, self.window, -1)
        # (batch * count, window, size)
        times = torch.arange(count * self.window, device=features.device)
        padding = (times >= lengths[:, None]).reshape(batch * count, self.window)
        # windows of padding alone are cut off below; fully masked they would give NaN
        padding = padding & ~padding.all(1, keepdim=True)
        hidden = self.queries.expand(batch * count, -1, -1)
        for layer in self.layers:  # (batch * count, queries, size)
            hidden = layer(hidden, memory, memory_key_padding_mask=padding)
        hidden = self.projection(self.normalization(hidden))
        hidden = hidden.reshape(batch, count * len(self.queries), -1)
        windows = torch.div(
            lengths + self.window - 1, self.window, rounding_mode="floor"
        )
        return hidden, windows * len(self.queries)
