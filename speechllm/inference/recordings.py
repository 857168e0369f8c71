"""Recordings given on the command line, and output formats of their texts."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from speechllm.utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from speechllm.inference.long_form import Transcription


STANDARD_INPUT = "-"
SUBTITLES = ("srt", "vtt")  # formats with one file per recording
FORMATS = ("table", "json", "text", *SUBTITLES)
AUDIO_SUFFIXES = frozenset(
    ".wav .flac .mp3 .m4a .ogg .oga .opus .aac .aif .aiff .au .sph .w64 .rf64 .caf "
    ".g722 .amr .wma .mp4 .m4v .mov .mkv .webm .avi".split()
)


@dataclass(frozen=True)
class Recording:
    """A recording to transcribe.

    Attributes:
        name: in the output.
        source: for :func:`speechllm.audio.io.stream_audio`, or ``-``: standard input.
    """

    name: str
    source: str

    def stream(self) -> Iterator[np.ndarray]:
        """Yield blocks of float32 samples ``(samples,)`` at 16 kHz."""
        from speechllm.audio.io import stream_audio

        if self.source == STANDARD_INPUT:
            return stream_standard_input()
        return stream_audio(self.source)

    def expected_seconds(self) -> float | None:
        """Return the length in seconds, or None if the header does not give it."""
        from speechllm.audio.io import seconds_by_header

        if self.source == STANDARD_INPUT:
            return None
        return seconds_by_header(self.source)


def find_recordings(inputs: Sequence[str]) -> list[Recording]:
    """List the recordings given by command-line arguments.

    Args:
        inputs: audio files; folders, searched recursively for files with an audio
            suffix; Kaldi tables ``*.scp``; ``-`` for one recording, of any format, on
            standard input.

    Raises:
        UserError: a folder or table has no recordings, a table is malformed, there
            are no inputs, or ``-`` is repeated. Missing audio files are not checked
            here; reading them raises the error.
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
            from speechllm.data.kaldi_table import iterate_table

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


def stream_standard_input() -> Iterator[np.ndarray]:
    """Read one recording, of any format, from standard input."""
    from speechllm.audio.io import stream_audio

    # most formats need a seekable file
    with tempfile.NamedTemporaryFile(prefix="standard-input-") as file:
        shutil.copyfileobj(sys.stdin.buffer, file, 1 << 20)
        file.flush()
        try:
            yield from stream_audio(file.name)
        except UserError as error:
            reason = str(error).replace(file.name, "standard input")
            raise UserError(reason) from None


def subtitle_paths(
    recordings: Sequence[Recording], output: str | None, form: str
) -> list[Path] | None:
    """Return the subtitle file of each recording, or None if ``output`` is the file.

    Args:
        output: a folder, which may not exist yet. For a single recording also a file,
            or None for standard output.
        form: ``srt`` or ``vtt``.

    Raises:
        UserError: several recordings have the same output.
    """
    if len(recordings) == 1 and not (output and Path(output).is_dir()):
        return None
    if output is None:
        raise UserError(
            f"{form} has one file per recording: name a folder with --output"
        )
    paths: dict[Path, str] = {}
    for recording in recordings:
        path = Path(output) / f"{subtitle_stem(recording)}.{form}"
        if path in paths:
            raise UserError(
                f"{path} would hold the subtitles of both {paths[path]} and "
                f"{recording.name}: give them different names in a wav.scp"
            )
        paths[path] = recording.name
    return list(paths)


def subtitle_stem(recording: Recording) -> str:
    """Return the name of a subtitle file, without its suffix."""
    if recording.source == STANDARD_INPUT:
        return "standard_input"
    if recording.name != recording.source:  # an utterance of a table
        return recording.name.replace("/", "_")
    return Path(recording.name).stem


def format_transcription(
    name: str, transcription: Transcription, form: str, language: str
) -> str | None:
    """Return a transcription in an output format, with line ends.

    Args:
        name: of the recording.
        form: ``table``: a line with name, tab and text; ``text``: a line with the
            text; ``json``: a line with an object of ``name``, ``seconds``, the fields
            of ``Result.entry``, and ``error`` if there is one; ``srt``, ``vtt``: the
            content of a subtitle file.
        language: two-letter code of the text's language.

    Returns:
        The formatted text. Without a result: ``table`` gives an empty string,
        ``text`` an empty line, ``srt`` and ``vtt`` None.
    """
    result = transcription.result
    if form == "json":
        entry: dict = {"name": name, "seconds": round(transcription.seconds, 3)}
        if result is not None:
            entry |= result.entry()
        if transcription.error is not None:
            entry["error"] = transcription.error
        return json.dumps(entry, ensure_ascii=False) + "\n"
    if form in SUBTITLES:
        from speechllm.inference.subtitles import format_srt, format_vtt, make_cues

        if result is None:
            return None
        cues = make_cues(result, language)
        return format_srt(cues) if form == "srt" else format_vtt(cues)
    text = "" if result is None else " ".join(result.text.split())
    if form == "text":
        return text + "\n"
    return "" if result is None else f"{name}\t{text}\n"
