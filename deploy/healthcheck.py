"""Says whether the part that runs in this container works; the images of deploy/Dockerfile have it as HEALTHCHECK.

It goes by the command of process 1: an endpoint has to answer /readyz, a Prefect server /api/health; of a worker, the
Prefect server has to have heard lately. Other parts count as healthy while they run. Standard library only.
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import sys
import urllib.request
from pathlib import Path
from typing import Any

_SECONDS = 10.0


def main(command: list[str]) -> str | None:
    """Return what is wrong, or None.

    Args:
        command: The words of the command of process 1.
    """
    try:
        if "worker" in command:
            return _worker(command)
        if "serve" in command:
            _get(f"http://127.0.0.1:{_option(command, '--port', os.environ.get('PORT') or '8000')}/readyz")
        elif "server start" in " ".join(command):
            _get(f"http://127.0.0.1:{_option(command, '--port', '4200')}/api/health")
    except OSError as error:  # urllib's errors are among them
        return str(error)
    return None


def _option(command: list[str], name: str, default: str) -> str:
    return command[command.index(name) + 1] if name in command[:-1] else default


def _worker(command: list[str]) -> str | None:
    pool = _option(command, "--pool", os.environ.get("MLOC_WORK_POOL") or "gpu")
    found = _get(f"{os.environ['PREFECT_API_URL'].rstrip('/')}/work_pools/{pool}/workers/filter", {})
    # Without an id, a worker has the name of its host and six random digits (mloc_prefect/cluster/identity.py).
    chosen = (os.environ.get("MLOC_WORKER_ID") or os.environ.get("WORKER_ID") or "").strip()
    mine = chosen or socket.gethostname().split(".")[0]
    name = re.compile(re.escape(mine) + ("" if chosen else "-[0-9a-f]{6}"))
    if any(name.fullmatch(worker["name"]) and worker.get("status") == "ONLINE" for worker in found):
        return None
    return f"work pool {pool} has no worker {mine} that is online"


def _get(url: str, body: Any = None) -> Any:
    """Return the answer to a GET, or to a POST of `body`; an OSError if it is none of success."""
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode())  # noqa: S310
    request.add_header("Content-Type", "application/json")
    if login := os.environ.get("PREFECT_API_AUTH_STRING"):
        request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    with urllib.request.urlopen(request, timeout=_SECONDS) as answer:  # noqa: S310  # a URL of our own configuration
        text = answer.read()
    return json.loads(text) if body is not None else None


if __name__ == "__main__":
    fault = main(Path("/proc/1/cmdline").read_text(encoding="utf-8").split("\0"))
    if fault:
        sys.exit(fault)
