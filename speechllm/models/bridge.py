"""Bridges from encoder features to LLM input embeddings.

A bridge takes features ``(batch, frames, input_size)``, their lengths ``(batch,)``
and, with ``needs_ctc``, the CTC logits ``(batch, frames, vocabulary)`` of the same
frames. It returns embeddings ``(batch, positions, output_size)`` and their lengths
``(batch,)``. Padding never reaches an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechllm.models.ctc_alignment import forced_align, frames_needed
from speechllm.models.encoder import length_mask
from speechllm.models.qformer import QFormerBridge
from speechllm.text.ctc_labels import BLANK, label_runs, label_text
from speechllm.text.t5_tokenizer import tokens_with_offsets


class StackBridge(nn.Module):
    """Frame stacking and two linear layers with ReLU (SLAM-ASR).

    Ma et al. 2024, "An Embarrassingly Simple Approach for LLM with Strong ASR
    Capacity", section 2.2: five frames are concatenated, which leaves 10 positions a
    second after HuBERT or Whisper, and projected through 2048 dimensions. The last
    position of an utterance is padded with zeros.
    """

    needs_ctc = False

    def __init__(
        self,
        input_size: int,
        output_size: int,
        factor: int = 5,
        hidden_size: int = 2048,
    ):
        super().__init__()
        if factor < 1:
            raise ValueError(f"bridge factor {factor}: at least 1 frame")
        self.factor = factor
        self.projection = nn.Sequential(
            nn.Linear(factor * input_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, output_size),
        )

    def forward(
        self, features: Tensor, lengths: Tensor, ctc_logits: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        batch, frames, size = features.shape
        hidden = features * length_mask(lengths, frames)[:, :, None]
        hidden = F.pad(hidden, (0, 0, 0, -frames % self.factor))
        hidden = hidden.reshape(batch, -1, self.factor * size)
        # (batch, positions, factor * size)
        positions = torch.div(
            lengths + self.factor - 1, self.factor, rounding_mode="floor"
        )
        return self.projection(hidden), positions


class ConvolutionBridge(nn.Module):
    """Strided convolutions with GELU, and a projection (Nue-ASR, section 3).

    The defaults leave a quarter of the encoder's frames: 12.5 positions a second after
    HuBERT or Whisper. The convolutions do not pad.
    """

    needs_ctc = False

    def __init__(
        self,
        input_size: int,
        output_size: int,
        kernel_sizes: Sequence[int] = (4, 4),
        strides: Sequence[int] = (2, 2),
    ):
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv1d(input_size, input_size, kernel, stride)
            for kernel, stride in zip(kernel_sizes, strides, strict=True)
        )
        self.projection = nn.Linear(input_size, output_size)

    def forward(
        self, features: Tensor, lengths: Tensor, ctc_logits: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        hidden = features.transpose(1, 2)  # (batch, input_size, frames)
        for convolution in self.convolutions:
            kernel, stride = convolution.kernel_size[0], convolution.stride[0]
            # an utterance shorter than the kernel gives one position, padded with
            # zeros, also in a batch with longer ones
            hidden = hidden * length_mask(lengths, hidden.shape[2])[:, None]
            hidden = F.pad(hidden, (0, max(0, kernel - hidden.shape[2])))
            hidden = F.gelu(convolution(hidden))
            lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
            lengths = lengths.clamp(min=1)
        return self.projection(hidden.transpose(1, 2)), lengths


class CTCCompressionBridge(nn.Module):
    """CTC-based compression of the features, and a projection.

    ``remove`` drops the frames whose best label is blank; ``average`` averages each
    run of frames with the same best label, blanks included (Gaido et al. 2021,
    "CTC-based Compression for Direct Speech Translation"; both are compared in
    Nue-ASR). About as many positions as CTC labels are left (some 15 characters a
    second), or twice that with ``average``.
    """

    needs_ctc = True

    def __init__(self, input_size: int, output_size: int, mode: str = "average"):
        super().__init__()
        if mode not in ("average", "remove"):
            raise ValueError(f"bridge mode {mode!r}: average or remove")
        self.mode = mode
        self.projection = nn.Linear(input_size, output_size)

    def forward(
        self, features: Tensor, lengths: Tensor, ctc_logits: Tensor
    ) -> tuple[Tensor, Tensor]:
        best = ctc_logits.argmax(2).tolist()  # (batch, frames)
        compressed = []
        for frames, labels, length in zip(features, best, lengths.tolist()):
            runs = label_runs(labels[:length])
            if self.mode == "remove":
                spans = [
                    (t, t + 1)
                    for label, begin, end in runs
                    if label != BLANK
                    for t in range(begin, end)
                ]
            else:
                spans = [(begin, end) for _, begin, end in runs]
            compressed.append(mean_over_spans(frames, spans or [(0, length)]))
        sizes = torch.tensor([len(c) for c in compressed], device=features.device)
        hidden = nn.utils.rnn.pad_sequence(compressed, batch_first=True)
        # (batch, positions, input_size)
        return self.projection(hidden), sizes


class TranscriptBridge(nn.Module):
    """A transcript in LLM tokens, plus projected features of each token.

    The best path of the CTC branch, or a transcript of the first pass aligned with it,
    is converted to text and tokenised for the LLM. An
    embedding is that of the token plus a projection of the mean feature over the
    token's frames. The projection is initialised to zero: training starts from the
    CTC transcript, which a pretrained LLM can read, instead of from random
    embeddings, which the LLM learns to ignore on corpora of minutes. This bridge is
    original to the project. Two to five positions a second are left.

    Args:
        noise: standard deviation of Gaussian noise on the CTC logits in training, so
            that the transcripts have errors as on unseen speech.
    """

    needs_ctc = True

    def __init__(self, input_size: int, output_size: int, noise: float = 0.0):
        super().__init__()
        self.noise = noise
        self.normalization = nn.LayerNorm(input_size)
        self.projection = nn.Linear(input_size, output_size, bias=False)
        nn.init.zeros_(self.projection.weight)
        self._llm: Callable | None = None

    def connect(
        self, token_list: Sequence[str], tokenizer, embed: Callable[[Tensor], Tensor]
    ) -> None:
        """Set the CTC labels, the LLM's tokenizer and its embedding function."""
        self._llm = (token_list, tokenizer, embed)  # a tuple: not a submodule

    def forward(
        self,
        features: Tensor,
        lengths: Tensor,
        ctc_logits: Tensor,
        transcripts: Sequence[Sequence[int] | None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Embed the transcripts.

        Args:
            transcripts: CTC labels of each utterance that are read in place of the best
                path; None for one that has none. Labels that need more frames than
                there are are not read.
        """
        token_list, tokenizer, embed = self._llm
        if self.training and self.noise:
            ctc_logits = ctc_logits + self.noise * torch.randn_like(ctc_logits)
        best = ctc_logits.argmax(2).tolist()  # (batch, frames)
        for row, labels in enumerate(transcripts or ()):
            length = int(lengths[row])
            if labels and frames_needed(labels) <= length:
                log_probs = ctc_logits[row, :length].float().log_softmax(1)
                best[row] = forced_align(log_probs, labels)[0].tolist()
        ids, means = [], []
        for frames, labels, length in zip(features, best, lengths.tolist()):
            runs = [r for r in label_runs(labels[:length]) if r[0] != BLANK]
            pieces = [(label_text(token_list[k]), begin, end) for k, begin, end in runs]
            tokens, spans = align_tokens(pieces, tokenizer, length)
            ids.append(torch.tensor(tokens, device=features.device))
            means.append(mean_over_spans(frames, spans))
        sizes = torch.tensor([len(t) for t in ids], device=features.device)
        tokens = nn.utils.rnn.pad_sequence(ids, batch_first=True)  # (batch, positions)
        acoustic = nn.utils.rnn.pad_sequence(means, batch_first=True)
        # (batch, positions, input_size)
        return embed(tokens) + self.projection(self.normalization(acoustic)), sizes


def mean_over_spans(frames: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """Average frames (frames, dim) over each span [begin, end): (spans, dim).

    Only the frames of a span are read, in float32. Spans may overlap.
    """
    device = frames.device
    times = [t for begin, end in spans for t in range(begin, end)]
    starts = [0, *accumulate(end - begin for begin, end in spans)][:-1]
    means = F.embedding_bag(
        torch.tensor(times, device=device),
        frames.float(),
        torch.tensor(starts, device=device),
        mode="mean",
    )
    return means.to(frames.dtype)


def align_tokens(
    pieces: Sequence[tuple[str, int, int]], tokenizer, length: int
) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokenise a CTC transcript for the LLM and locate each token in the audio.

    Args:
        pieces: (text, first frame, end frame) of each CTC label.
        tokenizer: of transformers; a slow one must be sentencepiece's.
        length: number of frames; the span of an empty transcript's token.

    Returns:
        Token ids and their spans [begin, end) in frames; at least one of each.
    """
    text, owners = " ", [0]  # owners: index of the piece of each character
    for index, (piece, _, _) in enumerate(pieces):
        for character in piece:
            if character == " " and text.endswith(" "):
                continue
            text += character
            owners.append(index)
    text = text.rstrip(" ") or " "
    tokens, spans = [], []
    for token, (begin, end) in zip(*tokens_with_offsets(tokenizer, text)):
        if pieces:
            first, last = owners[begin], owners[max(begin, end - 1)]
            span = (pieces[first][1], max(pieces[last][2], pieces[first][1] + 1))
        else:
            span = (0, length)
        tokens.append(token)
        spans.append(span)
    return tokens, spans


#: Values of the option ``bridge``.
BRIDGES = {
    "stack": StackBridge,
    "convolution": ConvolutionBridge,
    "ctc_compression": CTCCompressionBridge,
    "qformer": QFormerBridge,
    "transcript": TranscriptBridge,
}
