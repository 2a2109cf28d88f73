"""An MLOC worker in either generation of the protocol, written from the protocol and not from our code.

Runs in the test's own loop (`async with OriginalWorker(...)`) or as a process (`started_worker`) that tests can kill.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import httpx
from redis.asyncio import Redis

if TYPE_CHECKING:
    from collections.abc import Iterator

DELAY = 0.3
"""Duration of a task in seconds, as in the recording."""


def hardware(*, cores: int = 8, memory: int = 32 << 30, gpus: tuple[str, ...] = (), gpu_memory: int = 0) -> dict:
    """Return the hardware that a worker reports; only the later generation knows `gpu_memory` (bytes)."""
    entries = [{"index": i, "name": name, "uuid": f"GPU-{i}"} for i, name in enumerate(gpus)]
    if gpu_memory:
        entries = [entry | {"memory_total_bytes": gpu_memory} for entry in entries]
    return {
        "cpu": {"logical_cores": cores, "model": "x86_64"},
        "memory": {"total_bytes": memory},
        "gpu": {"driver_version": None, "cuda_version": None, "gpus": entries},
        "network": {"ip": "127.0.0.1"},
    }


@dataclass(kw_only=True)
class OriginalWorker:
    """One MLOC worker.

    Attributes:
        url: Redis.
        worker_id: Its id.
        generation: `first` (events with `extra` and `result`) or `later` (`payload`, TASK_STARTED, UNREGISTER).
        tags: Its tags.
        hardware: The hardware that it reports.
        results: Its RESULTS_DIR; None = results are not written.
        delay: Duration of a task in seconds.
        fail: Errors of its next tasks, in order; after these, tasks succeed.
        deaf: Seconds between registering as IDLE and subscribing, like a worker that loads its engines.
        hold: Its tasks also wait for this event, if there is one.
        heartbeat: Lifetime of its heartbeat key in seconds; renewed after half of it.
        leaves: Whether it unregisters when it is stopped.
        got: The messages of its tasks.
        ended: When each task ended.
    """

    url: str
    worker_id: str = "w-a"
    generation: Literal["first", "later"] = "first"
    tags: tuple[str, ...] = ()
    hardware: dict[str, Any] = field(default_factory=hardware)
    results: Path | None = None
    delay: float = DELAY
    fail: list[str] = field(default_factory=list)
    deaf: float = 0.0
    hold: asyncio.Event | None = None
    heartbeat: float = 120.0
    leaves: bool = True
    got: list[dict[str, Any]] = field(default_factory=list)
    ended: list[datetime] = field(default_factory=list)

    async def __aenter__(self) -> OriginalWorker:
        self._redis = Redis.from_url(self.url, decode_responses=True)
        self._ready = asyncio.Event()
        self._task = asyncio.create_task(self._live())
        if not self.deaf:
            await self._ready.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        if self.leaves:
            await self.unregister()
        await self._redis.aclose()

    async def unregister(self) -> None:
        """Unregister; the first generation sends nothing more."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.srem("workers:ids", self.worker_id)
            pipe.delete(f"worker:{self.worker_id}", f"worker:{self.worker_id}:hb")
            await pipe.execute()
        message = {"type": "UNREGISTER", "worker_id": self.worker_id}
        if self.generation == "later":
            message = self._later("UNREGISTER", None, {"uptime_sec": 1.0})
        await self._say("workers.events", message)

    async def _live(self) -> None:
        async with self._redis.pubsub() as tasks:
            if not self.deaf:
                # Before it is registered: a waiting task may be sent as soon as it is.
                await tasks.subscribe("tasks")
            await self._register()
            beat = asyncio.create_task(self._beat())
            try:
                if self.deaf:
                    await asyncio.sleep(self.deaf)
                    await tasks.subscribe("tasks")
                self._ready.set()
                async for message in tasks.listen():
                    data = json.loads(message["data"]) if message["type"] == "message" else {}
                    if data.get("assigned_worker") == self.worker_id:
                        await self._work(data)
            finally:
                beat.cancel()

    async def _register(self) -> None:
        row = {
            "worker_id": self.worker_id,
            "status": "STARTING",
            "started_at": _now(),
            "pid": "4242",
            "env_json": "{}",
            "hardware_json": json.dumps(self.hardware),
            "tags_json": json.dumps(list(self.tags)),
            "last_seen": _now(),
        }
        message = {"type": "REGISTER", "worker_id": self.worker_id, "status": "STARTING", "ts": _now()}
        message["tags"] = list(self.tags)
        if self.generation == "later":
            row |= {"cost_per_hour": "1.0", "cache_models_json": "[]", "cache_datasets_json": "[]"}
            message = self._later("REGISTER", "STARTING", {"env": {}, "hardware": self.hardware}, tags=list(self.tags))
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.sadd("workers:ids", self.worker_id)
            pipe.hset(f"worker:{self.worker_id}", mapping=row)
            pipe.publish("workers.events", json.dumps(message))
            await pipe.execute()
        await self._status("IDLE", {})
        await self._heartbeat()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self.heartbeat / 2)
            await self._heartbeat()

    async def _heartbeat(self) -> None:
        await self._redis.set(f"worker:{self.worker_id}:hb", _now(), px=int(self.heartbeat * 1000))
        await self._redis.hset(f"worker:{self.worker_id}", "last_seen", _now())
        metrics = {"loadavg": {"1m": 0.1, "5m": 0.1, "15m": 0.1}}
        message = {"type": "HEARTBEAT", "worker_id": self.worker_id, "ts": _now(), "metrics": metrics}
        if self.generation == "later":
            message = self._later("HEARTBEAT", None, {}, metrics=metrics | {"uptime_sec": 1.0})
        await self._say("workers.events", message)

    async def _status(self, status: str, extra: dict[str, str]) -> None:
        fields = {"status": status, "last_seen": _now()} | {f"extra_{key}": value for key, value in extra.items()}
        await self._redis.hset(f"worker:{self.worker_id}", mapping=fields)
        message = {"type": "STATUS", "worker_id": self.worker_id, "status": status, "ts": _now(), "extra": extra}
        await self._say("workers.events", self._later("STATUS", status, extra) if self._is_later else message)

    async def _work(self, message: dict[str, Any]) -> None:
        self.got.append(message)
        task_id, spec = message["task_id"], message["task"]["spec"]
        facts = {"taskType": message["task_type"], "dispatched_at": message["dispatched_at"]}
        await self._status("RUNNING", {"task_id": task_id})
        if self._is_later:
            await self._say("tasks.events", self._event("TASK_STARTED", task_id, None, facts | {"started_at": _now()}))
        await asyncio.sleep(self.delay)
        if self.hold is not None:
            await self.hold.wait()
        error = self.fail.pop(0) if self.fail else None
        if error is None:
            error = await self._deliver(task_id, spec, outcome(spec))
        kind = "TASK_SUCCEEDED" if error is None else "TASK_FAILED"
        self.ended.append(datetime.now(UTC))
        await self._say("tasks.events", self._event(kind, task_id, error, facts | {"finished_at": _now()}))
        # The recording pauses here, so that both IDLE messages come in a stable order.
        await asyncio.sleep(0.02)
        await self._status("IDLE", {"last_task": task_id})

    async def _deliver(self, task_id: str, spec: dict[str, Any], result: dict[str, Any]) -> str | None:
        destination = (spec.get("output") or {}).get("destination") or {}
        if self.results is not None:
            directory = self.results / task_id
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "responses.json").write_text(json.dumps(result, ensure_ascii=False, indent=2))
        if str(destination.get("type") or "local").lower() != "http":
            return None
        url, body = destination["url"], {"task_id": task_id, "result": result, "worker_id": self.worker_id}
        try:
            async with httpx.AsyncClient(timeout=destination.get("timeoutSec", 15), trust_env=False) as client:
                answer = await client.request(
                    destination.get("method", "POST"), url, json=body, headers=destination.get("headers")
                )
        except httpx.HTTPError as error:
            return f"Failed to deliver task {task_id} result to {url}: {error}"
        if answer.status_code < 400:
            return None
        return f"HTTP delivery for task {task_id} returned status {answer.status_code}: {answer.text[:200]}"

    def _event(self, kind: str, task_id: str, error: str | None, facts: dict[str, Any]) -> dict[str, Any]:
        if self._is_later:
            return {
                "type": kind,
                "ts": _now(),
                "worker_id": self.worker_id,
                "task_id": task_id,
                "status": None,
                "error": error,
                "payload": facts,
            }
        message = {"type": kind, "worker_id": self.worker_id, "task_id": task_id}
        return message | ({"result": {}} if error is None else {"error": error}) | {"ts": _now()}

    def _later(self, kind: str, status: str | None, payload: dict[str, Any], **more: Any) -> dict[str, Any]:
        base = {"type": kind, "ts": _now(), "worker_id": self.worker_id, "status": status, "tags": [], "metrics": {}}
        return base | more | {"payload": payload}

    @property
    def _is_later(self) -> bool:
        return self.generation == "later"

    async def _say(self, channel: str, message: dict[str, Any]) -> None:
        await self._redis.publish(channel, json.dumps(message, ensure_ascii=False))


def outcome(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the result of a task: each item echoed, all with the same token counts."""
    items = [str(item) for item in (spec.get("data") or {}).get("items") or ["-"]]
    count = len(items)
    usage = {"prompt_tokens": 3 * count, "completion_tokens": 5 * count, "total_tokens": 8 * count}
    return {
        "ok": True,
        "model": ((spec.get("model") or {}).get("source") or {}).get("identifier", "none"),
        "items": [{"index": i, "output": f"echo:{item}", "finish_reason": "stop"} for i, item in enumerate(items)],
        "usage": usage | {"latency_sec": 0.25, "num_requests": count},
    }


@contextmanager
def started_worker(url: str, worker_id: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker as a process; it is killed at the end of the block unless the test has killed it."""
    command = [sys.executable, "-m", "tests.support.original_worker", "--id", worker_id, *options]
    env, root = {**os.environ, "REDIS_URL": url}, Path(__file__).parents[2]
    process = subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.wait()


async def expire(url: str, worker_id: str) -> None:
    """Let the heartbeat of a killed worker expire now instead of at the end of its lifetime."""
    async with Redis.from_url(url) as redis:
        await redis.pexpire(f"worker:{worker_id}:hb", 1)


def _now() -> str:
    return datetime.now(UTC).isoformat()


def main() -> None:
    """Run one worker until SIGTERM; REDIS_URL from the environment."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--id", default="w-a")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--delay", type=float, default=DELAY)
    parser.add_argument("--heartbeat", type=float, default=120.0)
    parser.add_argument("--generation", default="first", choices=("first", "later"))
    parser.add_argument("--gpus", default="", help="names of its GPUs, by comma")
    given = parser.parse_args()
    worker = OriginalWorker(
        url=os.environ["REDIS_URL"],
        worker_id=given.id,
        generation=given.generation,
        results=given.results,
        delay=given.delay,
        heartbeat=given.heartbeat,
        hardware=hardware(gpus=tuple(re.findall(r"[^,]+", given.gpus))),
    )

    async def live() -> None:
        async with worker:
            print("ready", flush=True)
            await asyncio.Event().wait()

    asyncio.run(live())


if __name__ == "__main__":
    main()
