"""A name server that changes its mind, and small http servers that note who called them."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest


def turn_names(patch: pytest.MonkeyPatch, answers: dict[str, list[str]]) -> None:
    """Answer look-ups of these hosts with their addresses in turn, the last one from then on."""
    real = socket.getaddrinfo

    def look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name in answers:
            left = answers[name]
            name = left.pop(0) if len(left) > 1 else left[0]
        return real(name, *arguments, **options)

    patch.setattr(socket, "getaddrinfo", look_up)


class CalledServer:
    """An http server that answers every request alike.

    Attributes:
        port: Its port.
        calls: `METHOD path host` of each request.
        status: Status of its answers.
        headers: Headers of its answers.
        body: Body of its answers.
    """

    def __init__(self, address: str = "127.0.0.1", port: int = 0, body: bytes = b"{}") -> None:
        self.calls: list[str] = []
        self.status, self.headers, self.body = 200, dict[str, str](), body
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.calls.append(f"{self.command} {self.path} {self.headers['Host']}")
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(outer.status)
                for name, value in {**outer.headers, "Content-Length": str(len(outer.body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(outer.body)

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer((address, port), Handler)
        self.port = self.server.server_address[1]

    def redirect(self, url: str) -> None:
        """Answer with a redirect from now on."""
        self.status, self.headers = 307, {"Location": url}


@contextmanager
def called_server(address: str = "127.0.0.1", port: int = 0, body: bytes = b"{}") -> Iterator[CalledServer]:
    """Serve such a server in a thread."""
    served = CalledServer(address, port, body)
    thread = Thread(target=served.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        served.server.shutdown()
        served.server.server_close()
        thread.join()
