"""Transcribe recordings with a trained model and write their texts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO

from speechllm.inference.recordings import (
    SUBTITLES,
    Recording,
    format_transcription,
    subtitle_paths,
)
from speechllm.utils.errors import UserError
from speechllm.utils.io import atomic_open

BAR = "{percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of audio [{elapsed}<{remaining}]"
BAR_WITHOUT_TOTAL = "{n:.0f} s of audio [{elapsed}]"


def transcribe_recordings(
    model_dir: str,
    recordings: Sequence[Recording],
    output: str | None = None,
    form: str = "table",
    task: str = "asr",
    language: str | None = None,
    target_language: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    **options,
) -> int:
    """Transcribe or translate recordings; write each text as soon as it is complete.

    Progress and errors are printed on stderr.

    Args:
        model_dir: folder of a trained model, or a hub id.
        recordings: from :func:`speechllm.inference.recordings.find_recordings`.
        output: file, or folder for subtitles of several recordings; standard output
            if None.
        form: one of ``speechllm.inference.recordings.FORMATS``.
        task, language, target_language: as for ``SpeechToText.transcribe``.
        device: ``cpu``, ``cuda``, …
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto``.
        **options: of :func:`speechllm.inference.long_form.transcribe_long`.

    Returns:
        The number of recordings that failed.

    Raises:
        UserError: the output cannot be written, which is checked first, the model
            cannot be loaded, or it does not support an option.
    """
    with output_writer(recordings, output, form) as write:
        from tqdm import tqdm
        from transformers.utils.logging import disable_progress_bar

        from speechllm.inference.long_form import transcribe_long
        from speechllm.inference.speech_to_text import SpeechToText

        disable_progress_bar()  # for loading weights
        model = SpeechToText.from_pretrained(model_dir, device, dtype)
        target = model.request(task, language, target_language).target
        failed = 0
        expected = [recording.expected_seconds() for recording in recordings]
        with tqdm(
            total=None if None in expected else sum(expected),
            file=sys.stderr,
            bar_format=BAR_WITHOUT_TOTAL if None in expected else BAR,
        ) as bar:
            transcriptions = transcribe_long(
                model,
                (recording.stream() for recording in recordings),
                task=task,
                language=language,
                target_language=target_language,
                progress=bar.update,
                **options,
            )
            for recording, found in zip(recordings, transcriptions, strict=True):
                write(format_transcription(recording.name, found, form, target))
                if found.error is not None:
                    failed += 1
                    bar.write(f"error: {found.error}", file=sys.stderr)
    return failed


@contextmanager
def output_writer(
    recordings: Sequence[Recording], output: str | None, form: str
) -> Iterator[Callable[[str | None], None]]:
    """Yield a function that writes the text of each recording, in order.

    Raises:
        UserError: the output cannot be written.
    """
    paths = subtitle_paths(recordings, output, form) if form in SUBTITLES else None
    if paths is None:
        with output_stream(output) as stream:

            def write(text: str | None) -> None:
                stream.write(text or "")
                stream.flush()

            yield write
        return
    try:
        paths[0].parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(output, error) from None
    remaining = iter(paths)

    def write_file(text: str | None) -> None:
        path = next(remaining)
        if text is not None:
            with atomic_open(path) as stream:
                stream.write(text)

    yield write_file


@contextmanager
def output_stream(path: str | None) -> Iterator[IO[str]]:
    """Yield standard output, or a file that appears only when it is complete.

    Raises:
        UserError: the file cannot be written.
    """
    if path is None:
        sys.stdout.reconfigure(encoding="utf-8")
        yield sys.stdout
        return
    if os.path.isdir(path):
        raise UserError(f"--output {path}: this is a folder; name a file")
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(atomic_open(path))
        except OSError as error:
            raise unwritable(path, error) from None
        yield stream


def unwritable(path: str | None, error: OSError) -> UserError:
    """Return the error for an output that cannot be written."""
    return UserError(f"--output {path}: cannot be written: {error.strerror}")
