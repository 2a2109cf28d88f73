"""`ChatStub`: an OpenAI-compatible endpoint over real HTTP, whose answers a function of the request decides."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable

Answer = dict[str, Any] | str | int
"""A text; calls of tools as `{name: arguments}`; or the status of an error."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that were killed while they waited."""


class ChatStub:
    """Serves `/v1/chat/completions`, and pages below `/page/`.

    Args:
        script: Returns the answer to the body of a request.

    Attributes:
        requests: The bodies of all requests so far.
        keys: Their authorizations.
        headers: All of their headers.
        pages: Text of each page, or its bytes, by name.
        page_headers: Headers of a page that differ from those of others.
        fetched: Names of pages that were asked for.
    """

    def __init__(self, script: Callable[[dict[str, Any]], Answer]) -> None:
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.pages: dict[str, str | bytes] = {}
        self.page_headers: dict[str, dict[str, str]] = {}
        self.fetched: list[str] = []
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def port(self) -> int:
        """Port that it listens on."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}/v1"

    def page(self, name: str) -> str:
        """Return the URL of a page."""
        return f"http://127.0.0.1:{self.port}/page/{name}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def task_of(body: dict[str, Any]) -> str:
    """Return the task of a request: the first message of the user."""
    return next(_text(message) for message in body["messages"] if message["role"] == "user")


def results_of(body: dict[str, Any]) -> list[str]:
    """Return what tools have returned so far."""
    return [_text(message) for message in body["messages"] if message["role"] == "tool"]


def _text(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _handler(stub: ChatStub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Stay silent."""

        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            stub.fetched.append(name)
            page = stub.pages.get(name)
            if isinstance(page, str) and page.startswith("-> "):
                self._send(302, b"", {"Location": page[3:]})
                return
            data = page.encode() if isinstance(page, str) else page
            headers = {"Content-Type": "text/html; charset=utf-8", **stub.page_headers.get(name, {})}
            self._send(200 if data is not None else 404, data or b"no such page", headers)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stub.requests.append(body)
            stub.keys.append(self.headers.get("Authorization", ""))
            stub.headers.append({name.lower(): value for name, value in self.headers.items()})
            answer = stub.script(body)
            if isinstance(answer, int):
                self._send(answer, b'{"error": {"message": "no"}}')
            else:
                self._send(200, json.dumps(_completion(body, answer)).encode())

        def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {"Content-Type": "application/json"}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


def _completion(body: dict[str, Any], answer: dict[str, Any] | str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer if isinstance(answer, str) else None}
    if isinstance(answer, dict):
        message["tool_calls"] = [
            {"id": f"call-{n}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for n, (name, arguments) in enumerate(answer.items())
        ]
    return {
        "id": "chat-1",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [
            {"index": 0, "message": message, "finish_reason": "tool_calls" if isinstance(answer, dict) else "stop"}
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }
