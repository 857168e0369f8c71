"""Interface of the baselines, and the base class of the pretrained ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from speechllm.pretrained.model_folder import (
    check_files,
    name_damaged_weights,
    read_mapping,
    read_model_config,
)
from speechllm.utils.errors import UserError

MAX_NEW_TOKENS = 256  # of a translation or a Seamless transcript, for any batch


class Baseline(ABC):
    """A system that :func:`speechllm.baselines.runner.run_baseline` can decode with.

    Attributes:
        takes_speech: True if the input is speech, False if it is the transcripts of
            another system.
        beam_size: number of hypotheses in the beam; 1 is greedy search.
        device: ``cpu``, ``cuda``, …
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto``.
    """

    takes_speech: ClassVar[bool] = True
    beam_size: int
    device: str
    dtype: str = "float32"

    @abstractmethod
    def check(self, task: str, source: str, target: str) -> None:
        """Raise UserError if the system does not support a task and its languages."""

    @abstractmethod
    def settings(self) -> dict:
        """Return everything that a hypothesis depends on except its input."""

    @abstractmethod
    def load(self) -> None:
        """Load the model onto the device; called before :meth:`decode`."""

    @abstractmethod
    def decode(self, inputs: list, task: str, source: str, target: str) -> list[dict]:
        """Decode one batch.

        Args:
            inputs: float arrays (samples,) at 16 kHz, or transcripts.

        Returns:
            ``{"text", "tokens"}`` for each input; for ``asr_st`` also ``"transcript"``.
        """


class TextTranslator(Baseline):
    """A text translator, the second stage of a cascade."""

    takes_speech = False

    @abstractmethod
    def translate(self, texts: Sequence[str], source: str, target: str) -> list[dict]:
        """Return ``{"text", "tokens"}`` for each sentence."""

    def decode(
        self, inputs: list[str], task: str, source: str, target: str
    ) -> list[dict]:
        """Translate transcripts; ``asr`` examples keep the transcript itself."""
        if task == "asr":
            return [{"text": text, "tokens": text.split()} for text in inputs]
        outputs = self.translate(inputs, source, target)
        if task == "asr_st":
            for output, text in zip(outputs, inputs):
                output["transcript"] = text
        return outputs


class PretrainedSystem(Baseline):
    """A pretrained model of transformers, which a subclass names and decodes with.

    Args:
        model: hub id or folder.
        beam_size: number of hypotheses in the beam; 1 is greedy search.
        device: ``cpu``, ``cuda``, …
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto``. In float32 a
            hypothesis does not depend on its batch.

    Raises:
        UserError: the model or device does not exist, or the model has another
            architecture.
    """

    architecture: ClassVar[str]  # class of transformers
    model_types: ClassVar[tuple[str, ...]]  # accepted in config.json

    def __init__(
        self,
        model: str,
        beam_size: int = 1,
        device: str = "cpu",
        dtype: str = "float32",
    ):
        from speechllm.inference.loading import choose_device
        from speechllm.models.precision import resolve_dtype
        from speechllm.pretrained.resolve import resolve_model

        device = choose_device(device)
        if beam_size < 1:
            raise UserError(f"beam_size {beam_size}: at least 1")
        self.name, self.folder = str(model), resolve_model(model)
        self.beam_size, self.device, self.dtype = beam_size, device, dtype
        self.torch_dtype = resolve_dtype(dtype)
        content = read_mapping(self.folder / "config.json")
        if content.get("model_type") not in self.model_types:
            raise UserError(
                f"{model}: the model type is {content.get('model_type')!r}, but "
                f"{type(self).__name__.lower()} requires "
                f"{' or '.join(self.model_types)}"
            )
        self.config = read_model_config(self.folder)
        self.model: Any = None

    def settings(self) -> dict:
        """Return everything that a hypothesis depends on except its input."""
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
            UserError: too little memory on the device; the message names a remedy.
        """
        import transformers

        architecture = getattr(transformers, self.architecture)
        self.check_memory(architecture)
        check_files(self.folder)
        with name_damaged_weights(self.folder):
            self.model = architecture.from_pretrained(
                self.folder, dtype=self.torch_dtype
            ).to(self.device)
        self.model.eval()

    def check_memory(self, architecture) -> None:
        """Raise UserError if the weights exceed the free memory of the GPU."""
        import torch

        if not self.device.startswith("cuda"):
            return
        free = torch.cuda.mem_get_info(self.device)[0]
        with torch.device("meta"):
            count = sum(p.numel() for p in architecture(self.config).parameters())
        needed = count * self.torch_dtype.itemsize
        if needed > free:
            remedy = "use a smaller model or another GPU"
            if 2 * count <= free:
                remedy = f"--dtype bfloat16 needs {gib(2 * count)}"
            raise UserError(
                f"{self.name}: the weights need {gib(needed)} in {self.dtype}, but "
                f"{self.device} has {gib(free)} free; {remedy}"
            )


def decode_tokens(tokenizer, token_ids) -> dict:
    """Return text and tokens of a generated sequence (tokens,) without special ones."""
    special = set(tokenizer.all_special_ids)
    kept = [t for t in token_ids.tolist() if t not in special]
    text = tokenizer.decode(kept, skip_special_tokens=True)
    return {
        "text": " ".join(text.split()),
        "tokens": tokenizer.convert_ids_to_tokens(kept),
    }


def language_token(tokenizer, token: str, message: str) -> int:
    """Return the id of a language token.

    Raises:
        UserError: the tokenizer has no such token; the message is ``message``.
    """
    token_id = tokenizer.convert_tokens_to_ids(token)
    if token_id is None or token_id == tokenizer.unk_token_id:
        raise UserError(message)
    return token_id


def gib(size: float) -> str:
    """Format a number of bytes, such as ``1.5 GiB``."""
    return f"{size / 2**30:.1f} GiB"
