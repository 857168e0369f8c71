"""Simulation of a training step on tensors without storage, to find its peak memory.

The model, its autocast and its gradient checkpointing are those of the training. The
whole batch is simulated, so that tensors that exist once for any batch, such as the
bfloat16 copies of float32 weights, are counted once.

Peak memory of whole trainings with small models on a CPU, in MiB (resident memory of
the process; ``test/training/test_resource_estimate.py``, batches of 4 × 10 s):

====================================== ======== ========
training                               estimate measured
====================================== ======== ========
lora                                        374      382
lora, gradient checkpointing                207      215
HuBERT, GPT-NeoX full, checkpointing        699      734
HuBERT, GPT-NeoX frozen                     504      535
Whisper, Q-Former, Gemma 2 lora             453      501
====================================== ======== ========
"""

from __future__ import annotations

import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from speechllm.models.encoder import SpeechEncoder
from speechllm.models.speech_llm import SpeechLLM
from speechllm.models.whisper_encoder import spectrogram_constants


@dataclass(frozen=True)
class PhasePeaks:
    """Peak bytes of activations in the phases of a training step.

    Attributes:
        encoding: encoder and bridge, forward.
        forward: LLM and loss, forward.
        backward: backward pass of everything.
    """

    encoding: float
    forward: float
    backward: float

    @property
    def peak(self) -> float:
        """Largest of the three."""
        return max(self.encoding, self.forward, self.backward)

    def extrapolate(self, other: PhasePeaks, factor: float) -> PhasePeaks:
        """Return ``self + factor * (other - self)`` in each phase."""
        names = ("encoding", "forward", "backward")
        pairs = [(getattr(self, name), getattr(other, name)) for name in names]
        return PhasePeaks(*(a + factor * (b - a) for a, b in pairs))


class LiveBytes(TorchDispatchMode):
    """Count the bytes of the storages that operators allocate and that are in use.

    Attributes:
        now, peak: bytes in use, and their maximum since :meth:`restart`.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self.add(leaf.untyped_storage())
        return output

    def ignore(self, tensors) -> None:
        """Do not count the storages of these tensors."""
        self.known.update(t.untyped_storage()._cdata for t in tensors)

    def add(self, storage) -> None:
        """Count a storage until it is freed."""
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.remove, key, size)

    def remove(self, key: int, size: int) -> None:
        """Stop counting a freed storage."""
        self.known.discard(key)
        self.now -= size

    def restart(self) -> float:
        """Return the peak since the last call and start a new one."""
        peak, self.peak = self.peak, self.now
        return float(peak)


class PoolingBridge(nn.Module):
    """Stand-in for a bridge that reads CTC output: a given number of positions.

    Args:
        positions: embeddings of each utterance.
    """

    needs_ctc = False

    def __init__(self, input_size: int, output_size: int, positions: int):
        super().__init__()
        self.projection = nn.Linear(input_size, output_size)
        self.positions = positions

    def forward(
        self, features: Tensor, lengths: Tensor, ctc_logits: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        pooled = F.adaptive_avg_pool1d(features.transpose(1, 2), self.positions)
        counts = torch.tensor([self.positions] * len(features))
        return self.projection(pooled.transpose(1, 2)), counts


def simulate_step(
    model: SpeechLLM, batch: int, samples: int, prompt: int, answer: int
) -> PhasePeaks:
    """Return the peak bytes of activations of one training step.

    Parameters and their gradients are not counted; gradients exist before the step, as
    with ``accum_grad``.

    Args:
        model: its parameters may be without storage; they are replaced.
        batch: utterances.
        samples: length of each, 16 kHz.
        prompt: tokens around the speech.
        answer: tokens of the target.
    """
    live = LiveBytes()
    # lengths are read with tolist(), for which a fake tensor must know its values
    constants = mock.patch("torch._subclasses.fake_tensor.CONSTANT_NUMEL_LIMIT", 4096)
    with ExitStack() as stack:
        stack.callback(spectrogram_constants.cache_clear)  # which may be fake ones
        stack.enter_context(constants)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        give_storage(model)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
                live.ignore([parameter.grad])
        live.ignore([*model.parameters(), *model.buffers()])
        speech = torch.zeros(batch, samples)
        lengths = torch.tensor([samples] * batch)
        enabled = model.autocast_dtype != torch.float32
        with live:
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                encoded = model.encode(speech, lengths)
                prompts = model.prompt(*encoded, [[0] * prompt] * batch, [[]] * batch)
                del encoded
                encoding = live.restart()
                loss, best = model.llm.answer_loss(prompts, [[0] * answer] * batch)
                del prompts, best
            forward = live.restart()
            loss.backward()
            return PhasePeaks(encoding, forward, live.restart())


def simulate_frame_rate(encoder: SpeechEncoder) -> float:
    """Return an encoder's frames per second; only shapes are computed.

    Args:
        encoder: its parameters may be without storage; they are replaced.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        give_storage(encoder)
        return encoder.num_frames_per_second


def give_storage(model: nn.Module) -> None:
    """Replace parameters and buffers by tensors of the current (fake) mode."""
    replaced: dict[int, tuple[Tensor, Tensor]] = {}  # tied weights stay tied
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, old in held.items():
                if old is None:
                    continue
                if id(old) not in replaced:
                    new = torch.empty(old.shape, dtype=old.dtype)
                    if isinstance(old, nn.Parameter):
                        new = nn.Parameter(new, old.requires_grad)
                    replaced[id(old)] = old, new
                held[name] = replaced[id(old)][1]
