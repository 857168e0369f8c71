"""Latency of ``speechllm transcribe --stream`` on a feed in real time."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from speechllm.audio.io import SAMPLING_RATE, load_audio
from speechllm.data.examples import read_utt2task
from speechllm.data.kaldi_table import read_table
from speechllm.utils.batching import evenly
from speechllm.utils.errors import UserError

_STEP_SECONDS = 0.1  # of audio that is written at once


def live_report(
    examples: str | Path, utterances: int | None, pause: float, options: list[str]
) -> str:
    """Return the times from the end of each segment to its printed line.

    Args:
        examples: example dir; its utterances of the task ``asr`` are fed one after the
            other, with silence in between.
        utterances: number of them; None: all.
        pause: seconds of silence after each.
        options: of ``speechllm transcribe``, such as ``--model``.

    Raises:
        UserError: no examples, or the command fails or prints nothing.
    """
    wavs, tasks = read_table(Path(examples) / "wav.scp"), read_utt2task(Path(examples))
    names = evenly([n for n in sorted(wavs) if tasks[n].name == "asr"], utterances)
    if not names:
        raise UserError(f"{examples}: no example of the task asr")
    silence = np.zeros(round(pause * SAMPLING_RATE), np.float32)
    audio = np.concatenate([x for n in names for x in (load_audio(wavs[n]), silence)])
    samples = (audio * (2**15 - 1)).astype("<i2")
    command = [sys.executable, "-m", "speechllm.cli", "transcribe", "--stream", "raw"]
    process = subprocess.Popen(
        [*command, "--format", "json", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert process.stdin and process.stdout and process.stderr
    messages = []
    for line in process.stderr:
        messages.append(line)
        if line == "listening\n":
            break
    begin = time.monotonic()
    feeder = threading.Thread(target=feed, args=(process.stdin, samples, begin))
    feeder.start()
    delays = [
        time.monotonic() - begin - json.loads(line)["end"] for line in process.stdout
    ]
    feeder.join()
    if process.wait() or not delays:
        raise UserError(f"no segment was printed: {''.join(messages[-1:])}")
    return (
        f"{len(delays)} segments in {len(samples) / SAMPLING_RATE:.0f} s of audio; "
        f"from the end of a segment to its line: median {statistics.median(delays):.2f}"
        f" s, longest {max(delays):.2f} s"
    )


def feed(stream, samples: np.ndarray, begin: float) -> None:
    """Write 16-bit samples (samples,) into a pipe in real time, and close it."""
    step = round(_STEP_SECONDS * SAMPLING_RATE)
    try:
        for first in range(0, len(samples), step):
            due = begin + (first + step) / SAMPLING_RATE
            time.sleep(max(due - time.monotonic(), 0))
            stream.buffer.write(samples[first : first + step].tobytes())
            stream.buffer.flush()
        stream.close()
    except BrokenPipeError:  # the command has failed
        pass
