"""Benchmark of the peak memory of long-form recognition.

One recording, made of the prompts of an example dir with pauses between them, is
transcribed in this process. The table has the peak of the process's resident memory
after some minutes of audio, the loaded model included.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from speechllm.audio.io import stream_audio
from speechllm.benchmarks.long_form import read_prompts, write_recording
from speechllm.benchmarks.resources import MEBIBYTE, process_memory

HEADING = (
    "| minutes of audio | peak memory, MiB | growth | CPU seconds |\n"
    "| ---: | ---: | ---: | ---: |"
)


def benchmark_memory(
    model_dir: str, examples: str, language: str, minutes: Sequence[int], options: dict
) -> None:
    """Transcribe a recording and print a table row when each length is reached.

    A row has the minutes, the peak memory, its growth since the first row, and the CPU
    seconds since the model was loaded.

    Args:
        model_dir: folder of a trained model.
        examples: example dir of the prompts.
        language: of the prompts.
        minutes: lengths of audio.
        options: ``batch_size`` and fields of ``SearchOptions``.

    Raises:
        UserError: no prompts in the language, or the operating system is not Linux.
    """
    from speechllm.inference.long_form import transcribe_long
    from speechllm.inference.speech_to_text import SpeechToText

    remaining = sorted(minutes)
    prompts = read_prompts(Path(examples), language)
    model = SpeechToText.from_pretrained(model_dir)
    begin, first, done = time.process_time(), 0, 0.0

    def progress(seconds: float) -> None:
        nonlocal first, done
        done += seconds
        while remaining and done >= 60 * remaining[0]:
            peak = process_memory("VmHWM")
            first = first or peak
            print(
                f"| {remaining.pop(0)} | {peak / MEBIBYTE:.0f} "
                f"| {100 * (peak / first - 1):.1f} % "
                f"| {time.process_time() - begin:.0f} |",
                flush=True,
            )

    with tempfile.TemporaryDirectory(prefix="benchmark.") as folder:
        path = Path(folder) / "pauses.wav"
        write_recording(path, prompts, "pauses", max(minutes))
        streams = [stream_audio(path)]
        print(HEADING, flush=True)
        list(
            transcribe_long(
                model, streams, language=language, progress=progress, **options
            )
        )
