"""Responses of the server: transcriptions and errors as in the OpenAI API."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException  # FastAPI's class is derived from it

from speechllm.inference.long_form import Transcription
from speechllm.inference.output_formats import format_transcription, json_segments
from speechllm.text.tasks import Task
from speechllm.utils.errors import UserError, is_out_of_memory, reason_of

RETRY_SECONDS = 5  # after which a refused client may try again
_KINDS = {429: "rate_limit_error"} | dict.fromkeys((500, 503, 507), "server_error")
_MESSAGES = {
    404: "no such address; the API has /v1/audio/transcriptions, "
    "/v1/audio/translations and /v1/models",
    405: "no such method at this address",
    413: "the upload is larger than this server allows (--max_megabytes)",
    500: "internal error; the log of the server has the details",
    503: "the memory of the server is full; send less at once, or try again later",
    507: "the disk of the server for uploads (TMPDIR) is full; try again later",
}
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def refusal(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> HTTPException:
    """Return an exception with an error object of the OpenAI API.

    Args:
        status: of HTTP.
        message: for the client.
        param: field of the request that is wrong.
        code: short name of the error.
    """
    headers = {}
    if status in (429, 503, 507):
        headers["Retry-After"] = str(RETRY_SECONDS)
    if status == 413:  # read no more of the upload
        headers["Connection"] = "close"
    kind = _KINDS.get(status, "invalid_request_error")
    error = {"message": message, "type": kind, "param": param, "code": code}
    return HTTPException(status, {"error": error}, headers)


def as_refusal(error: Exception) -> HTTPException:
    """Return the exception for the client."""
    if isinstance(error, UserError):
        return refusal(400, reason_of(error))
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        param, reason = str(first["loc"][1]), first["msg"]
        if param == "file":
            reason = "send an audio file as multipart/form-data"
        return refusal(400, f"{param}: {reason}", param)
    if isinstance(error, HTTPException):
        if isinstance(error.detail, dict):
            return error
        return refusal(
            error.status_code, _MESSAGES.get(error.status_code, str(error.detail))
        )
    status = 503 if is_out_of_memory(error) else 500
    if isinstance(error, OSError) and error.errno in _FULL_DISK:
        status = 507
    return refusal(status, _MESSAGES[status])


def error_response(error: Exception) -> JSONResponse:
    """Return the response for an exception of any class."""
    found = as_refusal(error)
    return JSONResponse(found.detail, found.status_code, found.headers)


def transcription_response(
    transcription: Transcription,
    form: str,
    task: Task,
    granularities: Sequence[str],
) -> Response:
    """Return a transcription in a ``response_format`` of the OpenAI API.

    Args:
        form: ``json``, ``text``, ``srt``, ``vtt`` or ``verbose_json``.
        task: that was requested; the language of the speech may be detected.
        granularities: ``segment``, ``word`` or both, for ``verbose_json``.
    """
    translated = task.name != "asr"
    if form in ("text", "srt", "vtt"):
        target = task.target if translated else transcription.language
        text = format_transcription("file", transcription, form, target)
        return PlainTextResponse(text)
    result = transcription.result
    assert result is not None, "without an error there is a result"
    entry: dict[str, Any] = {"text": " ".join(result.text.split())}
    if form == "verbose_json":
        segments = json_segments(result)
        words = [word for segment in segments for word in segment.pop("words", [])]
        entry |= {
            "task": "translate" if translated else "transcribe",
            "language": transcription.language,
            "duration": round(transcription.seconds, 3),
        }
        if "segment" in granularities:
            entry["segments"] = segments
        if "word" in granularities:
            entry["words"] = words
    return JSONResponse(entry)


def event(content: Mapping[str, Any]) -> str:
    """Return a server-sent event."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
