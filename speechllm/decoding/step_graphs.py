"""Decoding steps of the LLM as CUDA graphs.

A step with one token for each row consists of hundreds of kernels whose launches take
several times as long as the kernels themselves. A CUDA graph launches all at once, with
fixed shapes and addresses: the number of rows is rounded up to a power of two, and
attention spans the whole buffers of the KV cache, with a mask for unused positions.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from speechllm.decoding.kv_cache import BeamKVCache
from speechllm.models.llm import LanguageModel
from speechllm.models.quantization import is_4bit

SPARE = 128  # positions that a full buffer grows by; new buffers need new graphs
logger = logging.getLogger(__name__)


def supports_step_graphs(llm: LanguageModel) -> bool:
    """Return whether the steps of an LLM can be CUDA graphs.

    Its weights are on an NVIDIA GPU, whole or in bitsandbytes' 4 bits, and PyTorch
    computes its attention, which is to all positions.
    """
    config, weights = llm.config, list(llm.causal_lm.parameters())
    layers = getattr(config, "layer_types", None)
    if layers is None and getattr(config, "sliding_window", None):
        return False
    return (
        all(w.is_cuda for w in weights)
        and all(w.dtype.is_floating_point or is_4bit(w) for w in weights)
        and torch.version.hip is None
        and set(layers or ()) <= {"full_attention"}
        and config._attn_implementation in ("sdpa", "eager")
    )


class StepGraphs:
    """The graphs of a search, one for each number of rows.

    Args:
        llm: in evaluation mode.
    """

    def __init__(self, llm: LanguageModel):
        self.llm = llm
        self.steps: dict[int, Step] = {}  # by the number of rows
        self.replacements = 0  # of the buffers of the cache, when they were recorded

    @staticmethod
    def new_cache() -> BeamKVCache:
        """Return an empty cache whose buffers are seldom replaced."""
        return BeamKVCache(SPARE)

    def log_probs(
        self, tokens: Sequence[int], lengths: Sequence[int], cache: BeamKVCache
    ) -> Tensor:
        """Append a token to each row of the cache; return what follows.

        Args:
            tokens: one for each row.
            lengths: positions of each row, including the new one.
            cache: has these rows.

        Returns:
            (rows, vocabulary) log probabilities of the next token, in memory that the
            next call overwrites.
        """
        rows = 1 << (len(tokens) - 1).bit_length()
        cache.reserve(rows)
        # not their address, which later buffers may have again
        if self.replacements != cache.replacements:
            self.steps.clear()  # graphs of buffers that no longer exist
            self.replacements = cache.replacements
        if rows not in self.steps:
            self.steps[rows] = Step(self.llm, cache, rows)
        log_probs = self.steps[rows](tokens, lengths)
        cache.advance(len(tokens))
        return log_probs[: len(tokens)]


class Step:
    """A decoding step with fixed shapes; on a GPU a CUDA graph.

    Args:
        llm: in evaluation mode.
        cache: has room for the rows and for one more position.
        rows: number of rows.
    """

    def __init__(self, llm: LanguageModel, cache: BeamKVCache, rows: int):
        self.llm, self.cache, self.rows = llm, cache, rows
        keys = cache.layers[0].keys
        self.device, self.precision = keys.device, keys.dtype
        # token and length of each row, and the place of the new position
        self.inputs = torch.zeros(2 * rows + 1, dtype=torch.long, device=self.device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.output = torch.empty(0)

    def __call__(self, tokens: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """Return the log probabilities (rows, vocabulary) of the next token."""
        unused = self.rows - len(tokens)
        values = [*tokens, *[0] * unused, *lengths, *[1] * unused]
        self.inputs.copy_(torch.tensor([*values, self.cache.layers[0].end]))
        if self.device.type == "cuda" and self.llm.step_graphs:
            if self.graph is None:
                self.capture()
            if self.graph is not None:
                self.graph.replay()
                return self.output
        return self.compute()

    def compute(self) -> Tensor:
        """Compute the step from ``inputs``."""
        tokens, lengths, end = self.inputs.split([self.rows, self.rows, 1])
        places = torch.arange(self.cache.capacity, device=self.device)
        # (rows, positions): the last positions of a row, up to the new one
        used = (places <= end) & (places > end - lengths[:, None])
        least = torch.finfo(self.precision).min
        mask = torch.zeros(used.shape, dtype=self.precision, device=self.device)
        mask = mask.masked_fill(~used, least)
        with self.cache.fixed(end):
            hidden = self.llm.body(  # (rows, 1, hidden)
                self.llm.embed(tokens[:, None]),
                mask[:, None, None],
                self.cache,
                lengths[:, None] - 1,
            )
        return self.llm.head(hidden[:, -1]).log_softmax(1)

    def capture(self) -> None:
        """Record the step as a graph, or disable graphs if the LLM prevents it."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            self.compute()  # libraries allocate their workspace at first use
            try:
                # other threads, as of a server, may use the GPU meanwhile
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    self.output = self.compute()
                finally:
                    graph.capture_end()
            except RuntimeError as error:
                logger.warning("decoding without CUDA graphs: %s", error)
                self.llm.step_graphs = False
        torch.cuda.current_stream(self.device).wait_stream(stream)
        if self.llm.step_graphs:
            self.graph = graph
