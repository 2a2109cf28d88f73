"""A Qdrant server for tests: its REST routes over HTTP, answered by the embedded store of its client.

It checks the key, embeds on its side with the model that a test gives it, and fails on demand.
"""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

from qdrant_client import QdrantClient, models

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_ROUTE = re.compile(r"/collections(?:/([^/?]+))?(/[a-z/]+)?(?:\?.*)?")


class QdrantStub:
    """The server, between `with` and its end.

    Args:
        key: What `api-key` must hold; None = any.
        embed: Embeds on the side of the server; None = it cannot.
    """

    def __init__(
        self, key: str | None = None, embed: Callable[[Sequence[str]], list[list[float]]] | None = None
    ) -> None:
        self.client = QdrantClient(":memory:", force_disable_check_same_thread=True)
        self.calls: list[str] = []
        self.fail: list[int] = []
        self._key, self._embed = key, embed
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.client.close()

    def answer(self, method: str, path: str, key: str | None, body: dict[str, Any]) -> tuple[int, Any]:
        with self._lock:
            self.calls.append(f"{method} {path.partition('?')[0]}")
            if self.fail:
                return self.fail.pop(0), {"status": {"error": "asked to fail"}}
            if self._key is not None and key != self._key:
                return 403, {"status": {"error": "forbidden"}}
            match = _ROUTE.fullmatch(path)
            if match is None:
                return 404, {"status": {"error": "no such route"}}
            try:
                result = self._result(method, match[1], match[2] or "", body)
            except LookupError as error:
                return 404, {"status": {"error": str(error)}}
            except ValueError as error:
                return 400, {"status": {"error": str(error)}}
            return 200, {"result": _plain(result), "status": "ok", "time": 0.0}

    def _result(self, method: str, name: str | None, route: str, body: dict[str, Any]) -> Any:
        if name is None:
            return self.client.get_collections()
        if route == "/exists":
            return {"exists": self.client.collection_exists(name)}
        if method == "PUT" and not route:
            return self.client.create_collection(name, models.VectorParams(**body["vectors"]))
        if not self.client.collection_exists(name):
            raise LookupError(f"Not found: Collection `{name}` doesn't exist!")
        if method == "GET" and not route:
            return self.client.get_collection(name)
        return self._points(name, route, body)

    def _points(self, name: str, route: str, body: dict[str, Any]) -> Any:
        done = {"operation_id": 0, "status": "completed"}
        wanted = models.Filter(**body["filter"]) if body.get("filter") else None
        if route == "/points/query":
            query, least = self._vector(body["query"]), body.get("score_threshold")
            return self.client.query_points(
                name, query=query, query_filter=wanted, limit=body["limit"], score_threshold=least
            )
        if route == "/points/scroll":
            points, offset = self.client.scroll(name, wanted, limit=body["limit"], offset=body.get("offset"))
            return {"points": points, "next_page_offset": offset}
        if route == "/points/delete":
            self.client.delete(name, models.PointIdsList(points=body["points"]))
        elif route == "/points":
            points = [models.PointStruct(**{**p, "vector": self._vector(p["vector"])}) for p in body["points"]]
            self.client.upsert(name, points)
        elif route != "/index":
            raise LookupError(f"no such route: {route}")
        return done

    def _vector(self, value: Any) -> Any:
        if isinstance(value, dict) and "nearest" in value:
            value = value["nearest"]
        if not isinstance(value, dict):
            return value
        if self._embed is None:
            raise ValueError("Wrong input: InferenceService is not initialized")
        return self._embed([value["text"]])[0]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def _answer(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(size)) if size else {}
                status, answer = stub.answer(self.command, self.path, self.headers.get("api-key"), body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_DELETE = _answer

        return Handler


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value
