"""A window-level Q-Former: a few learnt queries read each stretch of the speech."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class QFormerBridge(nn.Module):
    """Queries that attend to one window of frames at a time, and a projection.

    Window and queries are those of Tang et al. 2024 ("SALMONN: Towards Generic Hearing
    Abilities for Large Language Models", section 3.1): windows of 17 frames, a third
    of a second after Whisper or HuBERT, and one query for each, so that 2.9 positions
    a second are left. The transformer that reads a window is ours: small, pre-norm.

    Args:
        window: frames that the queries see at once; the last window of an utterance
            is as long as what is left.
        queries: positions that a window leaves.
        size, layers, heads: of the transformer.
        dropout: in its layers.
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
            raise ValueError(f"qformer size {size} is no multiple of heads {heads}")
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
        places = torch.arange(count * self.window, device=features.device)
        beyond = (places >= lengths[:, None]).reshape(batch * count, self.window)
        # windows behind an utterance are dropped, but attention to nothing is no number
        beyond = beyond & ~beyond.all(1, keepdim=True)
        hidden = self.queries.expand(batch * count, -1, -1)
        for layer in self.layers:
            hidden = layer(hidden, memory, memory_key_padding_mask=beyond)
        hidden = self.projection(self.normalization(hidden))
        hidden = hidden.reshape(batch, count * len(self.queries), -1)
        windows = torch.div(
            lengths + self.window - 1, self.window, rounding_mode="floor"
        )
        return hidden, windows * len(self.queries)
