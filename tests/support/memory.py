"""Memory and live objects of the parts of a `mloc up`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil

if TYPE_CHECKING:
    from tests.support.up import Up

PROBE = Path(__file__).parent / "probe"
"""Folder for PYTHONPATH, see its module."""

ECHO = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {{name: run-{number}}}
spec:
  taskType: echo
  resources: {{replicas: 1, hardware: {{cpu: '1', memory: 64Mi}}}}
  data: {{type: list, items: [a, b]}}
"""
ENDS = {"DONE", "FAILED", "CANCELLED"}
PARTS = {
    "prefect_ext.server.main": "prefect",
    "valkey": "valkey",
    "mloc_prefect.cli serve": "endpoint",
    "mloc_prefect.cli bridge": "bridge",
    "mloc_prefect.cli worker": "worker",
    "mloc_prefect.cli up": "up",
}
_YAML = {"Content-Type": "text/yaml"}
_SECONDS_A_RUN = 15.0
_DUMP_SECONDS = 60.0


def run_all(url: str, runs: int) -> None:
    """Submit specs of one echo task to an endpoint, and wait until all are DONE."""
    with httpx.Client(base_url=url, timeout=60) as client:
        left = []
        for number in range(runs):
            answer = client.post("/api/v1/tasks", content=ECHO.format(number=number), headers=_YAML)
            assert answer.status_code == 200, answer.text
            left.append(str(answer.json()["tasks"][0]["task_id"]))
        deadline = time.monotonic() + 60 + _SECONDS_A_RUN * runs
        while left:  # they end roughly in order
            task = client.get(f"/api/v1/tasks/{left[-1]}").json()
            if task["status"] in ENDS:
                assert task["status"] == "DONE", task
                left.pop()
                continue
            assert time.monotonic() < deadline, task
            time.sleep(0.2)


def processes(up: Up) -> list[tuple[str, psutil.Process]]:
    """Return the processes of a `mloc up`, each with its part; executor hosts are `hosts`."""
    assert up.process is not None
    root = psutil.Process(up.process.pid)
    found = []
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            found.append((next((name for words, name in PARTS.items() if words in line), "hosts"), process))
    return found


def resident(up: Up) -> Counter[str]:
    """Return the resident memory of each part, in MiB."""
    found: Counter[str] = Counter()
    for part, process in processes(up):
        with contextlib.suppress(psutil.Error):
            found[part] += process.memory_info().rss >> 20
    return found


def objects(folder: Path) -> dict[str, Counter[str]]:
    """Return how many objects of each kind live in each part that is looked into."""
    asked = {}
    for file in folder.glob("requests-*"):
        _, part, pid = file.name.split("-")
        answer = folder / f"objects-{part}-{pid}"
        answer.unlink(missing_ok=True)
        os.kill(int(pid), signal.SIGUSR1)
        asked[part] = answer
    deadline = time.monotonic() + _DUMP_SECONDS
    while not all(answer.exists() for answer in asked.values()):
        assert time.monotonic() < deadline, asked
        time.sleep(0.05)
    return {part: Counter(json.loads(answer.read_text())) for part, answer in asked.items()}
