"""Benchmark of stage 12's start: reading of tables and of earlier hypotheses.

All hypotheses but one are there, as after an interruption: the job reads them, loads
the model, decodes the last example and writes the tables.
"""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

from speechllm.benchmarks.data import measure
from speechllm.data.examples import read_utt2task
from speechllm.data.kaldi_table import read_table
from speechllm.inference.decode_examples import settings_key
from speechllm.inference.generation_config import JOB_DEFAULTS, read_settings
from speechllm.inference.loading import find_model

_NBEST = 4
_TEXT = "thank you for calling please hold the line"


def benchmark_resuming(
    folder: Path, model: str, speech: Path, task: str, sizes: list[int]
) -> None:
    """Print the cost of resuming the decoding of example dirs of each size.

    Args:
        folder: working folder.
        model: model folder of stage 10.
        speech: recording that is decoded.
        task: of the examples, such as ``asr en en``.
        sizes: numbers of examples.
    """
    print("| examples | seconds | CPU seconds | MiB |")
    print("| ---: | ---: | ---: | ---: |")
    for size in sorted(sizes):
        examples, output = folder / "examples", folder / "decode"
        write_resumed_decoding(model, speech, task, size, examples, output)
        command = [sys.executable, "-m", "speechllm.bin.decode", "--model", model]
        command += ["--examples", str(examples), "--output_dir", str(output)]
        cost = measure(command, folder / "log")
        print(
            f"| {size:,} | {cost.seconds:.1f} | {cost.cpu_seconds:.1f} "
            f"| {cost.mebibytes:.0f} |",
            flush=True,
        )
        shutil.rmtree(examples)
        shutil.rmtree(output)


def write_resumed_decoding(
    model: str, speech: Path, task: str, size: int, examples: Path, output: Path
) -> None:
    """Write an example dir, and the hypotheses of all its examples but the first."""
    examples.mkdir()
    names = [f"utterance-{number:09d}" for number in range(size)]
    values = {"wav.scp": speech, "utt2task": task, "utt2num_samples": 16000}
    with ExitStack() as stack:
        for table, value in values.items():
            file = stack.enter_context(open(examples / table, "w", encoding="utf-8"))
            file.writelines(f"{name} {value}\n" for name in names)
    settings = read_settings(None, find_model(model))
    search = {k: v for k, v in settings.items() if k not in JOB_DEFAULTS}
    dtype = settings.get("dtype") or JOB_DEFAULTS["dtype"]
    tables = read_table(examples / "wav.scp"), read_utt2task(examples)
    output.mkdir()
    hypothesis = {"text": _TEXT, "score": -1.5}
    line = {
        **hypothesis,
        "tokens": list(range(len(_TEXT.split()))),
        "ctc_text": _TEXT,
        "nbest": [hypothesis] * _NBEST,
        "audio_seconds": 1.0,
        "decoding_seconds": 0.5,
        "device": "cpu",
    }
    with open(output / "hypotheses.1.jsonl", "w", encoding="utf-8") as stream:
        key = settings_key(model, search, str(dtype), *tables)
        stream.write(json.dumps({"settings": key}) + "\n")
        for name in names[1:]:
            stream.write(json.dumps({"id": name, **line}) + "\n")
