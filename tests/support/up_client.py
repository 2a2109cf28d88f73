"""What clients do with a running `mloc up`: curl, subscribing to its Redis, Prefect's own API."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import redis

from tests.support.patience import FACT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.up import Up

ROOT = Path(__file__).parents[2]
ECHO = ROOT / "templates" / "echo.yaml"
ENDS = {"DONE", "FAILED", "CANCELLED"}
CHANNELS = ("tasks", "tasks.events", "workers.events")


def curl(*arguments: str) -> str:
    """Run curl; return the response body."""
    done = subprocess.run(
        ["curl", "--silent", "--show-error", *arguments],
        capture_output=True,
        text=True,
        timeout=FACT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def submit_echo(up: Up, *options: str) -> list[str]:
    """Submit as the README shows; return the ids of the two tasks."""
    answer = json.loads(curl("-X", "POST", f"{up.url}/api/v1/tasks", *options, "--data-binary", f"@{ECHO}"))
    assert answer["ok"] is True, answer
    return [task["task_id"] for task in answer["tasks"]]


def wait_ended(url: str, ids: list[str], seconds: float = FACT_SECONDS, **headers: str) -> dict[str, str]:
    """Wait until tasks have ended; return their states."""
    deadline = time.monotonic() + seconds
    states: dict[str, str] = dict.fromkeys(ids, "")
    with httpx.Client(base_url=url, headers=headers, timeout=FACT_SECONDS) as client:
        while open_ones := [task_id for task_id, state in states.items() if state not in ENDS]:
            assert time.monotonic() < deadline, states
            time.sleep(0.1)
            for task_id in open_ones[:20]:  # they end roughly in order
                states[task_id] = client.get(f"/api/v1/tasks/{task_id}").json()["status"]
    return states


def root_runs(up: Up) -> list[dict[str, Any]]:
    """Return the runs of `run-workflow` on the Prefect server."""
    found: list[dict[str, Any]] = []
    while True:
        body = {"flows": {"name": {"any_": ["run-workflow"]}}, "limit": 200, "offset": len(found)}
        page = httpx.post(
            f"{up.state().api_url}/flow_runs/filter", json=body, auth=up.login, timeout=FACT_SECONDS
        ).json()
        found += page
        if len(page) < 200:
            return found


def store_of(up: Up) -> redis.Redis:
    """Return a client of its Valkey."""
    password = (up.home / "valkey" / "password").read_text().strip()
    return redis.Redis(port=up.port + 2, password=password, decode_responses=True)


Messages = list[tuple[str, dict[str, Any]]]


@contextmanager
def subscriber(up: Up) -> Iterator[Messages]:
    """Collect the messages of MLOC's channels, as `redis-cli subscribe` shows them."""
    client = store_of(up)
    pubsub = client.pubsub()
    pubsub.subscribe(*CHANNELS)
    heard: Messages = []
    stop = threading.Event()

    def listen() -> None:
        while not stop.is_set():
            message = pubsub.get_message(timeout=0.1)
            if message and message["type"] == "message":
                heard.append((message["channel"], json.loads(message["data"])))

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield heard
    finally:
        stop.set()
        thread.join()
        pubsub.close()
        client.close()


def kinds(heard: Messages, task_id: str) -> list[str]:
    """Return the messages that name a task, abbreviated: `tasks`, `TASK_STARTED`, `STATUS RUNNING` ..."""
    found = []
    for channel, message in heard:
        extra = message.get("extra") or {}
        if task_id in {message.get("task_id"), extra.get("task_id"), extra.get("last_task")}:
            kind = message.get("type", channel)
            found.append(f"{kind} {message['status']}" if kind == "STATUS" else kind)
    return found


def hear(heard: Messages, task_id: str, number: int, seconds: float = FACT_SECONDS) -> list[str]:
    """Wait until `number` messages about a task have arrived; return them abbreviated."""
    deadline = time.monotonic() + seconds
    while len(found := kinds(heard, task_id)) < number:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found
