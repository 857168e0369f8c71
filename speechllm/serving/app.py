"""The OpenAI audio API as a FastAPI application.

Its parts: :mod:`speechllm.serving.gate` admits requests, FastAPI reads the form, and
:mod:`speechllm.serving.batcher` decodes the recording with those of other requests.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import (
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import numpy as np
from fastapi import Depends, FastAPI, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import (
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from speechllm.audio import SAMPLING_RATE
from speechllm.inference.guard_thresholds import Thresholds
from speechllm.inference.long_form import Transcription
from speechllm.inference.recordings import stream_pipe
from speechllm.serving.batcher import Batcher, Cancelled
from speechllm.serving.gate import Admission, Gate
from speechllm.serving.metrics import Metrics
from speechllm.serving.responses import (
    as_refusal,
    error_response,
    event,
    refusal,
    transcription_response,
)
from speechllm.text.prompts import Prompts
from speechllm.text.tasks import Task
from speechllm.utils.errors import UserError

OPENAI_NAME = "whisper-1"  # many clients send no other name
AUTO = "auto"  # language that is to be detected
#: Of a form; the API has a dozen fields, one of them repeated for each keyword.
_FORM_LIMITS = {"max_files": 1, "max_fields": 1000, "max_part_size": 64 * 1024}
_MAX_HOTWORD_CHARACTERS = 128 * 1024  # of all hotwords of a request

logger = logging.getLogger(__name__)

Text = Annotated[str, Form()]
Formats = Literal["json", "text", "srt", "vtt", "verbose_json"]
Granularities = Annotated[
    list[Literal["segment", "word"]], Form(alias="timestamp_granularities[]")
]


@dataclass(frozen=True)
class Upload:
    """The fields of a form that transcriptions and translations have in common."""

    http: Request
    file: UploadFile
    model: Text = ""
    language: Text = ""
    prompt: Text = ""
    response_format: Annotated[Formats, Form()] = "json"
    temperature: Annotated[float, Form()] = 0.0
    stream: Annotated[bool, Form()] = False
    hotwords: Text = ""
    keywords: Annotated[tuple[str, ...], Form(alias="keywords[]")] = ()
    languages: Annotated[tuple[str, ...], Form(alias="languages[]")] = ()

    @property
    def hotword_list(self) -> list[str]:
        """The hotwords and those of the prompt, and the keywords.

        Commas or line ends separate hotwords; each keyword is a field of its own.
        To OpenAI's whisper-1 a prompt is a list of keywords, whose spelling it shows.
        It may have a heading with a colon and end with a full stop.
        """
        prompt = self.prompt.strip().removesuffix(".").rpartition(":")[2]
        words = f"{self.hotwords},{prompt}".replace("\n", ",").split(",")
        return [" ".join(w.split()) for w in (*words, *self.keywords) if w.strip()]

    @property
    def hotword_field(self) -> str:
        """Name of the first field with hotwords."""
        if self.hotwords.strip():
            return "hotwords"
        return "keywords[]" if self.keywords else "prompt"


@dataclass(frozen=True)
class ServedModel:
    """A model and the limits of its requests.

    Attributes:
        name: that clients send, or :data:`OPENAI_NAME`.
        batcher: decodes with the model.
        language: of requests without one, a code or :data:`AUTO`.
        max_minutes: maximum length of a recording.
    """

    name: str
    batcher: Batcher
    language: str
    max_minutes: float

    @property
    def prompts(self) -> Prompts:
        """Prompts of the model."""
        return self.batcher.model.prompts

    def transcription(self, upload: Upload) -> tuple[dict[str, Task], list[str]]:
        """Return the tasks of a request, by language, and the languages of the speech.

        The latter are one language, or those to choose from; none: any.
        """
        if "asr" not in self.prompts.tasks:
            raise UserError("this model translates only: POST /v1/audio/translations")
        tasks = {code: Task("asr", code, code) for code in self.prompts.languages}
        return tasks, self.languages_of(upload, tasks, self.language)

    def translation(self, upload: Upload) -> tuple[dict[str, Task], list[str]]:
        """Return the same for a translation into English.

        Where the server's language is none to translate from, the default is another.
        """
        guard = self.batcher.model.guard
        tasks = tasks_into_english(self.prompts, guard.thresholds if guard else None)
        if not tasks:
            raise UserError("this model was not trained to translate into English")
        known = self.language in (*tasks, AUTO)
        default = self.language if known else next(iter(tasks))
        return tasks, self.languages_of(upload, tasks, default)

    def languages_of(
        self, upload: Upload, tasks: Mapping[str, Task], default: str
    ) -> list[str]:
        """Return the languages that the speech of a request may have; none: any.

        Raises:
            UserError: the model has no task for one, or this server cannot detect
                which it is.
        """
        field = "languages[]"
        languages = [code for code in dict.fromkeys(upload.languages) if code]
        if not languages or upload.language not in ("", AUTO):
            field, languages = "language", [upload.language or default]
        if languages == [AUTO] and AUTO not in self.prompts.languages:
            languages = []
        known = list(tasks)
        if len(languages) != 1:
            detect = self.batcher.detect
            if detect is None:
                message = "detection needs a server with --language auto"
                raise UserError(f"{field}: {message}")
            known = [code for code in known if code in detect.languages]
        for code in languages:
            if code not in known:
                raise UserError(
                    f"{field}: the model has this task for {', '.join(known)}; "
                    f"not for {code!r}"
                )
        return languages

    def check_name(self, model: str) -> None:
        """Raise HTTPException for the name of another model."""
        if model not in ("", self.name, OPENAI_NAME):
            raise refusal(
                404,
                f"model: this server has {self.name} (or {OPENAI_NAME}, the same)",
                "model",
                "model_not_found",
            )

    def check(self, upload: Upload) -> None:
        """Raise HTTPException for fields that cannot be fulfilled."""
        self.check_name(upload.model)
        if upload.temperature != 0:
            message = "temperature: only 0; texts are searched, not sampled"
            raise refusal(400, message, "temperature")
        if upload.stream and upload.response_format not in ("json", "text"):
            message = "stream: only with the response formats json and text"
            raise refusal(400, message, "stream")
        words, field = upload.hotword_list, upload.hotword_field
        if words and not self.batcher.takes_hotwords:
            message = "hotwords need an LLM and a search without sampling or vLLM"
            raise refusal(400, f"{field}: {message}", field)
        if sum(map(len, words)) > _MAX_HOTWORD_CHARACTERS:
            message = f"hotwords have {_MAX_HOTWORD_CHARACTERS:,} characters at most"
            raise refusal(400, f"{field}: {message}", field)


def tasks_into_english(
    prompts: Prompts, thresholds: Thresholds | None
) -> dict[str, Task]:
    """Return a model's tasks of translation into English, by source language.

    The guard's thresholds are of the tasks that the model was trained for; without
    them all languages of the prompts count.
    """
    tasks = {}
    for source in prompts.languages if "en" in prompts.languages else ():
        for name in ("asr_st", "st"):
            task = Task(name, source, "en")
            trained = thresholds is None or task.group in thresholds.groups
            if source != "en" and name in prompts.tasks and trained:
                tasks[source] = task
    return tasks


def create_app(served: ServedModel, admission: Admission, metrics: Metrics) -> Gate:
    """Return the application of a model, behind its gate."""
    metrics.watch(lambda: admission.active, lambda: served.batcher.waiting)
    readers = ThreadPoolExecutor(admission.max_requests, "reader")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        readers.shutdown()
        served.batcher.close()

    app = FastAPI(
        title="speechllm",
        lifespan=lifespan,
        docs_url=None,  # they load scripts from another server
        redoc_url=None,
        max_body_size=admission.max_bytes,
        form_limits=_FORM_LIMITS,
    )

    async def handle(_: Request, error: Exception) -> Response:
        if isinstance(error, Cancelled):
            return Response(status_code=499)  # to nobody
        if isinstance(error, HTTPException):
            cause = error.__cause__
            if isinstance(cause, (OSError, MemoryError)):  # to FastAPI a bad form
                raise cause
        return error_response(error)

    for kind in (UserError, RequestValidationError, HTTPException, Cancelled):
        app.add_exception_handler(kind, handle)
    app.add_exception_handler(Exception, handle)

    async def transcribe(
        upload: Upload,
        tasks: Mapping[str, Task],
        languages: Sequence[str],
        on_text: Callable[[str], object] | None = None,
    ) -> Transcription:
        """Transcribe an upload; drop it when the client leaves."""
        job = served.batcher.job(tasks, languages, on_text, upload.hotword_list)
        blocks = stream_pipe(upload.file.file, "file")
        work: asyncio.Future = asyncio.get_running_loop().run_in_executor(
            readers,
            served.batcher.transcribe,
            job,
            limit_seconds(blocks, 60 * served.max_minutes),
        )
        left: asyncio.Future = asyncio.ensure_future(wait_until_left(upload.http))
        try:
            await asyncio.wait([work, left], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise Cancelled
            found = await work
        finally:
            left.cancel()
            served.batcher.cancel(job)
            await asyncio.gather(work, return_exceptions=True)
        metrics.audio_seconds.inc(found.seconds)
        return found

    async def respond(
        upload: Upload,
        tasks: Mapping[str, Task],
        languages: Sequence[str],
        granularities: Sequence[str] = ("segment",),
    ) -> Response:
        if upload.stream:
            events = text_events(partial(transcribe, upload, tasks, languages))
            first = await anext(events)  # a broken file is an error, not a stream
            return StreamingResponse(
                _chain(first, events), media_type="text/event-stream"
            )
        found = await transcribe(upload, tasks, languages)
        task = next(iter(tasks.values()))  # its name and target are those of the others
        return transcription_response(
            found, upload.response_format, task, granularities
        )

    @app.post("/v1/audio/transcriptions")
    async def transcriptions(
        upload: Annotated[Upload, Depends()],
        granularities: Granularities = ["segment"],  # noqa: B006
    ) -> Response:
        served.check(upload)
        if "word" in granularities and not served.batcher.options.word_times:
            message = "timestamp_granularities[]: this model has no times of words"
            raise refusal(400, message, "timestamp_granularities[]")
        tasks, languages = served.transcription(upload)
        return await respond(upload, tasks, languages, granularities)

    @app.post("/v1/audio/translations")
    async def translations(upload: Annotated[Upload, Depends()]) -> Response:
        served.check(upload)
        return await respond(upload, *served.translation(upload))

    card = {
        "id": served.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "speechllm",
    }

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [card]})

    @app.get("/v1/models/{name:path}")
    async def model_card(name: str) -> Response:
        served.check_name(name)
        return JSONResponse(card)

    @app.get("/health")
    async def health() -> Response:
        if admission.closing:
            return error_response(refusal(503, "the server is shutting down"))
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def show_metrics() -> Response:
        text = generate_latest(metrics.registry)
        return PlainTextResponse(text, media_type=CONTENT_TYPE_LATEST)

    return Gate(app, admission, metrics)


async def text_events(
    transcribe: Callable[[Callable[[str], object]], object],
) -> AsyncIterator[str]:
    """Yield server-sent events: each part of the text that is final, then all of it.

    Args:
        transcribe: coroutine function that calls its argument, in any thread, with
            each part.

    Raises:
        Exception: of ``transcribe`` before the first event; later it is an event.
    """
    loop = asyncio.get_running_loop()
    parts: asyncio.Queue[str | None] = asyncio.Queue()
    text = ""

    def put(part: str | None) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(parts.put_nowait, part)

    work = asyncio.create_task(transcribe(put))
    work.add_done_callback(lambda _: put(None))
    try:
        while (part := await parts.get()) is not None:
            text += part
            yield event({"type": "transcript.text.delta", "delta": part})
        whole = " ".join((await work).result.text.split())
        if rest := whole.removeprefix(text):
            yield event({"type": "transcript.text.delta", "delta": rest})
        yield event({"type": "transcript.text.done", "text": whole})
    except Exception as error:
        if not text:
            raise
        if not isinstance(error, (UserError, Cancelled)):
            logger.exception("a request failed")
        yield event(as_refusal(error).detail)
    finally:
        work.cancel()


async def _chain(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for item in rest:
        yield item


async def wait_until_left(http: Request) -> None:
    """Wait until the client of a request has left."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def limit_seconds(blocks: Iterable[np.ndarray], seconds: float) -> Iterator[np.ndarray]:
    """Yield the blocks of a recording.

    Raises:
        UserError: it is longer than ``seconds``.
    """
    count = 0
    for block in blocks:
        count += len(block)
        if count > seconds * SAMPLING_RATE:
            raise UserError(
                f"file: longer than {seconds / 60:g} minutes, the limit of this "
                "server (--max_minutes)"
            )
        yield block
