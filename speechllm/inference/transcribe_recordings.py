"""Transcribe recordings with a trained model and write their texts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from speechllm.inference.generation_config import Config, check_search, read_settings
from speechllm.inference.output_formats import WORD_FORMATS, format_transcription
from speechllm.inference.outputs import open_output
from speechllm.inference.recordings import STANDARD_INPUT, Recording
from speechllm.inference.resumable_output import Entry
from speechllm.text.tasks import Task
from speechllm.utils.errors import UserError, describe_error
from speechllm.utils.names import one_line

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
    dtype: str | None = None,
    batch_size: int | None = None,
    debug: bool = False,
    config: Config | None = None,
    strict: bool = False,
    engine: str | None = None,
    **options: Any,
) -> int:
    """Transcribe or translate recordings; write each text as soon as it is complete.

    Progress and errors are printed on stderr. After an interrupt or a crash the same
    call resumes: recordings that are in ``output`` are skipped.

    Args:
        model_dir: folder of a trained model, or a hub id.
        recordings: from :func:`speechllm.inference.recordings.find_recordings`.
        output: file or folder, see :func:`speechllm.inference.outputs.open_output`;
            standard output if None.
        form: one of ``speechllm.inference.output_formats.FORMATS``.
        task, target_language: as for ``SpeechToText.transcribe``.
        language: as there, or ``auto`` to detect it for each recording.
        device, dtype, config, strict, engine: as for ``SpeechToText.from_pretrained``.
        batch_size: segments decoded concurrently.
        debug: raise unexpected errors instead of listing them.
        **options: of :func:`speechllm.inference.long_form.transcribe_long`.

    Returns:
        The number of recordings that failed.

    Raises:
        UserError: the output cannot be written, the model has no such task or
            language, which are checked before it is loaded, it cannot be loaded, or it
            does not support an option.
    """
    with open_output(recordings, output, form) as out, closing(Progress()) as progress:
        from speechllm.audio.segmentation import MAX_SECONDS, PAUSE_SECONDS, Cutting
        from speechllm.inference.language_detection import LanguageDetector
        from speechllm.inference.loading import choose_device, find_model
        from speechllm.inference.speech_to_text import SpeechToText

        request = {"task": task, "language": language, "target": target_language}
        folder = find_model(model_dir)
        settings = read_settings(config, folder)
        requested, whisper = check_request(
            folder, task, language, target_language, form
        )
        language = None if whisper else language
        cutting = {
            name: options.pop(name, default)
            for name, default in (
                ("max_seconds", MAX_SECONDS),
                ("pause_seconds", PAUSE_SECONDS),
            )
        }
        Cutting(*cutting.values())
        check_search(engine, settings, options)
        device = choose_device(device)
        if form == "ctm":
            options["word_times"] = True
        out.resume(
            {
                **request,
                **settings,
                **options,
                **cutting,
                "form": form,
                "given dtype": dtype,
                **({"given engine": engine} if engine else {}),
                **file_states(folder),
            }
        )
        for entry in out.entries.values():
            progress.report_error(entry.error)
        remaining = [i for i in range(len(recordings)) if i not in out.entries]
        if out.entries:
            progress.note(
                f"{output}: {len(out.entries)} of {len(recordings)} done already"
            )
        if remaining:
            from transformers.utils.logging import disable_progress_bar

            from speechllm.inference.long_form import transcribe_long

            disable_progress_bar()  # for loading weights
            model = SpeechToText.from_pretrained(
                folder, device, dtype, engine, config=config, strict=strict
            )
            model.load_first_pass(options)
            detector = None
            if whisper is not None:
                detector = LanguageDetector(
                    whisper, list(model.prompts.languages), device
                )
            if form in WORD_FORMATS and task != "st" and model.ctc_tokenizer:
                options.setdefault("word_times", True)
            progress.start([recordings[i].expected_seconds() for i in remaining])
            transcriptions = transcribe_long(
                model,
                (recordings[i].stream() for i in remaining),
                task=task,
                language=language,
                target_language=target_language,
                progress=progress.update,
                batch_size=batch_size,
                debug=debug,
                detect=detector,
                **cutting,
                **options,
            )
            for index, found in zip(remaining, transcriptions, strict=True):
                name, error = recordings[index].name, found.error
                if error is not None:
                    error = name_place(recordings[index], error)
                if found.language_probability is not None:
                    share = f"{found.language_probability:.0%}"
                    progress.note(f"{name}: language {found.language} ({share})")
                target = requested.target
                if task == "asr" and found.language is not None:
                    target = found.language
                files: dict[str, str] = {}
                try:
                    for wanted in out.forms or (form,):
                        text = format_transcription(
                            name, found, wanted, target, 2 if out.forms else None
                        )
                        if text is not None:
                            files[wanted] = text
                except Exception as problem:
                    if debug:
                        raise
                    files, error = {}, f"{name}: {describe_error(problem)}"
                # a truncated recording has a text, and would be truncated again
                done = error is None or (found.result is not None and bool(files))
                if out.forms and found.result is None:
                    files = {}  # no JSON file with nothing but an error
                entry = Entry(files.get(form), error, done)
                out.write(index, replace(entry, files=files) if out.forms else entry)
                progress.report_error(error)
    for path in out.kept:
        progress.note(f"the earlier, different output is kept as {path}")
    return sum(entry.error is not None for entry in out.entries.values())


def check_request(
    folder: Path,
    task: str,
    language: str | None,
    target_language: str | None,
    form: str,
) -> tuple[Task, Path | None]:
    """Check task, languages and format against a model folder, without loading it.

    Returns:
        The task, and with the language ``auto`` the folder of the Whisper that detects
        it.

    Raises:
        UserError: the model does not have the task or language, the format does not
            suit it, or languages cannot be detected.
    """
    from speechllm.inference.language_detection import find_whisper
    from speechllm.inference.loading import model_prompts
    from speechllm.text.prompts import requested_task

    prompts = model_prompts(folder)
    whisper = None
    if language == "auto" and "auto" not in prompts.languages:
        whisper, language = find_whisper(folder), None
    requested = requested_task(prompts, task, language, target_language)
    if form == "ctm" and requested.name != "asr":
        raise UserError(
            "--format ctm has the times of words, which a translation does not have; "
            "use --task asr, or json, tsv or srt"
        )
    return requested, whisper


def name_place(recording: Recording, error: str) -> str:
    """Return the error of a recording, with its name in front."""
    name = recording.name
    if recording.source == STANDARD_INPUT:
        name = "standard input"
    if error.startswith((name, recording.source)):
        return error
    return f"{name}: {error}"


def file_states(model_dir: Path) -> dict[str, Any]:
    """Return name, size and time of the files of a model folder and its first pass."""
    from speechllm.models.speech_decoder import FOLDER

    paths = [*model_dir.iterdir(), *(model_dir / FOLDER).glob("*")]
    files = sorted(path for path in paths if path.is_file())
    states = [
        (str(p.relative_to(model_dir)), p.stat().st_size, p.stat().st_mtime_ns)
        for p in files
    ]
    return {"model": str(model_dir.resolve()), "files": states}


class Progress:
    """Progress bar and messages on stderr; no failure of the display ends the work."""

    def __init__(self) -> None:
        self.bar: Any = None

    def start(self, expected: Sequence[float | None]) -> None:
        """Show the bar.

        Args:
            expected: seconds of each recording by its header; None if unknown.
        """
        with suppress(Exception):
            from tqdm import tqdm

            known = [seconds for seconds in expected if seconds is not None]
            unknown = len(known) < len(expected)
            self.bar = tqdm(
                total=None if unknown else sum(known),
                file=sys.stderr,
                bar_format=BAR_WITHOUT_TOTAL if unknown else BAR,
            )

    def update(self, seconds: float) -> None:
        """Add seconds of audio, also more than the headers promise."""
        with suppress(Exception):
            if self.bar.total is not None:
                self.bar.total = max(self.bar.total, self.bar.n + seconds)
            self.bar.update(seconds)

    def note(self, line: str) -> None:
        """Print a line above the bar."""
        with suppress(Exception):
            if self.bar is None:
                print(one_line(line), file=sys.stderr)
            else:
                self.bar.write(one_line(line), file=sys.stderr)

    def report_error(self, error: str | None) -> None:
        """Print the error of a recording, if there is one."""
        if error is not None:
            self.note(f"error: {error}")

    def close(self) -> None:
        """Leave the bar as it is."""
        with suppress(Exception):
            self.bar.close()
