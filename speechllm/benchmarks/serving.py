"""Throughput of a running server (``speechllm serve``) by the number of clients."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2

from speechllm.audio.io import audio_info
from speechllm.data.examples import read_utt2task
from speechllm.data.kaldi_table import read_table
from speechllm.utils.batching import evenly
from speechllm.utils.errors import UserError

TIMEOUT = 3600.0  # seconds for a response


def serving_report(
    url: str,
    examples: str | Path,
    clients: Sequence[int],
    utterances: int | None = None,
) -> str:
    """Send the same recordings with each number of clients and return a table.

    Args:
        url: of the server, such as ``http://127.0.0.1:8000``.
        examples: example dir; its utterances of the task ``asr`` are sent, each once,
            as the next one of whichever client is free.
        clients: numbers of clients that send at the same time.
        utterances: number of recordings; None: all.

    Raises:
        UserError: no examples, the server cannot be reached or refuses a recording, or
            a text depends on the number of clients.
    """
    wavs, tasks = read_table(Path(examples) / "wav.scp"), read_utt2task(Path(examples))
    names = evenly([n for n in sorted(wavs) if tasks[n].name == "asr"], utterances)
    if not names:
        raise UserError(f"{examples}: no example of the task asr")
    contents = [Path(wavs[name]).read_bytes() for name in names]
    seconds = sum(audio_info(wavs[name]).seconds for name in names)
    lines = [
        f"{len(names)} recordings, {seconds:.0f} s of audio",
        "",
        "| clients | seconds | audio per second | median response | longest |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    texts: list[str] = []
    with httpx2.Client(base_url=url, timeout=TIMEOUT, headers=key_header()) as client:

        def send(number: int) -> tuple[str, float]:
            begin = time.monotonic()
            text = transcribe(client, contents[number], tasks[names[number]].source)
            return text, time.monotonic() - begin

        send(0)  # the first request of a server is slower
        for count in clients:
            begin = time.monotonic()
            with ThreadPoolExecutor(count) as pool:
                found = list(pool.map(send, range(len(names))))
            total = time.monotonic() - begin
            if texts and texts != [text for text, _ in found]:
                raise UserError(f"{url}: texts depend on the number of clients")
            texts = [text for text, _ in found]
            times = [time for _, time in found]
            lines.append(
                f"| {count} | {total:.1f} | {seconds / total:.2f} s "
                f"| {statistics.median(times):.2f} s | {max(times):.2f} s |"
            )
    return "\n".join(lines)


def transcribe(client: httpx2.Client, content: bytes, language: str) -> str:
    """Return the text of a recording.

    Raises:
        UserError: the server cannot be reached, or refuses it.
    """
    try:
        response = client.post(
            "/v1/audio/transcriptions",
            files={"file": ("recording", content)},
            data={"language": language},
        )
    except httpx2.HTTPError as error:
        raise UserError(f"{client.base_url}: {error}; start speechllm serve") from None
    if response.status_code != 200:
        raise UserError(f"{client.base_url}: {response.text}")
    return response.json()["text"]


def key_header() -> dict[str, str]:
    """Return the header with the key of the environment."""
    key = os.environ.get("SPEECHLLM_API_KEY")
    return {} if key is None else {"Authorization": f"Bearer {key}"}
