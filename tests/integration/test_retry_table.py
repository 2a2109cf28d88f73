"""Two tables: a mistake of the user costs one attempt and no model, and what may pass is tried again."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.artifacts.transfer import file_download
from mloc_prefect.execution.failures import failure_of
from tests.support.bench import Bench
from tests.support.tiny_model import save_tiny_model
from tests.support.training import TrainingBench

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mloc_prefect.errors import ExecutionFailure

USER = {"role": "user", "content": "hi"}
PICTURE = [{"role": "user", "content": [{"type": "image", "image": "x.png"}]}]
QUICK = {"batch_size": 2, "max_steps": 1, "save_strategy": "no", "save_archive": False}
ROLLOUT = {"batch_size": 2, "steps": 1, "save_strategy": "no", "save_archive": False, "num_generations": 2}

Case = tuple[str, dict[str, Any], str]
"""Task type, `spec`, and a part of the message; `{base}` and `{dead}` stand for servers."""


def table(url: str, **data: Any) -> dict[str, Any]:
    return {"data": {"type": "dataset", "url": url, **data}}


def listed(*items: Any, **spec: Any) -> dict[str, Any]:
    return {"data": {"type": "list", "items": list(items)}, **spec}


def trained(url: str, **spec: Any) -> dict[str, Any]:
    return {"data": {"dataset_name": url}, "training": QUICK, **spec}


MISTAKES: dict[str, Case] = {
    "a file that is not there": ("inference", table("none.jsonl"), "was not found in any of three places"),
    "a column that is not there": ("inference", table("rows.jsonl", column="q"), "Column 'q' not found"),
    "a split that is not there": ("inference", table("folder", split="test"), "has no split 'test'"),
    "a slice that is none": ("inference", table("rows.jsonl", split="train[a:b]"), "is not understood"),
    "a column twice": ("inference", table("twice.csv"), "column 'text' occurs twice"),
    "semicolons": ("inference", table("excel.csv"), "separated by semicolons"),
    "a broken line": ("inference", table("broken.jsonl"), "broken.jsonl:2:10: not valid JSON"),
    "mappings as prompts": ("inference", table("nested.jsonl", column="body"), "holds a mapping"),
    "cells without a value": ("inference", table("empty.jsonl"), "1 of 2 rows failed"),
    "images in a chat": ("inference", listed(PICTURE), "holds an image"),
    "images beside a chat": ("inference", table("images.jsonl"), "column 'images' stands beside messages"),
    "no chat template": ("inference", {**listed([USER]), "model": "bare"}, "has no chat template"),
    "a model that is not there": ("inference", {**listed("a"), "model": "none"}, "was not found in any of"),
    "an adapter that is not there": (
        "inference",
        {**listed("a"), "adapters": [{"path": "none"}]},
        "Checkpoint path none not found",
    ),
    "404 for data": ("inference", table("{base}/404/rows.jsonl"), "answered status 404"),
    "a page for data": ("inference", table("{base}/200/rows.jsonl"), "not valid JSON"),
    "404 for a checkpoint": (
        "inference",
        {**listed("a"), "checkpoint": {"load": {"type": "http", "url": "{base}/404/m.zip"}}},
        "answered status 404",
    ),
    "a reserved export": (
        "inference",
        {**listed("a"), "postprocess": {"jsonl_export": {"path": "manifest.json"}}},
        "reserved for our own files",
    ),
    "no file to train on": ("sft", trained("none.jsonl"), "was not found in any of three places"),
    "a text field that is not there": ("sft", trained("nested.jsonl"), "Dataset missing text field 'text'"),
    "404 for training rows": ("sft", trained("{base}/404/rows.jsonl"), "answered status 404"),
    "images to train on": (
        "sft",
        {"data": {"dataset_name": "images.jsonl", "text_field": "messages"}, "training": QUICK},
        "column 'images' stands beside messages",
    ),
    "pairs without answers": ("dpo", trained("rows.jsonl"), "Dataset missing columns ['chosen', 'rejected']"),
    "prompts longer than the model reads": (
        "sft",
        {
            "data": {"rows": [{"p": "x" * 90, "a": "y"}], "prompt_column": "p", "response_column": "a"},
            "training": QUICK,
        },
        "so no answer is left",
    ),
    "a reward without its column": (
        "grpo",
        {"data": {"prompts": ["a"]}, "training": ROLLOUT, "rewards": [{"name": "exact"}]},
        "needs the column 'answer'",
    ),
    "a reward that is not allowed": (
        "grpo",
        {
            "data": {"prompts": ["a"]},
            "training": ROLLOUT,
            "rewards": [{"path": "os:getcwd"}],
            "generation": {"max_new_tokens": 2},
        },
        "MLOC_ALLOWED_REWARDS",
    ),
}

PASSING: dict[str, Case] = {
    **{
        f"{status} for data": ("inference", table(f"{{base}}/{status}/rows.jsonl"), f"answered status {status}")
        for status in (408, 425, 429, 500, 502, 503, 504)
    },
    "a port that refuses": ("inference", table("{dead}/rows.jsonl"), "Connection refused"),
    "a connection that is reset": ("inference", table("{base}/reset/rows.jsonl"), "reset"),
    "half a file": ("inference", table("{base}/half/rows.jsonl"), "received only 5 of 50 bytes"),
    "503 for a checkpoint": (
        "inference",
        {**listed("a"), "checkpoint": {"load": {"type": "http", "url": "{base}/503/m.zip"}}},
        "answered status 503",
    ),
    "503 for an adapter": (
        "inference",
        {**listed("a"), "adapters": [{"url": "{base}/503/final_lora.zip"}]},
        "answered status 503",
    ),
    "503 for training rows": ("sft", trained("{base}/503/rows.jsonl"), "answered status 503"),
    "a port that refuses pairs": ("dpo", trained("{dead}/rows.jsonl"), "Connection refused"),
    "503 for weights to start from": (
        "sft",
        {**trained("rows.jsonl"), "checkpoint": {"load": {"type": "http", "url": "{base}/503/m.zip"}}},
        "answered status 503",
    ),
}


class Answers(BaseHTTPRequestHandler):
    """Answers with the status that the path names."""

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        if kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        body = b"<html>" if kind == "200" else b"12345"
        self.send_response(200 if kind == "half" else int(kind))
        self.send_header("Content-Length", "50" if kind == "half" else str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass

    def finish(self) -> None:
        with suppress(OSError):  # of the connection that was reset
            super().finish()


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, str]]:
    """Yield the URLs of a server and of a port at which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield {"{base}": f"http://127.0.0.1:{server.server_port}", "{dead}": f"http://127.0.0.1:{port}"}
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two models and odd data."""
    root = tmp_path_factory.mktemp("place")
    save_tiny_model(root / "tiny")
    save_tiny_model(root / "bare", chat=False)
    files = {
        "rows.jsonl": '{"text": "one", "prompt": "p"}\n{"text": "two", "prompt": "q"}\n',
        "folder/train.jsonl": '{"text": "one"}\n',
        "twice.csv": "text,text\na,b\n",
        "excel.csv": "text;answer\na;b\n",
        "broken.jsonl": '{"text": "a"}\n{"text": }\n',
        "nested.jsonl": '{"body": {"a": 1}}\n',
        "empty.jsonl": '{"text": "a"}\n{"text": null}\n',
        "images.jsonl": '{"messages": [{"role": "user", "content": "hi"}], "images": ["a.png"]}\n',
    }
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(file_download, "_sleep", found.append)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return found


def filled(value: Any, servers: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: filled(below, servers) for name, below in value.items()}
    if isinstance(value, list):
        return [filled(below, servers) for below in value]
    for name, url in servers.items():
        value = value.replace(name, url) if isinstance(value, str) else value
    return value


def failed(place: Path, root: Path, kind: str, spec: dict[str, Any]) -> tuple[ExecutionFailure, list[str]]:
    """Run one attempt and return how it failed, and its phases."""
    given = dict(spec)
    model = {"source": {"identifier": str(place / given.pop("model", "tiny"))}, "adapters": given.pop("adapters", [])}
    bench: Any = Bench(root, place) if kind == "inference" else TrainingBench(root, place)
    settings = {"home": str(root / "home"), "base_dir": str(place), "loopback": True}
    with pytest.raises(Exception) as caught:
        if kind == "inference":
            bench.run({"model": model, "inference": {"max_tokens": 1}, **given}, settings=settings)
        else:
            bench.settings = settings
            bench.run(kind, {"model": model, **given})
    return failure_of(caught.value), bench.texts("phase")


@pytest.mark.parametrize(
    ("name", "again"), [*((name, False) for name in MISTAKES), *((name, True) for name in PASSING)]
)
def test_what_is_tried_again(
    place: Path, tmp_path: Path, servers: dict[str, str], waits: list[float], name: str, again: bool
) -> None:
    kind, spec, message = (PASSING if again else MISTAKES)[name]
    failure, phases = failed(place, tmp_path, kind, filled(spec, servers))
    assert message in failure.message
    assert failure.retryable is again, failure
    assert not any("loading weights" in phase for phase in phases), "a model was loaded"
    assert len(waits) == (4 if again else 0), "the download itself is repeated first"
