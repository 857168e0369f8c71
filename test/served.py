"""A server of the OpenAI audio API in a thread, for tests."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
import numpy as np
import soundfile
import uvicorn
from openai import OpenAI
from processes import wait_until

from speechllm import SpeechToText
from speechllm.inference.long_form import cutting_for
from speechllm.serving.app import ServedModel, create_app
from speechllm.serving.batcher import Batcher
from speechllm.serving.gate import Admission
from speechllm.serving.metrics import Metrics
from speechllm.serving.server import Server, listen

RATE = 16000
# a random model does not stop by itself
SHORT = {"tokens_per_second": 0.5, "extra_tokens": 2, "word_times": True}


def wav(samples: np.ndarray) -> bytes:
    """Return the content of a WAV file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="wav")
    return buffer.getvalue()


@dataclass
class Served:
    """A running server.

    Attributes:
        url: without a slash at the end.
        admission, batcher, server: its parts.
    """

    url: str
    admission: Admission
    batcher: Batcher
    server: Server

    def client(self, key: str = "any") -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def post(self, content: bytes, name: str = "a.wav", path="transcriptions", **data):
        return httpx2.post(
            f"{self.url}/v1/audio/{path}",
            files={"file": (name, content)},
            data=data,
            timeout=60,
        )

    def metric(self, name: str) -> float:
        lines = httpx2.get(f"{self.url}/metrics").text.splitlines()
        return float(next(x for x in lines if x.startswith(name + " ")).split()[1])


@contextmanager
def running_server(
    model: SpeechToText,
    language: str = "en",
    max_requests: int = 64,
    max_bytes: int = 2 << 20,
    max_minutes: float = 2.0,
    key: str | None = None,
    batch_size: int = 8,
    **generation,
) -> Iterator[Served]:
    metrics, admission = Metrics(), Admission(max_requests, max_bytes, key)
    batcher = Batcher(
        model, model.options({**SHORT, **generation}), cutting_for(model), batch_size,
        on_batch=metrics.batch_segments.observe,
    )  # fmt: skip
    served = ServedModel("tiny", batcher, language, max_minutes)
    app = create_app(served, admission, metrics)
    settings = uvicorn.Config(app, log_level="warning", access_log=False)
    server = Server(settings, admission)
    with listen("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            wait_until(lambda: server.started)
            yield Served(url, admission, batcher, server)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
