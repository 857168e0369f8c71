"""Align long recordings with their transcripts, and compare short ones (stage 1).

    python -m speechllm.bin.align_recordings --data talks --lang en \\
        --model exp/speechllm_train/model --output data/alignments.jsonl

Recordings that are too long for a training and have one transcript are cut into
segments by forced alignment with the model's CTC branch. Of all segments and short
utterances, the CTC transcript is compared with the text, for the warnings of
``speechllm.bin.prepare_data own_data --alignments``. A re-run resumes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from speechllm.corpora.own_data import (
    MAX_SECONDS,
    add_reading_arguments,
    reading_options,
)
from speechllm.decoding.option_flags import add_device_flag
from speechllm.utils.errors import UserError, run_main
from speechllm.utils.io import atomic_open, previous_name

if TYPE_CHECKING:
    from speechllm.corpora.own_data.items import Item
    from speechllm.inference.speech_to_text import SpeechToText


def get_parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    parser = argparse.ArgumentParser(
        prog="python -m speechllm.bin.align_recordings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_reading_arguments(parser)
    add = parser.add_argument
    add("--model", required=True, help="model folder with a trained CTC branch")
    add("--output", required=True, type=Path, help="file to write, JSON lines")
    add("--max_seconds", type=float, default=MAX_SECONDS, help="longest utterance [30]")
    add_device_flag(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Align the recordings of the input."""
    args = get_parser().parse_args(argv)

    from tqdm import tqdm

    from speechllm.corpora.own_data.items import file_version
    from speechllm.corpora.own_data.source import measure, read_source, too_long
    from speechllm.inference.align_transcript import require_ctc
    from speechllm.inference.speech_to_text import SpeechToText

    options = reading_options(args)
    source = read_source(args.data, options)
    items = measure(source)
    model = SpeechToText.from_pretrained(args.model, device=args.device)
    require_ctc(model, args.model)
    counts = {"aligned": 0, "compared": 0, "failed": 0}
    with open_output(args.output, str(Path(args.model).absolute())) as (done, stream):
        bar = tqdm(items, "align", unit="utterance", mininterval=5)
        for item in bar:
            aligned = too_long(item, args.max_seconds)
            version = file_version(item.audio)
            place = (item.audio, item.start, item.end, item.text)
            if row_key(place, aligned, version) in done:
                continue
            try:
                if aligned:
                    row = align(model, item, options.language)
                    counts["aligned"] += 1
                else:
                    row = compare(model, item, options.language)
                    counts["compared"] += 1
            except UserError as error:
                counts["failed"] += 1
                print(f"{item.origin}: not aligned: {error}", file=sys.stderr)
                continue
            row["file"] = version
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            stream.flush()
    print(
        f"{args.output}: {counts['aligned']} recordings aligned, {counts['compared']} "
        f"utterances compared, {counts['failed']} failed"
    )


def align(model: SpeechToText, item: Item, language: str) -> dict[str, Any]:
    """Return the row of a recording: its segments, with CTC's error rate of each."""
    from speechllm.inference.align_transcript import align_recording

    segments = [
        {"start": one.start, "end": one.end, "text": one.text, "ctc_error": error}
        for one, error in align_recording(model, item.audio, item.text, language)
    ]
    return {"audio": item.audio, "text": item.text, "segments": segments}


def compare(model: SpeechToText, item: Item, language: str) -> dict[str, Any]:
    """Return the row of an utterance: the error rate of its CTC transcript."""
    from speechllm.audio.io import load_audio
    from speechllm.inference.align_transcript import ctc_error_of_wave

    wave = load_audio(item.audio, item.start, item.end)
    return {
        "audio": item.audio,
        "start": item.start,
        "end": item.end,
        "text": item.text,
        "ctc_error": ctc_error_of_wave(model, wave, item.text, language),
    }


def row_key(place: tuple, aligned: bool, version: list[int] | None) -> tuple:
    """Return what identifies a row; the arguments are its parts.

    Args:
        place: audio, start, end and text.
        aligned: it has segments.
        version: of the audio file.
    """
    return (*place, aligned, version and tuple(version))


@contextmanager
def open_output(path: Path, model: str) -> Iterator[tuple[set[tuple], IO[str]]]:
    """Open the output for more rows; yield the keys of its rows too.

    The keys are those of :func:`row_key`. A row that a kill cut off is removed. A file
    of another model is kept under the name of
    :func:`~speechllm.utils.io.previous_name`.

    Raises:
        UserError: the file is not an output of this program.
    """
    rows: list[dict[str, Any]] = []
    if path.is_file() and path.stat().st_size:
        with open(path, encoding="utf-8", errors="replace") as stream:
            for line in stream:
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError:
                    break
        if not (rows and isinstance(rows[0], dict) and rows[0].keys() == {"model"}):
            raise UserError(
                f"{path}: not an output of this program, so it is not replaced; name "
                "another --output"
            )
        keys = {"audio", "text"}
        if not all(isinstance(row, dict) and keys <= row.keys() for row in rows[1:]):
            raise UserError(f"{path}: damaged; move it away")
    if rows and rows[0] != {"model": model}:
        path.replace(previous_name(path))
        rows = []
    rows = rows or [{"model": model}]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_open(path) as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    done = set()
    for row in rows[1:]:
        place = (row["audio"], row.get("start"), row.get("end"), row["text"])
        done.add(row_key(place, "segments" in row, row.get("file")))
    with open(path, "a", encoding="utf-8") as stream:
        yield done, stream


if __name__ == "__main__":
    run_main(main)
