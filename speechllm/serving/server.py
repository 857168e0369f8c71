"""Start and end of the server."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import uvicorn
from transformers.utils.logging import disable_progress_bar

from speechllm.inference.generation_config import check_search, read_settings
from speechllm.inference.language_detection import LanguageDetector, find_whisper
from speechllm.inference.loading import choose_device, find_model
from speechllm.inference.long_form import cutting_for
from speechllm.inference.speech_to_text import SpeechToText
from speechllm.serving.app import AUTO, ServedModel, create_app
from speechllm.serving.batcher import Batcher
from speechllm.serving.gate import Admission
from speechllm.serving.metrics import Metrics
from speechllm.utils.errors import UserError

KEY = "SPEECHLLM_API_KEY"  # environment variable
_BACKLOG = 2048  # connections that wait to be accepted

logger = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Server that answers 503 while it finishes the requests in work."""

    def __init__(self, config: uvicorn.Config, admission: Admission):
        super().__init__(config)
        self.admission = admission

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Refuse new requests; at a second signal end at once."""
        if self.admission.closing:
            self.should_exit = self.force_exit = True
        self.admission.closing = True

    async def on_tick(self, counter: int) -> bool:
        """Return whether the server ends: when no request is in work any more."""
        if self.admission.closing and self.admission.active == 0:
            self.should_exit = True
        return await super().on_tick(counter)


def serve(
    model_dir: str,
    host: str,
    port: int,
    language: str | None,
    device: str,
    dtype: str | None,
    batch_size: int | None,
    config: str | None,
    strict: bool,
    engine: str | None,
    max_megabytes: int,
    max_minutes: float,
    max_requests: int,
    cutting: Mapping[str, float],
    options: Mapping[str, Any],
) -> None:
    """Load a model and serve it until SIGTERM or SIGINT.

    Args:
        model_dir, device, dtype, config, strict, engine: of
            ``SpeechToText.from_pretrained``.
        host, port: to listen on; port 0: any free one.
        language: of requests without one; ``auto`` to detect it; None: the model's
            first.
        batch_size: segments decoded together; None: that of the settings, else 8.
        max_megabytes, max_minutes, max_requests: limits of requests.
        cutting: ``max_seconds`` and ``pause_seconds`` of ``transcribe_long``.
        options: of the search.

    Raises:
        UserError: the model cannot be loaded, an option does not fit it, or the
            address is not free.
    """
    key = read_key()
    folder = find_model(model_dir)
    device = choose_device(device)
    with listen(host, port) as listener:
        if key is None and not is_loopback(listener):
            logger.warning(
                "%s: others can reach this server and it has no key; set %s", host, KEY
            )
        disable_progress_bar()  # for loading weights
        check_search(engine, read_settings(config, folder), options)
        model = SpeechToText.from_pretrained(
            folder, device, dtype, engine, config=config, strict=strict
        )
        detect = None
        if language == AUTO and AUTO not in model.prompts.languages:
            languages = list(model.prompts.languages)
            detect = LanguageDetector(find_whisper(folder), languages, device)
        elif language is not None and language not in model.prompts.languages:
            known = ", ".join(model.prompts.languages)
            raise UserError(f"--language {language}: the model has {known}")
        options = {"word_times": model.ctc_tokenizer is not None, **options}
        search = model.options(options)
        model.load_first_pass(options)
        metrics = Metrics()
        batcher = Batcher(
            model,
            search,
            cutting_for(model, **cutting),
            model.choose_batch_size(batch_size, "command line"),
            detect,
            metrics.batch_segments.observe,
        )
        admission = Admission(max_requests, max_megabytes << 20, key)
        language = language or next(iter(model.prompts.languages))
        name = model_name(model_dir, folder)
        served = ServedModel(name, batcher, language, max_minutes)
        app = create_app(served, admission, metrics)
        settings = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False
        )
        address = listener.getsockname()
        place = f"[{address[0]}]" if ":" in address[0] else address[0]
        print(
            f"{served.name}: http://{place}:{address[1]}/v1",
            file=sys.stderr,
            flush=True,
        )
        Server(settings, admission).run([listener])


def read_key() -> str | None:
    """Return the key that clients must send, or None.

    Raises:
        UserError: it is empty, or cannot be sent in a header.
    """
    key = os.environ.get(KEY)
    if key is not None and not (key.isascii() and key.isprintable() and key.strip()):
        raise UserError(
            f"{KEY}: empty, or not printable ASCII; set another or unset it"
        )
    return key


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens, before a model is loaded.

    Raises:
        UserError: the address is not free, or none of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        return socket.create_server(address, family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{host}, port {port}: cannot be listened on ({reason}); choose others "
            "with --host and --port"
        ) from None


def is_loopback(listener: socket.socket) -> bool:
    """Return whether only this machine can reach a socket."""
    return ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def model_name(model_dir: str, folder: Path) -> str:
    """Return the name of a model: a hub id, or that of its folder or training."""
    if not Path(model_dir).exists():
        return model_dir
    folder = folder.resolve()
    return folder.parent.name if folder.name == "model" else folder.name
