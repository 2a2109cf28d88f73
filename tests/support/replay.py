"""Replays recorded scenarios against our endpoint: sends the steps, plays the workers, collects the messages."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from redis.asyncio import Redis

from tests.support.original_worker import OriginalWorker
from tests.support.patience import FACT_SECONDS
from tests.support.transcript import Differences, Found, Names, compare, compare_messages, label, scenario

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

PATIENCE = FACT_SECONDS
"""Seconds to wait until a response matches the recording."""

_STEP = 0.05
_QUIET = 0.4
_BOUNDARY = "recorded"
_OF_A_TASK = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}(/|$)")
_ENDED = {"DONE", "FAILED", "CANCELLED"}


@dataclass(frozen=True, kw_only=True)
class Site:
    """The system that a scenario is replayed against.

    Attributes:
        url: Endpoint.
        redis: Its Redis.
        results: Its results root.
        token: The token that it requires, or None.
    """

    url: str
    redis: str
    results: Path
    token: str | None = "dev-token"


@dataclass
class Answer:
    """A response."""

    status: int
    type: str | None
    body: bytes

    def as_recorded(self) -> dict[str, Any]:
        """Return the response in the form of the recording."""
        try:
            return {"status": self.status, "type": self.type, "json": json.loads(self.body)}
        except ValueError:
            return {"status": self.status, "type": self.type, "text": self.body.decode("utf-8", "replace")}


@dataclass
class Replay:
    """One scenario.

    Attributes:
        site: The system that it is replayed against.
        name: Number of the scenario.
        differences: The allowed differences.
        let_go: Lets a held worker finish its task.
    """

    site: Site
    name: str
    differences: Differences
    messages: list[Any] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    let_go: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> list[str]:
        """Replay the scenario; return every difference that is not listed, as text."""
        recorded = scenario(self.name)
        alike = {"w-a": "<worker>", "w-b": "<worker>"} if self.name in EQUAL_WORKERS else {}
        self.names = Names(str(urlsplit(self.site.url).port), str(self.site.results), alike)
        async with AsyncExitStack() as self.stack, self._listening():
            for step in recorded["steps"]:
                await self._prepare(step["n"])
                await self._step(step)
            await self._compare_messages(recorded.get("messages", []))
            await self._prepare("end")
            self._compare_extra(recorded.get("extra", {}))
        await self._clear()
        return self.failures

    async def worker(self, worker_id: str = "w-a", **more: Any) -> OriginalWorker:
        """Start a worker that runs until the end of the scenario."""
        worker = OriginalWorker(url=self.site.redis, worker_id=worker_id, leaves=False, **more)
        return await self.stack.enter_async_context(worker)

    async def send(self, step: dict[str, Any]) -> Answer:
        """Send one request."""
        return await asyncio.to_thread(self._send, step)

    async def upload(self, task_id: str, name: str, content: bytes) -> None:
        """Store a file, for steps whose upload is not part of the recording."""
        body = {"multipart": {"field": "file", "filename": name, "content": content.decode()}}
        path = f"/api/v1/results/{task_id}/files"
        answer = await self.send({"method": "POST", "path": path, "auth": "ok", "body": body})
        assert answer.status == 200, answer

    async def post(self, path: str, value: Any) -> None:
        """Post JSON, for steps that are not part of the recording."""
        step = {"method": "POST", "path": path, "auth": "ok", "content_type": "application/json"}
        answer = await self.send(step | {"body": json.dumps(value)})
        assert answer.status == 200, answer

    async def _prepare(self, moment: int | str) -> None:
        script = SCRIPT.get(self.name, {}).get(moment)
        if script is not None:
            await script(self)

    async def _step(self, step: dict[str, Any]) -> None:
        """Send a step; if we refuse it deliberately, send it again without the refused part."""
        await self._try(step, str(step["n"]))
        changes = self.differences.amendments(self.name, str(step["n"]))
        for change in changes:
            assert change["replace"] in step["body"], f"{self.name} step {step['n']}: nothing to amend"
            self.names.amended[change["replace"]] = change["by"]
        if changes:
            await self._try(self.names.same(step), f"{step['n']} amended")

    async def _try(self, step: dict[str, Any], number: str) -> None:
        """Send a step; repeat a GET until the response matches the recording or the time is over."""
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while True:
            left = self._differs(step, await self.send(step), number)
            if not left or step["method"] != "GET" or asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(_STEP)
        self.failures += [f"{self.name} step {number} ({step['title']}): {one}" for one in left]

    def _differs(self, step: dict[str, Any], answer: Answer, number: str) -> list[Found]:
        recorded = {"status": step["status"], "type": step.get("type")}
        recorded |= {key: step[key] for key in ("json", "text") if key in step}
        ours = answer.as_recorded()
        if answer.status == step["status"]:
            self.names.learn(recorded.get("json"), ours.get("json"))
        if step["path"] == "/api/v1/tasks" and isinstance(ours.get("json"), list):
            ours["json"] = [one for one in ours["json"] if one["task_id"] in self.names.ids.values()]
        ours = self.names.normal(ours)
        recorded = self.names.same(recorded)
        found = compare(recorded["status"], ours["status"], "status")
        if not found:
            found = compare(recorded, ours, "")
        elif "detail" in (ours.get("json") or {}):
            found += compare(None, ours["json"]["detail"], "detail")
        found = [Found(one.field.removeprefix("."), one.recorded, one.ours) for one in found]
        return self.differences.unexplained(self.name, number, found)

    def _send(self, step: dict[str, Any]) -> Answer:
        address = urlsplit(self.site.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=FACT_SECONDS)
        headers = {name: self.names.fill(value) for name, value in step.get("headers", {}).items()}
        headers |= self._authorization(step["auth"])
        body, kind = self._body(step)
        if kind:
            headers["Content-Type"] = kind
        try:
            connection.request(step["method"], self.names.fill(step["path"]), body=body, headers=headers)
            response = connection.getresponse()
            return Answer(response.status, response.getheader("Content-Type"), response.read())
        finally:
            connection.close()

    def _authorization(self, auth: str) -> dict[str, str]:
        token = self.site.token or "any"
        known = {"ok": f"Bearer {token}", "wrong": "Bearer wrong", "basic": "Basic ZGV2OnRva2Vu"}
        return {"Authorization": known[auth]} if auth in known else {}

    def _body(self, step: dict[str, Any]) -> tuple[bytes | None, str | None]:
        body, kind = step.get("body"), step.get("content_type")
        if "body_hex" in step:
            return bytes.fromhex(step["body_hex"]), kind
        if not isinstance(body, dict):
            return (self.names.fill(body).encode() if body is not None else None), kind
        part = body["multipart"]
        name = f'; filename="{part["filename"]}"' if part["filename"] is not None else ""
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{part["field"]}"{name}\r\n\r\n'
        text = f"{head}{part.get('content', 'z')}\r\n--{_BOUNDARY}--\r\n"
        return text.encode(), f"multipart/form-data; boundary={_BOUNDARY}"

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[None]:
        redis = Redis.from_url(self.site.redis, decode_responses=True)
        async with redis, redis.pubsub() as channels:
            await channels.subscribe("tasks", "tasks.events", "workers.events")
            for _ in range(3):
                await channels.get_message(timeout=5.0)
            listener = asyncio.create_task(self._collect(channels))
            try:
                yield
            finally:
                listener.cancel()
                await asyncio.gather(listener, return_exceptions=True)

    async def _collect(self, channels: Any) -> None:
        async for message in channels.listen():
            if message["type"] != "message":
                continue
            heard = [message["channel"], json.loads(message["data"])]
            again = heard[1].get("type") == "HEARTBEAT" and label(*heard) in {label(*one) for one in self.messages}
            if not again:  # the recording has one heartbeat per worker
                self.messages.append(heard)

    async def _quiet(self) -> None:
        """Wait until no messages arrive any more."""
        count = -1
        while count != len(self.messages):
            count = len(self.messages)
            await asyncio.sleep(_QUIET)

    async def _compare_messages(self, recorded: list[Any]) -> None:
        await self._quiet()
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while True:
            ours = self.names.normal(self.messages)
            left = compare_messages(self.names.same(recorded), ours)
            left = self.differences.unexplained(self.name, "messages", left)
            if not left or asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(_STEP)
        self.failures += [f"{self.name} messages: {one}" for one in left]
        self.failures += [f"{self.name} messages: {text}" for text in out_of_order(ours)]

    def _compare_extra(self, recorded: dict[str, Any]) -> None:
        found = []
        if "tree" in recorded:
            root = self.site.results
            tree = {str(path.relative_to(root)) for path in root.rglob("*")}
            tree = {path for path in tree if not _OF_A_TASK.match(path)}  # those of other scenarios
            for path in sorted({*tree, *recorded["tree"]}):
                states = ["<present>" if path in paths else "<absent>" for paths in (recorded["tree"], tree)]
                found += compare(states[0], states[1], f"tree.{path}")
        self.failures += [str(one) for one in self.differences.unexplained(self.name, "end", found)]

    async def _clear(self) -> None:
        """Cancel and remove what is left, so that the next scenario finds neither tasks nor workers."""
        listed = json.loads((await self.send({"method": "GET", "path": "/api/v1/tasks", "auth": "ok"})).body)
        for record in listed:
            if record["status"] not in _ENDED:
                path = f"/api/v1/tasks/{record['task_id']}/cancel?submission=true"
                await self.send({"method": "POST", "path": path, "auth": "ok"})
        async with Redis.from_url(self.site.redis, decode_responses=True) as redis:
            for worker_id in await redis.smembers("workers:ids"):
                await redis.delete(f"worker:{worker_id}", f"worker:{worker_id}:hb")
            await redis.delete("workers:ids")


def out_of_order(messages: list[Any]) -> list[str]:
    """Return errors in the order of messages: a worker starts after the dispatch, ends after that, and so on."""
    positions = {label(channel, message): at for at, (channel, message) in reversed(list(enumerate(messages)))}
    wrong = []
    for channel, message in messages:
        if channel != "tasks":
            continue
        task_id, worker = message["task_id"], message["assigned_worker"]
        order = [
            f"tasks/{task_id}",
            f"workers.events/STATUS/RUNNING/{worker}/{task_id}",
            f"tasks.events/TASK_SUCCEEDED/{worker}/{task_id}",
            f"workers.events/STATUS/IDLE/{worker}/{task_id}",
        ]
        found = [positions[name] for name in order if name in positions]
        if found != sorted(found):
            wrong.append(f"the messages of {task_id} come in the order {found}")
    return wrong


EQUAL_WORKERS = {"09"}
"""Scenarios with two equal workers: which one gets a task is not defined."""

Script = dict[int | str, "Callable[[Replay], Awaitable[Any]]"]


async def _shared(replay: Replay) -> None:
    for worker_id in ("w-a", "w-b"):
        await replay.worker(worker_id, results=replay.site.results)


async def _first_worker(replay: Replay) -> None:
    await replay.worker("w-a")


async def _held_worker(replay: Replay) -> None:
    await replay.worker("w-a", hold=replay.let_go)  # the steps read its task and its record while it works


async def _let_go(replay: Replay) -> None:
    replay.let_go.set()


async def _late_worker(replay: Replay) -> None:
    await replay.worker("w-a", tags=("cpu", "lab"))


async def _goodbye(replay: Replay) -> None:
    worker = OriginalWorker(url=replay.site.redis, worker_id="w-a")
    worker._redis = Redis.from_url(replay.site.redis, decode_responses=True)
    await worker.unregister()
    await worker._redis.aclose()


async def _one_stale(replay: Replay) -> None:
    for worker_id in ("w-old", "w-new"):
        await replay.worker(worker_id)
    async with Redis.from_url(replay.site.redis) as redis:
        await redis.delete("worker:w-old:hb")


async def _second_stage_done(replay: Replay) -> None:
    step = {"method": "GET", "path": "/api/v1/tasks/<task-5>", "auth": "ok"}
    async with asyncio.timeout(PATIENCE):
        while json.loads((await replay.send(step)).body)["status"] != "DONE":
            await asyncio.sleep(_STEP)


async def _padded(replay: Replay) -> None:
    more = {"worker_id": "w", "metadata": {"m": 1}, "received_at": "yesterday"}
    await replay.post("/api/v1/results", {"task_id": " padded ", "result": {"x": "\u00e9"}, **more})


async def _model(replay: Replay) -> None:
    await replay.upload("free-form", "final_model.zip", b"PK-demo")


async def _names(replay: Replay) -> None:
    for name in ("a\\b.txt", "sp ace.txt", ".hidden"):
        await replay.upload("f1", name, b"z")


async def _broken(replay: Replay) -> None:
    directory = replay.site.results / "broken"
    directory.mkdir(parents=True)
    (directory / "responses.json").write_text("{not json")


SCRIPT: dict[str, Script] = {
    "03": {4: _late_worker},
    "04": {1: _held_worker, 4: _let_go, 7: _goodbye},
    "05": {4: _padded, 19: _model, 43: _names, 49: _broken},
    "07": {1: _first_worker},
    "09": {1: _shared},
    "10": {1: _first_worker, 11: _second_stage_done},  # it waits indefinitely in the recording
    "18": {1: _one_stale},
}
"""What happens in a scenario before the step with this number, in addition to the recorded requests."""
