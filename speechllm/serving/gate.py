"""Admission of requests, before anything of their body is read."""

from __future__ import annotations

import asyncio
import hmac
import time
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from speechllm.serving.metrics import Metrics
from speechllm.serving.responses import error_response, refusal

UPLOAD_SECONDS = 60.0  # without a byte of an upload, after which it is refused
_PATHS = ("/v1/audio/transcriptions", "/v1/audio/translations", "/v1/models")


@dataclass
class Admission:
    """Requests in work and the rules for new ones.

    Attributes:
        max_requests: maximum number of uploads at once, in work or waiting.
        max_bytes: maximum size of an upload.
        key: that clients send; None: anyone may send requests.
        active: number of uploads in work or waiting.
        closing: new requests are refused.
    """

    max_requests: int
    max_bytes: int
    key: str | None = None
    active: int = 0
    closing: bool = False

    def refuse(self, method: str, headers: Headers) -> HTTPException | None:
        """Return the reason to refuse a request, or None."""
        if self.key is not None:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self.key.encode()):
                return refusal(401, "wrong or missing API key", code="invalid_api_key")
        if self.closing:
            return refusal(503, "the server is shutting down", code="shutting_down")
        if method == "POST" and self.active >= self.max_requests:
            return refusal(
                429,
                f"{self.max_requests} requests are in work; try again later",
                code="rate_limit_exceeded",
            )
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.max_bytes:
            return HTTPException(413)
        return None


class Gate:
    """ASGI middleware that admits and counts the requests to ``/v1/``."""

    def __init__(self, app: ASGIApp, admission: Admission, metrics: Metrics):
        self.app, self.admission, self.metrics = app, admission, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request of ASGI."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        begin, status = time.monotonic(), 499  # of a client that has left
        uploaded = False  # completely

        async def count(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        async def limit_wait() -> Message:
            nonlocal uploaded
            if uploaded:  # the next message tells that the client has left
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), UPLOAD_SECONDS)
            except TimeoutError:
                raise refusal(
                    408, f"nothing of the upload for {UPLOAD_SECONDS:g} s"
                ) from None
            uploaded = not message.get("more_body", False)
            return message

        refused = self.admission.refuse(scope["method"], Headers(scope=scope))
        uploads = scope["method"] == "POST" and refused is None
        self.admission.active += uploads
        try:
            if refused is not None:
                await error_response(refused)(scope, receive, count)
            else:
                await self.app(scope, limit_wait, count)
        finally:
            self.admission.active -= uploads
            path = scope["path"] if scope["path"] in _PATHS else "other"
            self.metrics.requests.labels(path, status).inc()
            if uploads:
                self.metrics.request_seconds.observe(time.monotonic() - begin)
