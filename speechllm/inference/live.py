"""Live transcription: segments of a stream, each when the pause after it comes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from transformers.utils.logging import disable_progress_bar

from speechllm.audio.live import import_sounddevice, live_blocks
from speechllm.audio.segmentation import MAX_SECONDS, Cutting, speech_segments
from speechllm.decoding.options import SearchOptions
from speechllm.decoding.result import Result, Segment
from speechllm.inference.generation_config import Config, check_search, read_settings
from speechllm.inference.joining import merge_overlaps, shift_times
from speechllm.inference.loading import choose_device, find_model
from speechllm.inference.long_form import cutting_for
from speechllm.inference.output_formats import json_segments
from speechllm.inference.speech_to_text import SpeechToText
from speechllm.inference.transcribe_recordings import check_request
from speechllm.text.tasks import Task
from speechllm.utils.errors import UserError

PAUSE_SECONDS = 0.5  # ends a segment: shorter ones are within sentences


def transcribe_live(
    model: SpeechToText,
    blocks: Iterable[np.ndarray],
    task: Task,
    options: SearchOptions,
    cutting: Cutting,
) -> Iterator[Result]:
    """Decode the segments of a stream as their pauses come.

    A segment that was cut without a pause is held until the next one, which may overlap
    it, is decoded, so that no word is repeated.

    Args:
        blocks: float32 samples (samples,) at 16 kHz, as they arrive.
        task, options: of :meth:`SpeechToText.decode`.
        cutting: options of the segmentation.

    Yields:
        The result of each segment, with one passage; none for an empty text.
    """
    held = None
    for segment, samples in speech_segments(blocks, cutting, whole=False):
        [result] = model.decode([samples], [task], options, unguarded=False)
        part = shift_times(result, segment)
        if held is not None:
            merge_overlaps([held, part], task.source, task.target)
            yield from _with_passage(held)
        held = part
        if not segment.continues:
            yield from _with_passage(held)
            held = None
    if held is not None:
        yield from _with_passage(held)


def _with_passage(part) -> Iterator[Result]:
    """Yield the result of a part of a recording, unless its text is empty."""
    if text := " ".join(part.result.text.split()):
        part.result.passages = [Segment(part.start, part.end, text)]
        yield part.result


def transcribe_stream(
    source: str,
    model_dir: str,
    as_json: bool = False,
    task: str = "asr",
    language: str | None = None,
    target_language: str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    config: Config | None = None,
    strict: bool = False,
    engine: str | None = None,
    max_seconds: float = MAX_SECONDS,
    pause_seconds: float = PAUSE_SECONDS,
    **options: Any,
) -> None:
    """Print the text of each segment of a live source, one line each.

    Args:
        source: of :func:`speechllm.audio.live.live_blocks`.
        model_dir, task, language, target_language, device, dtype, config, strict,
            engine: as for
            :func:`speechllm.inference.transcribe_recordings.transcribe_recordings`;
            the language cannot be detected.
        as_json: print the segment as a JSON object with Whisper's names.
        max_seconds, pause_seconds: options of the segmentation.
        **options: of the search.

    Raises:
        UserError: the source cannot be read, or the model cannot do what is requested.
    """
    if language == "auto":
        raise UserError("--language auto: --stream needs the code of the language")
    folder = find_model(model_dir)
    requested, _ = check_request(folder, task, language, target_language, "text")
    check_search(engine, read_settings(config, folder), options)
    Cutting(max_seconds, pause_seconds)
    if source == "mic":
        import_sounddevice()  # its error comes before the model is loaded
    disable_progress_bar()  # for loading weights
    model = SpeechToText.from_pretrained(
        folder, choose_device(device), dtype, engine, config=config, strict=strict
    )
    search = model.options(options)
    model.load_first_pass(options)
    cutting = cutting_for(model, max_seconds, pause_seconds)
    print("listening", file=sys.stderr, flush=True)
    sys.stdout.reconfigure(encoding="utf-8")
    results = transcribe_live(model, live_blocks(source), requested, search, cutting)
    for number, result in enumerate(results):
        line = result.passages[0].text
        if as_json:
            [segment] = json_segments(result)
            line = json.dumps({**segment, "id": number}, ensure_ascii=False)
        print(line, flush=True)
