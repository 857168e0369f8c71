"""Web page that transcribes a recording, on Gradio (``speechllm demo``).

Words are coloured by their confidence; a click on one plays it. Texts and file names
are escaped where they become HTML.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

from speechllm.audio.io import audio_info, stream_audio
from speechllm.decoding.result import Result
from speechllm.inference.long_form import Transcription, transcribe_long
from speechllm.inference.output_formats import format_transcription
from speechllm.inference.speech_to_text import SpeechToText
from speechllm.inference.subtitles import words_of_segments
from speechllm.text.normalization import LANGUAGES_WITHOUT_SPACES
from speechllm.utils.errors import UserError, describe_error

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read by the import

import gradio
from transformers.utils.logging import disable_progress_bar

#: Choices of the page, and the tasks of the model that each runs
OUTPUTS = {
    "Transcript": ("asr",),
    "Transcript, then translation": ("asr", "st"),
    "Translation": ("st",),
    "Both in one output": ("asr_st",),
}
FORMATS = ("txt", "srt", "vtt", "json")
#: Options of ``Blocks.launch``, without those of the looks
LIMITS = {
    "server_name": "127.0.0.1",
    "share": False,
    "ssr_mode": False,
    "max_file_size": "500mb",
}
MAX_QUEUE = 16  # requests that wait; one is processed at a time
CACHE_SECONDS = 3600  # after which recordings and downloads are deleted
BATCH_SIZE = 2  # small, since the progress is reported every few batches

CSS = """
.speechllm button { all: unset; cursor: pointer; padding: 0 2px; border-radius: 3px; }
.speechllm button:hover, .speechllm button:focus { outline: 1px solid; }
.speechllm p { line-height: 1.8; }
.speechllm audio { width: 100%; }
"""
#: Plays a word, from its start to its end
SCRIPT = """<script>
document.addEventListener("click", (event) => {
  const word = event.target.closest(".speechllm [data-start]");
  const audio = document.querySelector(".speechllm audio");
  if (!word || !audio) return;
  audio.ontimeupdate = () => {
    if (audio.currentTime < Number(word.dataset.end)) return;
    audio.pause();
    audio.ontimeupdate = null;
  };
  audio.currentTime = Number(word.dataset.start);
  audio.play();
});
</script>"""
LOOKS = {"css": CSS, "head": SCRIPT, "footer_links": []}


def refuse_addresses(component: gradio.Audio) -> None:
    """Let a component take uploaded files only; Gradio downloads addresses, too.

    A subclass would do the same, but Gradio writes a stub of it next to this file.
    https://github.com/gradio-app/gradio/blob/main/gradio/processing_utils.py,
    ``async_move_files_to_cache``.
    """
    take = component.async_move_resource_to_block_cache

    async def take_upload(path: str | Path | None) -> str | None:
        if "://" in str(path):
            raise gradio.Error("A recording is a file, not an address.")
        return await take(path)

    component.async_move_resource_to_block_cache = take_upload  # type: ignore[method-assign]


def run_demo(model_dir: str, device: str) -> None:
    """Load a model and serve its page on this machine, until an interrupt."""
    disable_progress_bar()  # for loading weights
    model = SpeechToText.from_pretrained(model_dir, device)
    make_page(model, model_dir).launch(**LIMITS, **LOOKS)


def make_page(model: SpeechToText, title: str) -> gradio.Blocks:
    """Return the page of a model.

    Raises:
        UserError: the model has none of the tasks in ``OUTPUTS``.
    """
    known = set(model.prompts.tasks)
    outputs = [name for name, tasks in OUTPUTS.items() if known.issuperset(tasks)]
    if not outputs:
        raise UserError(f"{title}: the model has none of the tasks asr, st, asr_st")
    languages = [(name, code) for code, name in model.prompts.languages.items()]

    def run(
        source: str | None,
        output: str,
        language: str,
        target: str,
        progress: gradio.Progress = gradio.Progress(),  # noqa: B008
    ) -> Iterator[tuple[str, str, str, list[str]]]:
        if source is None:
            raise gradio.Error("Record or upload speech first.")
        try:
            found = transcribe_file(
                model, source, OUTPUTS[output], language, target, progress
            )
            with TemporaryDirectory() as folder:
                files = write_files(Path(folder), source, found, language, target)
                # Gradio copies the files before it resumes this function
                yield (recording_html(source, found), *columns(found, language), files)
        except Exception as error:
            message = describe_error(error).replace(source, Path(source).name)
            raise gradio.Error(escape(message)) from error

    with gradio.Blocks(title=title, delete_cache=(CACHE_SECONDS,) * 2) as page:
        source = gradio.Audio(
            sources=["upload", "microphone"],
            type="filepath",
            label="Speech",
            buttons=["download"],  # not the one that shares it on the hub
        )
        refuse_addresses(source)
        with gradio.Row():
            output = gradio.Dropdown(outputs, label="Output")
            language = gradio.Dropdown(languages, label="Language of the speech")
            target = gradio.Dropdown(
                languages,
                value=languages[-1][1],
                label="Language of the translation",
                visible=known != {"asr"},
            )
        button = gradio.Button("Transcribe", variant="primary")
        recording = gradio.HTML(elem_classes="speechllm")
        with gradio.Row():
            texts = [gradio.HTML(elem_classes="speechllm") for _ in range(2)]
        files = gradio.File(label="Downloads", file_count="multiple")
        button.click(
            run,
            [source, output, language, target],
            [recording, *texts, files],
            show_progress_on=recording,
            api_visibility="private",
        )
    return page.queue(max_size=MAX_QUEUE)


def transcribe_file(
    model: SpeechToText,
    source: str,
    tasks: tuple[str, ...],
    language: str,
    target: str,
    progress: Callable[..., object],
) -> dict[str, Transcription]:
    """Transcribe a recording, once for each task.

    Args:
        progress: called with the completed share of the work and a text.

    Raises:
        UserError: the recording cannot be read.
    """
    seconds = audio_info(source).seconds
    total, done = seconds * len(tasks), 0.0

    def report(more: float) -> None:
        nonlocal done
        done = min(done + more, total)
        progress(done / (total or 1), f"{done:.0f} of {total:.0f} s of audio")

    report(0.0)
    found = {}
    for task in tasks:
        (found[task],) = transcribe_long(
            model,
            [stream_audio(source)],
            task,
            language,
            None if task == "asr" else target,
            batch_size=BATCH_SIZE,
            progress=report,
            word_times=task != "st" and model.ctc_tokenizer is not None,
        )
        if found[task].result is None:
            raise UserError(str(found[task].error))
    return found


def columns(found: dict[str, Transcription], language: str) -> tuple[str, str]:
    """Return transcript and translation as HTML, empty where there is none."""
    results = {task: f.result for task, f in found.items() if f.result is not None}
    transcript = results.get("asr") or results.get("asr_st")
    translation = results.get("st") or results.get("asr_st")
    return (
        "" if transcript is None else transcript_html(transcript, language),
        "" if translation is None else segments_html(translation),
    )


def transcript_html(result: Result, language: str) -> str:
    """Return a transcript as HTML: its words, or its segments without word times."""
    if result.words is None:
        if result.transcript is None:
            return segments_html(result)
        return f"<p>{escape(result.transcript)}</p>"
    gap = "" if language in LANGUAGES_WITHOUT_SPACES else " "
    paragraphs = (
        gap.join(button(w.start, w.end, w.text, w.confidence) for w in words)
        for words in words_of_segments(result.passages or [], result.words)
    )
    return "".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)


def segments_html(result: Result) -> str:
    """Return the segments of a text as HTML."""
    return "".join(
        f"<p>{button(segment.start, segment.end, segment.text)}</p>"
        for segment in result.passages or []
    )


def button(start: float, end: float, text: str, confidence: float | None = None) -> str:
    """Return a text that plays its seconds; orange if its confidence is low."""
    looks = ""
    if confidence is not None:
        colour = f"rgb(255 140 0 / {1 - confidence:.0%})"
        looks = f' style="background: {colour}" title="confidence {confidence:.0%}"'
    times = f'data-start="{start:.3f}" data-end="{end:.3f}"'
    return f"<button {times}{looks}>{escape(text)}</button>"


def recording_html(source: str, found: dict[str, Transcription]) -> str:
    """Return the player of a recording, with its warnings, as HTML."""
    notes = {f.error for f in found.values() if f.error is not None}
    notes |= {flag for f in found.values() if f.result for flag in f.result.flags}
    warning = "".join(f"<p>Warning: {escape(note)}</p>" for note in sorted(notes))
    address = escape(f"/gradio_api/file={quote(source)}")
    name = escape(Path(source).name)
    return f'<p>{name}</p>{warning}<audio controls src="{address}"></audio>'


def write_files(
    folder: Path,
    source: str,
    found: dict[str, Transcription],
    language: str,
    target: str,
) -> list[str]:
    """Write each text in each of ``FORMATS``; return the paths."""
    name = Path(source).stem
    paths = []
    for task, transcription in found.items():
        code = language if task == "asr" else target
        for form in FORMATS:
            text = format_transcription(name, transcription, form, code, 2)
            if text is not None:
                paths.append(folder / f"{name}.{code}.{form}")
                paths[-1].write_text(text, encoding="utf-8")
    return [str(path) for path in paths]
