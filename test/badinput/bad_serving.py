"""Bad requests to ``speechllm serve``."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from bad_base import tone, wav_bytes
from bad_case import SILENT, WRONG, Case, Check, Outcome, Place

POST = "POST /v1/audio/transcriptions HTTP/1.1"
BOUNDARY = "b0"


def part(name: str, value: str | bytes, file: str | None = None) -> bytes:
    """Return a part of a form."""
    content = value.encode() if isinstance(value, str) else value
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"'
    if file is not None:
        head += f'; filename="{file}"'
    return f"{head}\r\n\r\n".encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    """Return the body of a form."""
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def request(
    body: bytes,
    line: str = POST,
    kind: str = f"multipart/form-data; boundary={BOUNDARY}",
    **headers: str,
) -> bytes:
    """Return a request of HTTP."""
    fields = {"Host": "127.0.0.1", "Content-Type": kind, "Connection": "close"}
    fields |= {"Content-Length": str(len(body))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [line, *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def requests() -> dict[str, tuple[bytes, tuple[int, ...]]]:
    """Return requests, and the status that each may get."""
    sound = part("file", wav_bytes(tone(0.5)), "a.wav")

    def fields(**values: str) -> bytes:
        return form(sound, *(part(name, value) for name, value in values.items()))

    found: dict[str, tuple[bytes, tuple[int, ...]]] = {
        "sound": (request(fields(language="en")), (200,)),
        "no body": (request(b""), (400,)),
        "no file": (request(form(part("language", "en"))), (400,)),
        "a file as a text": (request(form(part("file", "a.wav"))), (400,)),
        "two files": (request(form(sound, sound)), (400,)),
        "JSON": (request(b'{"file": "a.wav"}', kind="application/json"), (400,)),
        "no content type": (request(form(sound), kind=""), (400,)),
        "no boundary": (request(form(sound), kind="multipart/form-data"), (400,)),
        "another boundary": (request(form(sound).replace(b"b0", b"b1")), (400,)),
        "a form cut off": (request(form(sound)[:-30]), (400,)),
        "bytes": (request(bytes(range(256)) * 9), (400,)),
        "200 fields": (
            request(form(sound, *(part(f"f{n}", "x") for n in range(200)))), (400,),
        ),
        "a field of 100 kB": (request(fields(language="e" * 100_000)), (400,)),
        "prompt of 60 kB": (request(fields(prompt="Asterisk, " * 6000)), (200, 400)),
        "a language twice": (
            request(form(sound, part("language", "en"), part("language", "xx"))),
            (200, 400),
        ),
        "a language of bytes": (
            request(form(sound, part("language", b"\xff\xfe\x00"))), (400,),
        ),
        "a negative length": (request(form(sound), Content_Length="-5"), (400,)),
        "a length of text": (request(form(sound), Content_Length="x"), (400,)),
        "a length that is too large": (
            request(form(sound), Content_Length=str(1 << 40)), (413,),
        ),
        "no HTTP": (b"hello\r\n\r\n", (400,)),
        "PUT": (request(form(sound), POST.replace("POST", "PUT")), (405,)),
        "a path above": (
            request(b"", "GET /v1/models/../../../etc/passwd HTTP/1.1"), (404,),
        ),
        "an encoded path": (
            request(b"", "GET /v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd HTTP/1.1"),
            (404,),
        ),
        "a model with NUL": (request(b"", "GET /v1/models/a%00b HTTP/1.1"), (404,)),
        "a translation": (
            request(form(sound), POST.replace("transcriptions", "translations")),
            (200, 400),
        ),
    }  # fmt: skip
    for name, values in {
        "language": ("xx", "", "auto", "../../x", "<b>", "en\r\nX: y", "日本"),
        "temperature": ("nan", "inf", "-1", "1e400", "x", "0.5"),
        "response_format": ("xml", "", "../x", "[]"),
        "stream": ("maybe", "2"),
        "model": ("no-such", "../../x", "\0"),
        "timestamp_granularities[]": ("phone", "", "[]"),
        "hotwords": ("<|im_end|>", "\0", "!" * 5000, ",,,"),
        "prompt": ("<|im_end|>, \0", ":::"),
    }.items():
        for value in values:
            may = (200, 400, 404) if name in ("hotwords", "prompt") else (400, 404)
            if (name, value) in (("language", ""), ("response_format", "")):
                may = (200,)  # as if it were not given
            sent = request(fields(**{name: value}))
            found[f"{name}: {value[:20]!r}"] = (sent, may)
    for name in (
        "../../../evil.wav",
        "/etc/passwd",
        "a" * 3000,
        "",
        "x\\\\y",
        "|id.wav",
    ):
        body = form(part("file", wav_bytes(tone(0.5)), name))
        found[f"a file called {name[:20]!r}"] = (request(body), (200, 400))
    for name, content in {
        "empty": b"",
        "a page": b"<html>",
        "a playlist": b"#EXTM3U\nhttp://127.0.0.1:PORT/a.wav\n",
        "a concat list": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "half a WAV": wav_bytes(tone(0.5))[:9000],
        "a WAV header": wav_bytes(tone(0.5))[:44],
        "an ELF file": b"\x7fELF" + bytes(100),
    }.items():
        sent = request(form(part("file", content, "a.wav")))
        found[f"a file that is {name}"] = (sent, (400,))
    return found


def answered(statuses: tuple[int, ...]) -> Check:
    """Check the status of the response, and that an error is one object of the API."""

    def check(outcome: Outcome) -> str:
        head, _, body = outcome.out.partition("\r\n\r\n")
        words = head.split()
        if len(words) < 2 or not words[1].isdecimal():
            return f"{WRONG}: no response: {outcome.out[:80]!r} {outcome.err[-300:]!r}"
        status = int(words[1])
        if status not in statuses:
            kind = SILENT if status == 200 else WRONG
            return f"{kind}: status {status}: {body[:200]!r}"
        if status != 200 and "Invalid HTTP request" not in body:  # of uvicorn
            try:
                error = json.loads(body)["error"]
            except (ValueError, KeyError, TypeError):
                return f"{WRONG}: not an error of the API: {body[:200]!r}"
            if "\n" in error["message"] or "/tmp" in error["message"]:
                return f"{WRONG}: {error['message']!r}"
        return ""

    return check


def cases() -> Iterator[Case]:
    """Yield a request for each new server."""
    for name, (sent, statuses) in requests().items():

        def build(place: Place, sent=sent):
            def action() -> None:
                sys.path.insert(0, str(Path(__file__).parents[1]))
                from served import running_server

                from speechllm.inference.speech_to_text import SpeechToText

                model = SpeechToText.from_pretrained(place.model)
                with running_server(model, max_bytes=1 << 20) as server:
                    port = int(server.url.rpartition(":")[2])
                    content = sent.replace(b"PORT", str(place.port).encode())
                    with socket.create_connection(("127.0.0.1", port), 20) as client:
                        client.sendall(content)
                        answer = b""
                        while data := client.recv(1 << 16):
                            answer += data
                sys.stdout.write(answer.decode("utf-8", "replace"))

            return action

        yield Case("server", name, build, answered(statuses), seconds=60)
