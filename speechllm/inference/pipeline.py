"""Exported models in transformers' ``pipeline("automatic-speech-recognition")``.

    import speechllm
    from transformers import pipeline

    recognizer = pipeline("automatic-speech-recognition", "exp/speechllm_train/model")
    recognizer("a.wav", return_timestamps="word")

``config.json`` of an exported model names its type, :data:`MODEL_TYPE`. transformers
has one pipeline class per task, which decodes its own kinds of models only, so that
this module puts a subclass in its place; other models get the original class.
``speechllm/__init__.py`` has it imported right after ``transformers.pipelines``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.automatic_speech_recognition import (
    AutomaticSpeechRecognitionPipeline,
)

from speechllm.audio.io import SAMPLING_RATE, resample
from speechllm.audio.signal_checks import as_array
from speechllm.inference.encoding import QUEUE
from speechllm.models.config import MODEL_TYPE
from speechllm.utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from speechllm.decoding.result import Result

TASK = "automatic-speech-recognition"


class ExportedConfig(PreTrainedConfig):
    """``config.json`` of an exported model; ``config.yaml`` has its parts."""

    model_type = MODEL_TYPE


class ExportedModel:
    """An exported model before it is on its device.

    It has what transformers' ``Pipeline`` reads of a model.

    Args:
        path: model folder or hub id.
        dtype: a torch dtype, or None for that of the model's settings.
        revision: commit of a hub id.
    """

    config_class = ExportedConfig

    def __init__(
        self,
        config: ExportedConfig,
        path: str,
        dtype: torch.dtype | None,
        revision: str | None,
    ):
        self.config, self.name_or_path = config, path
        self.dtype, self.revision = dtype, revision
        self.device = torch.device("cpu")

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        config: ExportedConfig,
        dtype: torch.dtype | str | None = None,
        revision: str | None = None,
        **_: Any,
    ) -> ExportedModel:
        """Return a model; its weights are not read yet."""
        precision = dtype if isinstance(dtype, torch.dtype) else None  # not "auto"
        return cls(config, path, precision, revision)

    def to(self, device: torch.device) -> ExportedModel:
        """Choose the device."""
        self.device = device
        return self

    def can_generate(self) -> bool:
        """Return False: it has a search of its own."""
        return False


class SpeechPipeline(AutomaticSpeechRecognitionPipeline):
    """transformers' pipeline, for exported models too.

    Options of ``generate_kwargs`` are those of
    :meth:`~speechllm.inference.speech_to_text.SpeechToText.transcribe`: ``task``,
    ``language``, ``target_language``, ``beam_size``, ``hotwords``, …

    Raises:
        UserError: as ``SpeechToText.from_pretrained`` and ``transcribe``.
    """

    _load_tokenizer = None  # an exported model has none of its own
    _load_feature_extractor = None

    def __new__(cls, model: Any, **options: Any) -> Any:
        """Return the pipeline of transformers for a model of transformers."""
        if isinstance(model, ExportedModel):
            return super().__new__(cls)
        for name, kind in (
            ("tokenizer", AutoTokenizer),
            ("feature_extractor", AutoFeatureExtractor),
        ):
            if options.get(name) is None:  # required here: show why it was not loaded
                options[name] = kind.from_pretrained(model.name_or_path)
        return AutomaticSpeechRecognitionPipeline(model, **options)

    def __init__(self, model: ExportedModel, **options: Any):
        from speechllm.inference.speech_to_text import SpeechToText

        super().__init__(model, **options)
        dtype = None if model.dtype is None else str(model.dtype).rpartition(".")[2]
        self.speech_to_text = SpeechToText.from_pretrained(
            model.name_or_path, str(self.device), dtype, revision=model.revision
        )

    def _sanitize_parameters(
        self,
        return_timestamps: bool | str | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Sort the options of a call; transformers calls this."""
        if return_timestamps not in (None, False, "word"):
            raise UserError(
                f"return_timestamps={return_timestamps!r}: this model has times of "
                "words, 'word'; speechllm.transcribe_long has those of segments"
            )
        if return_timestamps is not None:
            options["word_times"] = return_timestamps == "word"
        return {**options, **(generate_kwargs or {})}, {}, {}

    def get_iterator(
        self,
        inputs: Iterable[Any],
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[dict[str, Any]]:
        """Yield the result of each input, ``batch_size`` decoded at a time."""
        inputs = iter(inputs)
        while part := [samples_of(item) for item in islice(inputs, batch_size * QUEUE)]:
            given = {"unguarded": False, **preprocess_params}
            for result in self.speech_to_text.transcribe(
                part, batch_size=batch_size, **given
            ):
                yield as_output(result)


def samples_of(item: Any) -> str | np.ndarray:
    """Return an input of the pipeline as ``SpeechToText`` takes it.

    Args:
        item: a path, samples (samples,) or (channels, samples) at 16 kHz, or a mapping
            with ``raw`` or ``array`` and ``sampling_rate``.

    Raises:
        UserError: a mapping without them.
    """
    rate = SAMPLING_RATE
    if isinstance(item, dict):
        samples = item["raw"] if "raw" in item else item.get("array")
        if samples is None or "sampling_rate" not in item:
            raise UserError(
                "a dictionary needs the samples as 'raw' or 'array', and their "
                f"'sampling_rate', and has {', '.join(map(repr, item)) or 'nothing'}"
            )
        item, rate = samples, item["sampling_rate"]
    if isinstance(item, str) or not hasattr(item, "__array__"):
        return item
    samples = as_array(item)
    if samples.ndim == 2:
        samples = samples.mean(axis=0)
    return samples if rate == SAMPLING_RATE else resample(samples, rate, SAMPLING_RATE)


def as_output(result: Result) -> dict[str, Any]:
    """Return a result as transformers' pipelines do.

    ``chunks`` has the words with their times in seconds, if they were requested, and
    ``transcript`` the transcript of the task ``asr_st``.
    """
    output: dict[str, Any] = {"text": result.text}
    if result.transcript is not None:
        output["transcript"] = result.transcript
    if result.words is not None:
        output["chunks"] = [
            {"text": word.text, "timestamp": (word.start, word.end)}
            for word in result.words
        ]
    return output


AutoConfig.register(MODEL_TYPE, ExportedConfig)
AutoModelForSpeechSeq2Seq.register(ExportedConfig, ExportedModel)
PIPELINE_REGISTRY.supported_tasks[TASK]["impl"] = SpeechPipeline
