"""A server on this machine, in place of the publishers of data."""

import http.server
import threading
from collections.abc import Iterator

import numpy as np
import pytest


class Server(http.server.ThreadingHTTPServer):
    """Serves one content at every address, and does what a test asks it to do wrong."""

    daemon_threads = True
    content = b""
    ranges = True
    cut_after: int | None = None
    # How much is sent before the event, for which the rest waits.
    hold_after: int | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []
        self.go_on = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.requests.append((self.path, asked))
        content = self.server.content
        if asked and self.server.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
            rest = content[start:]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            rest = content
            self.send_response(200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        rest = rest[: self.server.cut_after]
        if (held := self.server.hold_after) is not None:
            self.wfile.write(rest[:held])
            self.server.go_on.wait()
            rest = rest[held:]
        self.wfile.write(rest)

    def log_message(self, *args: object) -> None:
        """Say nothing on standard error."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        server.content = np.random.RandomState(1).bytes(100_000)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
