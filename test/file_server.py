"""Local HTTP server of files, with ranges and faults, in place of a corpus's server."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """Files of a server and the faults of its next responses.

    Attributes:
        url: address, without a slash at the end.
        files: path with a slash at the head -> content.
        faults: for the next requests, one each: a status to refuse with, or the number
            of bytes after which the connection ends, as ``-bytes``; 0 is no fault.
        requests: path and ``Range`` of the requests so far.
        ranges: False for a server that ignores ``Range``.
        etags: False for a server that does not name versions.
    """

    files: dict[str, bytes]
    url: str = ""
    faults: list[int] = field(default_factory=list)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    ranges: bool = True
    etags: bool = True


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[FileServer]:
    """Serve files on a free port of 127.0.0.1."""
    state = FileServer(files)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.requests.append((self.path, wanted))
            fault = state.faults.pop(0) if state.faults else 0
            content = state.files.get(self.path)
            if fault > 0 or content is None:
                return self.send_error(fault if fault > 0 else 404)
            etag = f'"{hashlib.md5(content).hexdigest()}"'
            start = 0
            if wanted and state.ranges and self.headers.get("If-Range", etag) == etag:
                start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.send_header("Content-Length", "0")
                    return self.end_headers()
            self.send_response(206 if start else 200)
            if start:
                span = f"bytes {start}-{len(content) - 1}/{len(content)}"
                self.send_header("Content-Range", span)
            if state.etags:
                self.send_header("ETag", etag)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            end = len(content) if fault == 0 else start - fault
            self.wfile.write(content[start:end])
            return None

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
