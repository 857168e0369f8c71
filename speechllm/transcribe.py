"""Recordings named on a command line → text, in the order they were named.

Recordings are read and decoded a few batches at a time, so that any number of them
fits in memory and the first texts come out soon.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from speechllm.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from speechllm.inference import SpeechToText
    from speechllm.model.search import SearchOptions
    from speechllm.result import Result

STANDARD_INPUT = "-"
FORMATS = ("table", "json", "text")
AUDIO_SUFFIXES = frozenset(
    ".wav .flac .mp3 .m4a .ogg .oga .opus .aac .aif .aiff .au .sph .w64 .rf64 .caf "
    ".g722 .amr .wma .mp4 .m4v .mov .mkv .webm .avi".split()
)
_BATCHES_AT_ONCE = 8  # read ahead, to put utterances of like length together


@dataclass(frozen=True)
class Recording:
    """A name for the output, and what :func:`speechllm.audio.load_audio` reads."""

    name: str
    source: str


@dataclass(frozen=True)
class Transcription:
    """What became of a recording: a result, or the reason why there is none."""

    recording: Recording
    seconds: float = 0.0
    result: Result | None = None
    error: str | None = None


def find_recordings(inputs: Sequence[str]) -> list[Recording]:
    """List the recordings that the arguments of a command name.

    Args:
        inputs: audio files; folders, searched with all that is below them for files
            with an audio suffix; Kaldi tables ``*.scp``; ``-`` for one recording, of
            any format, on standard input.

    Raises:
        UserError: a folder or table holds no recording, a table is damaged, or
            nothing is named at all. A file that is missing is not one of these:
            it is found out when its turn comes.
    """
    recordings: list[Recording] = []
    for given in inputs:
        path = Path(given)
        if given != STANDARD_INPUT and path.is_dir():
            found = [
                Recording(str(file), str(file))
                for file in sorted(path.rglob("*"))
                if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file()
            ]
            if not found:
                raise UserError(f"{given}: no audio file in this folder")
        elif path.suffix == ".scp":
            from speechllm.datadir import iterate_table

            found = [Recording(name, source) for name, source in iterate_table(path)]
            if not found:
                raise UserError(f"{given}: the list is empty")
        else:
            found = [Recording(given, given)]
        recordings += found
    if not recordings:
        raise UserError("nothing to transcribe: name audio files, folders or a wav.scp")
    if sum(r.source == STANDARD_INPUT for r in recordings) > 1:
        raise UserError("standard input (-) can be read only once")
    return recordings


def transcribe_recordings(
    model: SpeechToText,
    recordings: Sequence[Recording],
    request: tuple[str, str, str],
    options: SearchOptions,
    batch_size: int,
) -> Iterator[Transcription]:
    """Transcribe or translate recordings, and go on after those that fail.

    Args:
        model: as :meth:`SpeechToText.from_pretrained` gives it.
        request: task, source and target language, of :meth:`SpeechToText.request`.
        options: how to search.
        batch_size: utterances decoded at once.

    Yields:
        One for each recording, in order.
    """
    from speechllm.inference import SAMPLING_RATE, batches_by_length

    size = batch_size * _BATCHES_AT_ONCE
    for begin in range(0, len(recordings), size):
        chunk = recordings[begin : begin + size]
        waves = [read_recording(recording) for recording in chunk]
        readable = [i for i, wave in enumerate(waves) if not isinstance(wave, str)]
        results: dict[int, Result | str] = {}
        lengths = [len(waves[i]) for i in readable]
        for batch in batches_by_length(lengths, batch_size):
            indices = [readable[k] for k in batch]
            found = decode_each(model, [waves[i] for i in indices], request, options)
            results.update(zip(indices, found, strict=True))
        for index, (recording, wave) in enumerate(zip(chunk, waves)):
            if isinstance(wave, str):
                yield Transcription(recording, error=wave)
                continue
            seconds, result = len(wave) / SAMPLING_RATE, results[index]
            if isinstance(result, str):
                yield Transcription(
                    recording, seconds, error=f"{recording.name}: {result}"
                )
            else:
                yield Transcription(recording, seconds, result)


def decode_each(
    model: SpeechToText,
    waves: Sequence[np.ndarray],
    request: tuple[str, str, str],
    options: SearchOptions,
) -> list[Result | str]:
    """Decode a batch; for an utterance that the model refuses, say why."""
    try:
        return model.decode(waves, [request] * len(waves), options)
    except UserError as error:
        if len(waves) == 1:
            return [str(error)]
    return [decode_each(model, [wave], request, options)[0] for wave in waves]


def read_recording(recording: Recording) -> np.ndarray | str:
    """Samples (samples,) at 16 kHz, or the reason why there are none."""
    from speechllm.audio import load_audio

    try:
        if recording.source == STANDARD_INPUT:
            return read_standard_input()
        return load_audio(recording.source)
    except UserError as error:
        return str(error)


def read_standard_input() -> np.ndarray:
    """Read one recording, of any format, from standard input."""
    import tempfile

    from speechllm.audio import load_audio

    # a file, since most formats cannot be read without going back and forth
    with tempfile.NamedTemporaryFile(prefix="standard-input-") as file:
        while block := sys.stdin.buffer.read(1 << 20):
            file.write(block)
        file.flush()
        try:
            return load_audio(file.name)
        except UserError as error:
            reason = str(error).replace(file.name, "standard input")
            raise UserError(reason) from None


def format_transcription(transcription: Transcription, form: str) -> str:
    """The lines, with line ends, that a transcription is written as.

    Args:
        form: ``table``: name, tab, text, nothing for a recording that failed;
            ``text``: a line each, empty for one that failed; ``json``: an object
            each with ``name``, ``seconds`` and ``text``, ``score``, ``ctc_text`` and
            ``nbest``, or ``error``.
    """
    name, result = transcription.recording.name, transcription.result
    if form == "json":
        entry: dict = {"name": name, "seconds": round(transcription.seconds, 3)}
        if result is None:
            entry["error"] = transcription.error
        else:
            entry |= {"text": result.text, "score": round(result.score, 4)}
            if result.ctc_text is not None:
                entry["ctc_text"] = result.ctc_text
            if len(result.nbest) > 1:
                entry["nbest"] = [[text, round(s, 4)] for text, s in result.nbest]
        return json.dumps(entry, ensure_ascii=False) + "\n"
    text = "" if result is None else " ".join(result.text.split())
    if form == "text":
        return text + "\n"
    return "" if result is None else f"{name}\t{text}\n"
