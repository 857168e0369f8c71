"""What all systems share: a model of transformers that is loaded when it is needed."""

from __future__ import annotations

import json
from typing import ClassVar

from speechllm.utils.errors import UserError

MAX_NEW_TOKENS = 256  # of a translation or a Seamless transcript; the same in any batch


class PretrainedSystem:
    """A system that answers requests: task, source language, target language.

    A subclass names its architecture, loads it and answers. ``hears`` says what it is
    given: speech, or the transcript that another system wrote.

    Args:
        model: hub id or folder.
        beam_size: hypotheses kept; 1 is greedy.
        device: ``cpu``, ``cuda``, …
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto``. In float32 an answer
            does not depend on its batch.

    Raises:
        UserError: no such model or device, or a model of another architecture.
    """

    hears: ClassVar[bool] = True
    architecture: ClassVar[str]  # class of transformers
    model_types: ClassVar[tuple[str, ...]]  # in its config.json

    def __init__(
        self,
        model: str,
        beam_size: int = 1,
        device: str = "cpu",
        dtype: str = "float32",
    ):
        from transformers import AutoConfig

        from speechllm.inference.loading import check_device
        from speechllm.models.llm import resolve_dtype
        from speechllm.pretrained.resolve import resolve_model

        check_device(device)
        if beam_size < 1:
            raise UserError(f"beam_size {beam_size}: at least 1")
        self.name, self.folder = str(model), resolve_model(model)
        self.beam_size, self.device, self.dtype = beam_size, device, dtype
        self.torch_dtype = resolve_dtype(dtype)
        content = json.loads((self.folder / "config.json").read_text("utf-8"))
        if content.get("model_type") not in self.model_types:
            raise UserError(
                f"{model} is of kind {content.get('model_type')!r}, but "
                f"{type(self).__name__.lower()} takes {' or '.join(self.model_types)}"
            )
        self.config = AutoConfig.from_pretrained(self.folder)
        self.model = None

    def check(self, task: str, source: str, target: str) -> None:
        """Refuse a request that the system cannot answer (UserError)."""
        raise NotImplementedError

    def answer(self, inputs: list, task: str, source: str, target: str) -> list[dict]:
        """Answer one batch.

        Args:
            inputs: float arrays (samples,) at 16 kHz, or transcripts.

        Returns:
            ``{"text", "tokens"}`` of each; of ``asr_st`` with its ``"transcript"``.
        """
        raise NotImplementedError

    def settings(self) -> dict:
        """All that an answer depends on, besides its input."""
        from speechllm.pretrained.model_folder import model_fingerprint

        return {
            "system": type(self).__name__,
            "model": model_fingerprint(self.folder),
            "beam_size": self.beam_size,
            "dtype": self.dtype,
        }

    def load(self) -> None:
        """Load the weights onto the device.

        Raises:
            UserError: the device has not the memory; the message says what fits.
        """
        import transformers

        architecture = getattr(transformers, self.architecture)
        self.check_memory(architecture)
        self.model = architecture.from_pretrained(
            self.folder, dtype=self.torch_dtype
        ).to(self.device)
        self.model.eval()

    def check_memory(self, architecture) -> None:
        """Compare the weights' size with what is free on the GPU."""
        import torch

        if not self.device.startswith("cuda"):
            return
        free = torch.cuda.mem_get_info(self.device)[0]
        with torch.device("meta"):
            count = sum(p.numel() for p in architecture(self.config).parameters())
        needed = count * self.torch_dtype.itemsize
        if needed > free:
            remedy = "take a smaller model or another GPU"
            if 2 * count <= free:
                remedy = f"--dtype bfloat16 takes {gib(2 * count)}"
            raise UserError(
                f"{self.name}: its weights take {gib(needed)} in {self.dtype}, but "
                f"{self.device} has {gib(free)} free; {remedy}"
            )


def gib(count: float) -> str:
    """Bytes as ``1.5 GiB``."""
    return f"{count / 2**30:.1f} GiB"
