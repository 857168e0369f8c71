"""Bad requests, limits, clients that leave, and the end of the server."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import httpx2
import numpy as np
import openai
import pytest
import soundfile
from processes import wait_until
from served import RATE, Served, running_server, wav

from speechllm import cli
from speechllm.serving import batcher
from speechllm.serving.server import is_loopback, listen
from speechllm.utils.errors import UserError

NAMES = (
    "../../../../tmp/evil.wav",
    "/etc/passwd",
    "<img src=x onerror=alert(1)>.wav",
    "a\\..\\b.wav",
    "日本\u202e.wav",
)


@pytest.fixture(scope="module")
def served(model):
    with running_server(model) as found:
        yield found


def error_of(response: httpx2.Response) -> dict:
    """Return the error object of a response, which gives nothing away."""
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    assert not {"/tmp", "/work", "speechllm."} & set(response.text.split())
    assert "\n" not in error["message"]
    return error


def test_bad_files_are_refused(served, prompt):
    nan, long = io.BytesIO(), io.BytesIO()
    samples = np.full(RATE, np.nan, np.float32)
    soundfile.write(nan, samples, RATE, format="wav", subtype="FLOAT")
    soundfile.write(long, np.zeros(121 * RATE), RATE, format="flac")
    for content, expected in (
        (b"", "empty"),
        (b"x", "not a readable audio file"),
        (b"<html><script>alert(1)</script>" * 99, "not a readable audio file"),
        (b"PK\x03\x04" + bytes(999), "not a readable audio file"),
        (b"RIFF", "file: "),
        (prompt[:50_000], "cut off"),
        (b"#EXTM3U\nhttp://127.0.0.1:9/a.wav\n", "playlist"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n/etc/passwd\n", "playlist"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "playlist"),
        (b"http://127.0.0.1:9/a.wav\n", "playlist"),
        (nan.getvalue(), "NaN"),
        (long.getvalue(), "longer than 2 minutes"),
    ):
        for stream in ("false", "true"):
            response = served.post(content, stream=stream)
            assert response.status_code == 400, content[:20]
            error = error_of(response)
            assert error["type"] == "invalid_request_error"
            assert expected in error["message"]
            assert error["message"].startswith("file: ")
    assert served.post(prompt).status_code == 200


@pytest.mark.parametrize(
    "field, value, status",
    [
        ("response_format", "docx", 400),
        ("language", "xx", 400),
        ("language", "../../etc", 400),
        ("language", "auto", 400),
        ("languages[]", "xx", 400),
        ("languages[]", ["en", "fr"], 400),
        ("keywords[]", ["x" * 60_000] * 3, 400),
        ("temperature", "x", 400),
        ("temperature", "nan", 400),
        ("temperature", "0.7", 400),
        ("stream", "perhaps", 400),
        ("prompt", "x" * 100_000, 400),
        ("timestamp_granularities[]", "letter", 400),
        ("model", "no-such", 404),
        ("model", "<script>", 404),
    ],
)
def test_bad_fields_are_refused(served, prompt, field, value, status):
    response = served.post(prompt, **{field: value})
    assert response.status_code == status
    error = error_of(response)
    if value != "x" * 100_000:  # a part that is too long
        assert field in error["message"]


def test_subtitles_are_not_streamed(served, prompt):
    response = served.post(prompt, response_format="srt", stream="true")
    assert (response.status_code, error_of(response)["param"]) == (400, "stream")


def test_other_bodies_and_addresses(served, prompt):
    url = f"{served.url}/v1/audio/transcriptions"
    for request, status in (
        ({"json": {"file": "a"}}, 400),
        ({"content": b""}, 400),
        ({"data": {"file": "text"}}, 400),
        ({"files": [("file", ("a", prompt)), ("file", ("b", prompt))]}, 400),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400),
        ({"files": {"file": ("a", prompt)}, "data": {f"f{n}": "" for n in range(1001)}},
         400),
    ):  # fmt: skip
        response = httpx2.post(url, **request)
        assert response.status_code == status
        error_of(response)
    for method, path, status in (
        ("GET", "/v1/audio/transcriptions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/models/no-such", 404),
        ("GET", "/v1/../etc/passwd", 404),
        ("GET", "/v1/models/..%2f..%2fetc", 404),
        ("POST", "/v1/audio/speech", 404),
        ("GET", "/", 404),
    ):
        response = httpx2.request(method, served.url + path)
        assert response.status_code == status, path
        error_of(response)


def test_names_of_files_are_not_used(served, prompt, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    text = served.post(prompt).json()
    for name in NAMES:
        assert served.post(prompt, name).json() == text
        response = served.post(b"no audio", name)
        assert response.status_code == 400
        assert name not in response.text
        error_of(response)
    assert served.post(prompt, "x" * 99_999).status_code == 400
    assert list(tmp_path.iterdir()) == []
    assert not Path("/tmp/evil.wav").exists()


def test_key(model, prompt):
    with running_server(model, key="secret") as served:
        for key in ("wrong", "secre", "secret2", "é"):
            header = {"Authorization": f"Bearer {key}".encode()}
            response = httpx2.get(f"{served.url}/v1/models", headers=header)
            assert (response.status_code, error_of(response)["code"]) == (
                401,
                "invalid_api_key",
            )
        assert served.post(prompt).status_code == 401
        for path in ("/health", "/metrics"):
            assert httpx2.get(served.url + path).status_code == 200
        create = served.client("secret").audio.transcriptions.create
        assert create(file=("a.wav", prompt), model="tiny").text
        with pytest.raises(openai.AuthenticationError):
            served.client("x").audio.transcriptions.create(
                file=("a.wav", prompt), model="tiny"
            )


def test_large_uploads_are_refused_early(model):
    with running_server(model, max_bytes=100_000) as served:
        with pytest.raises(openai.APIStatusError) as caught:
            served.client().audio.transcriptions.create(
                file=("a.wav", bytes(100_000)), model="tiny"
            )
        assert caught.value.status_code == 413
        sent = 0

        def endless():
            nonlocal sent
            yield (
                b'--x\r\nContent-Disposition: form-data; name="file"; '
                b'filename="a"\r\n\r\n'
            )
            while True:
                sent += 10_000
                yield bytes(10_000)

        kind = {"content-type": "multipart/form-data; boundary=x"}
        url = f"{served.url}/v1/audio/transcriptions"
        response = httpx2.post(url, content=endless(), headers=kind)
        assert response.status_code == 413
        error_of(response)
        assert sent < 20_000_000  # buffers of the sockets
        assert served.admission.active == 0


def test_full_queue(model, prompt, stopped):
    with running_server(model, max_requests=3) as served, ThreadPoolExecutor() as pool:
        waiting = [pool.submit(served.post, prompt) for _ in range(3)]
        wait_until(lambda: served.admission.active == 3)
        response = served.post(prompt)
        assert (response.status_code, error_of(response)["type"]) == (
            429,
            "rate_limit_error",
        )
        assert int(response.headers["retry-after"]) > 0
        assert httpx2.get(f"{served.url}/health").status_code == 200
        stopped.set()
        assert {w.result().status_code for w in waiting} == {200}
        assert served.post(prompt).status_code == 200


def test_thousand_requests_at_once(model, prompt):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))

    async def send_all(url: str) -> list[httpx2.Response]:
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(limits=limits, timeout=120) as client:
            return await asyncio.gather(
                *(client.post(url, files={"file": ("a", prompt)}) for _ in range(1000))
            )

    with running_server(model, max_requests=8) as served:
        text = served.post(prompt).json()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = asyncio.run(send_all(f"{served.url}/v1/audio/transcriptions"))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert {r.status_code for r in found} == {200, 429}
        assert all(r.json() == text for r in found if r.status_code == 200)
        assert grown < 400 << 10  # KiB, of the clients too: 100 kB each
        assert served.admission.active == 0
        assert served.post(prompt).json() == text
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def raw_request(url: str, content: bytes, extra: bytes = b"") -> bytes:
    """Return the bytes of a request."""
    body = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        + content
        + b"\r\n"
        + extra
        + b"--x--\r\n"
    )
    return (
        b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: a\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\n"
        + f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


def connect(served: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])))


def test_client_leaves_during_the_upload(served, prompt):
    with connect(served) as client:
        client.sendall(raw_request(served.url, prompt)[:-5000])
        wait_until(lambda: served.admission.active == 1)
    wait_until(lambda: served.admission.active == 0)
    assert served.post(prompt).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_client_leaves_during_decoding(model, prompt, lecture, stopped, stream):
    extra = b'--x\r\nContent-Disposition: form-data; name="stream"\r\n\r\ntrue\r\n'
    with running_server(model, batch_size=2) as served, ThreadPoolExecutor() as pool:
        stays = pool.submit(served.post, prompt)
        with connect(served) as client:
            client.sendall(raw_request(served.url, lecture, extra if stream else b""))
            wait_until(lambda: served.admission.active == 2)
            wait_until(lambda: served.batcher.waiting >= 2)
        wait_until(lambda: served.batcher.waiting <= 1)  # that of the other client
        stopped.set()
        assert stays.result().status_code == 200
        wait_until(lambda: served.admission.active == 0)
        assert served.post(prompt).json() == stays.result().json()


def test_failure_of_one_recording_leaves_the_others_alone(
    model, speech, prompt, monkeypatch, stopped
):
    decode = model.decode_all
    short = wav(speech[:RATE])

    errors = []

    def fail(waves, *rest, **options):
        if any(len(wave) == RATE for wave in waves):
            assert stopped.wait(60)
            raise errors[-1]
        return decode(waves, *rest, **options)

    monkeypatch.setattr(model, "decode_all", fail)
    for error, status in (
        (RuntimeError("secret of /tmp"), 500),
        (MemoryError(), 503),
        (UserError("too short"), 400),
    ):
        stopped.clear()
        errors.append(error)
        with running_server(model) as served, ThreadPoolExecutor() as pool:
            sound = pool.submit(served.post, prompt)
            broken = pool.submit(served.post, short)
            streamed = pool.submit(served.post, short, stream="true")
            wait_until(lambda: served.admission.active == 3)
            stopped.set()
            assert sound.result().status_code == 200
            for response in (broken.result(), streamed.result()):
                assert response.status_code == status
                assert "secret" not in error_of(response)["message"]


def test_failure_in_a_stream_is_an_event(model, lecture, monkeypatch):
    decode, calls = model.decode_all, []

    def fail(*arguments, **options):
        calls.append(1)
        if len(calls) > 4:
            raise RuntimeError("secret")
        return decode(*arguments, **options)

    monkeypatch.setattr(model, "decode_all", fail)
    with running_server(model, batch_size=2) as served:
        response = served.post(lecture, stream="true")
        events = [json.loads(e[6:]) for e in response.text.split("\n\n") if e]
        assert events[0]["type"] == "transcript.text.delta"
        assert events[-1]["error"]["type"] == "server_error"
        assert "secret" not in response.text


@pytest.mark.parametrize(
    "place", ["tempfile.SpooledTemporaryFile.rollover", "shutil.copyfileobj"]
)
def test_upload_that_cannot_be_stored_is_an_error_of_the_server(
    model, prompt, monkeypatch, capfd, place
):
    content = wav(np.zeros(40 * RATE, np.float32))  # 1.3 MB, not kept in memory
    full = OSError(errno.ENOSPC, "full")
    with running_server(model) as served:
        for error, status, stream in (
            (full, 507, "false"),
            (full, 507, "true"),
            (OSError(errno.EIO, "secret of /tmp"), 500, "false"),
            (MemoryError(), 503, "true"),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(place, Mock(side_effect=error))
                response = served.post(content, stream=stream)
            assert response.status_code == status
            message = error_of(response)["message"]
            assert "secret" not in message
            assert ("disk of the server" in message) == (error is full)
            assert response.json()["error"]["type"] == "server_error"
        assert served.post(prompt).status_code == 200
    log = capfd.readouterr().err
    assert log.count("Exception in ASGI application") == 4
    assert log.count("[Errno 28] full") >= 2 and "secret of /tmp" in log


def test_hotwords_need_a_search_that_takes_them(model, prompt, monkeypatch):
    with running_server(model) as served:
        monkeypatch.setattr(batcher, "VLLMLanguageModel", type(model.llm))
        for field in ("hotwords", "keywords[]", "prompt"):
            response = served.post(prompt, **{field: "Asterisk"})
            assert response.status_code == 400
            assert error_of(response)["param"] == field
        assert served.post(prompt).status_code == 200
    with running_server(model, hotword_bonus=0) as served:  # in the prompt only
        assert served.post(prompt, hotwords="Asterisk").status_code == 200


def test_end_of_the_server(model, prompt, stopped):
    with running_server(model) as served, ThreadPoolExecutor() as pool:
        running = pool.submit(served.post, prompt)
        wait_until(lambda: served.admission.active == 1)
        served.server.handle_exit(signal.SIGTERM, None)
        for response in (served.post(prompt), httpx2.get(f"{served.url}/health")):
            assert response.status_code == 503
            error_of(response)
        stopped.set()
        assert running.result().status_code == 200
        wait_until(lambda: served.server.should_exit)


def test_model_without_english_translations(model, prompt, monkeypatch):
    with running_server(model) as served:
        monkeypatch.delitem(model.prompts.tasks, "st")
        response = served.post(prompt, path="translations")
        assert response.status_code == 400
        assert "not trained to translate" in error_of(response)["message"]


def test_command(tiny_model, tmp_path):
    command = [
        sys.executable, "-m", "speechllm.cli", "serve", "--model", str(tiny_model),
        "--port", "0",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": "/tmp"}
    )
    line = next(line for line in process.stderr if "http://" in line)
    url = line.split(": ", 1)[1].strip()
    assert url.startswith("http://127.0.0.1:")
    assert httpx2.get(f"{url}/models").json()["object"] == "list"
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert time.monotonic() - begin < 10
    assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--port", "99999"], "--port"),
        (["--host", "no.such.host.invalid"], "--host and --port"),
        (["--host", "x" * 300], "--host and --port"),
        (["--max_requests", "0"], "--max_requests"),
        (["--max_megabytes", "-1"], "--max_megabytes"),
        (["--max_minutes", "nan"], "--max_minutes"),
        (["--batch_size", "0"], "batch_size"),
        (["--max_seconds", "0"], "max_seconds"),
        (["--language", "xx"], "--language xx"),
        (["--model", "/no/such/model"], "/no/such/model"),
    ],
)
def test_bad_options(tiny_model, options, message):
    with pytest.raises(UserError, match=message):
        cli.main(["serve", "--model", str(tiny_model), "--port", "0", *options])


def test_addresses_that_others_can_reach():
    for host, expected in (
        ("127.0.0.1", True),
        ("localhost", True),
        ("0.0.0.0", False),
    ):
        with listen(host, 0) as listener:
            assert is_loopback(listener) is expected


def test_occupied_port_and_bad_keys(tiny_model, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        with pytest.raises(UserError, match=f"port {port}: cannot be listened on"):
            cli.main(["serve", "--model", str(tiny_model), "--port", port])
    for key in ("", " ", "é", "a\nb"):
        monkeypatch.setenv("SPEECHLLM_API_KEY", key)
        with pytest.raises(UserError, match="SPEECHLLM_API_KEY"):
            cli.main(["serve", "--model", str(tiny_model), "--port", "0"])
