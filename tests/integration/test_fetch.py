"""Data over http from a real server: allowed hosts, redirects, errors."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.prompt_data import load_prompts
from mloc_prefect.executors.sources.source_lookup import SourceLookup

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Answers(BaseHTTPRequestHandler):
    """`/rows.jsonl` is data, `/near` leads to it, `/far` leads to a host that nobody allowed."""

    def do_GET(self) -> None:
        targets = {"/near.jsonl": "/rows.jsonl", "/far.jsonl": "http://inner.example/rows.jsonl"}
        if target := targets.get(self.path):
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()
        elif self.path == "/rows.jsonl":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"".join(json.dumps({"text": f"row {i}"}).encode() + b"\n" for i in range(3)))
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


def texts(home: Path, url: str, **settings: object) -> list[str]:
    places = SourceLookup.of({"home": str(home), **settings})
    return [p.text for p in load_prompts({"data": {"type": "dataset", "url": url}}, {}, places)]


@pytest.mark.parametrize("settings", [{"allowed_hosts": "other.example, 127.0.0.1"}, {"loopback": True}])
def test_allowed_hosts_are_read(tmp_path: Path, server: str, settings: dict[str, object]) -> None:
    assert texts(tmp_path, f"{server}/rows.jsonl", **settings) == ["row 0", "row 1", "row 2"]
    assert texts(tmp_path, f"{server}/near.jsonl", **settings) == ["row 0", "row 1", "row 2"]


@pytest.mark.parametrize(
    ("path", "settings", "problem"),
    [
        ("/rows.jsonl", {}, "host '127.0.0.1' of"),
        ("/far.jsonl", {"loopback": True}, "host 'inner.example' of"),
        ("/gone.jsonl", {"loopback": True}, "/gone.jsonl cannot be fetched: the server answered status 404"),
    ],
)
def test_others_are_refused(tmp_path: Path, server: str, path: str, settings: dict[str, object], problem: str) -> None:
    with pytest.raises(UserError) as caught:
        texts(tmp_path, f"{server}{path}", **settings)
    assert problem in str(caught.value)
    assert list(tmp_path.rglob("*.jsonl")) == []
