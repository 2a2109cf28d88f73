"""Looks into bridge, endpoint and worker; Python imports this at the start when its folder is in PYTHONPATH.

With `MLOC_PROBE` set to a folder, these processes append one line to `requests-PART-PID` there for each request that
they send with Prefect's client: part, method, path without ids, and who asked for it. On SIGUSR1 they write how many
objects of some kinds live to `objects-PART-PID`.
"""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import sys
from collections import Counter
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

_PARTS = ("worker", "bridge", "serve")
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")
_PLUMBING = (
    "prefect_ext/requests.py",
    "prefect_ext/retry.py",
    "prefect_ext/waiting_requests.py",
    "prefect_ext/client_retries.py",
    "prefect_ext/run_control.py",
    "prefect/client/",
)
_KINDS = frozenset(
    {"PrefectClient", "PrefectHttpxAsyncClient", "SSLContext", "Task", "Context", "FlowRun", "Flow", "Redis"}
)


class _Hook(MetaPathFinder):
    """Wraps the client and the websocket of events as soon as they are imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Find Prefect's modules as usual, and let them be wrapped after they were run."""
        wrap = {"prefect.client.base": _wrap_client, "prefect.events.clients": _wrap_events}.get(name)
        spec = PathFinder.find_spec(name, path) if wrap else None
        if spec is None or spec.loader is None or wrap is None:
            return None
        run = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            wrap(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _wrap_client(module: Any) -> None:
    stock = module.PrefectHttpxAsyncClient.send

    async def send(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        _note(request.method, _ID.sub("ID", request.url.path.removeprefix("/api")))
        return await stock(self, request, *args, **kwargs)

    module.PrefectHttpxAsyncClient.send = send


def _wrap_events(module: Any) -> None:
    stock = module.PrefectEventsClient._emit

    async def emit(self: Any, event: Any) -> Any:
        _note("SOCKET", event.event)
        return await stock(self, event)

    module.PrefectEventsClient._emit = emit


def _note(method: str, path: str) -> None:
    os.write(_FILE, f"{_PART}\t{method}\t{path}\t{_caller()}\n".encode())


def _caller() -> str:
    """Return the innermost function of this package that waits for the request, else of Prefect."""
    frame, stock = sys._getframe(2), ""
    while frame is not None:
        file = frame.f_code.co_filename
        if not any(part in file for part in _PLUMBING):
            if "/mloc_prefect/" in file:
                return f"{file.rsplit('/mloc_prefect/', 1)[1]}:{frame.f_code.co_qualname.removesuffix('.<locals>')}"
            if "/prefect/" in file and not stock:
                stock = f"prefect/{file.rsplit('/prefect/', 1)[1]}:{frame.f_code.co_qualname}"
        frame = frame.f_back  # type: ignore[assignment]
    return stock or "?"


def _write_objects(*_: Any) -> None:
    gc.collect()
    found = Counter(name for thing in gc.get_objects() if (name := type(thing).__name__) in _KINDS)
    new = Path(f"{_FOLDER}/new-{os.getpid()}")
    new.write_text(json.dumps(found))
    new.replace(f"{_FOLDER}/objects-{_PART}-{os.getpid()}")


_FOLDER = os.environ.get("MLOC_PROBE")
_PART = next((part for part in _PARTS if part in sys.orig_argv), "")
if _FOLDER and _PART and any("mloc_prefect.cli" in word for word in sys.orig_argv):
    _FILE = os.open(f"{_FOLDER}/requests-{_PART}-{os.getpid()}", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    sys.meta_path.insert(0, _Hook())
    signal.signal(signal.SIGUSR1, _write_objects)
