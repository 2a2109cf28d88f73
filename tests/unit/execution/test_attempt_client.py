"""`execute` and the host's server, over `MemoryHosts`: the same sockets, threads instead of processes."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest

from mloc_prefect.errors import DispatchError, ExecutionError
from mloc_prefect.execution.host_types import loaded_mark
from mloc_prefect.execution.hosts import Host, HostExit, HostSpec, MemoryHosts
from mloc_prefect.execution.hosts.attempt_client import execute
from tests.support.hosts import ECHO, Runner, echo_request, host_spec, read_json, trouble_request, until

SPEC = HostSpec(ECHO, "unused")


class Probe:
    """Tells the test what it meets; made to be held and let go by the test."""

    concurrency: ClassVar[int] = 2
    running = threading.Semaphore(0)
    release = threading.Event()
    ended: ClassVar[list[str]] = []

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options
        self.told = self.ended  # one that closes late tells the test that made it, not the next one

    def run(self, request: Any, context: Any) -> dict[str, Any]:
        type(self).running.release()
        try:
            while not self.release.is_set():
                context.sleep(0.005)
            self.told.append("done")
        except BaseException:
            self.told.append("cancelled")
            raise
        return {"ok": True, "model": "m", "thread": threading.current_thread().name}

    def close(self) -> None:
        self.told.append("closed")


PROBE = HostSpec(f"{__name__}:Probe", "unused")


@pytest.fixture
async def hosts() -> AsyncIterator[MemoryHosts]:
    Probe.release.clear()
    Probe.ended = []
    Probe.running = threading.Semaphore(0)
    async with MemoryHosts() as hosts:
        yield hosts


@pytest.fixture
def run(hosts: MemoryHosts, tmp_path: Path) -> Runner:
    return Runner(hosts, tmp_path)


async def test_a_mark_lies_beside_the_socket_while_a_model_is_loaded(run: Runner, tmp_path: Path) -> None:
    spec = host_spec("tests.support.executors_for_tests:Trouble")
    mark = loaded_mark(Path((await run.hosts.acquire(spec)).socket))
    seen = []
    for steps in ([], ["load"]), (["unload"], ["fail", "user", "no such model"]):
        with suppress(ExecutionError):
            await run(trouble_request(tmp_path, *filter(None, steps)), spec)
        seen.append(mark.exists())
    assert seen == [True, False]


async def probe_runs() -> None:
    assert await asyncio.to_thread(Probe.running.acquire, timeout=60)


async def test_result_and_events(run: Runner, tmp_path: Path) -> None:
    request = echo_request(tmp_path, data={"items": [1, 2, 3]})
    result = await run(request, SPEC)
    assert result.path == f"{request.attempt_dir}/result.json"
    assert result.host_pid == os.getpid()
    assert result.reused_rows == 0
    assert [item["output"] for item in read_json(result.path)["items"]] == [1, 2, 3]
    assert {event.kind for event in run.events} == {"progress"}
    assert len(run.hosts.starts) == 1


async def test_failure_carries_the_facts(run: Runner, tmp_path: Path) -> None:
    with pytest.raises(ExecutionError, match="RuntimeError: on purpose") as caught:
        await run(echo_request(tmp_path, echo={"fail": "on purpose"}), SPEC)
    assert caught.value.retryable
    assert caught.value.failure.error_type == "RuntimeError"


async def test_tasks_beyond_the_concurrency_wait(run: Runner, tmp_path: Path) -> None:
    tasks = [asyncio.create_task(run(echo_request(tmp_path), PROBE)) for _ in range(4)]
    await probe_runs()
    await probe_runs()
    assert not await asyncio.to_thread(Probe.running.acquire, timeout=0.1)
    Probe.release.set()
    results = await asyncio.gather(*tasks)
    assert len({read_json(result.path)["thread"] for result in results}) == 2
    assert results[0].summary == {"model": "m"}


async def test_cancelling_reaches_the_executor(run: Runner, tmp_path: Path) -> None:
    task = asyncio.create_task(run(echo_request(tmp_path), PROBE))
    await probe_runs()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert Probe.ended == ["cancelled"]
    assert len(run.hosts.starts) == 1


async def test_timeout_and_stall(run: Runner, tmp_path: Path) -> None:
    with pytest.raises(ExecutionError, match="longer than its limit") as caught:
        await run(echo_request(tmp_path), PROBE, timeout=0.05)
    assert caught.value.failure.kind == "timeout"
    assert Probe.ended == ["cancelled"]
    with pytest.raises(ExecutionError, match="reported nothing for") as caught:
        await run(echo_request(tmp_path), PROBE, stall=0.05)
    assert caught.value.failure.kind == "stalled"
    await asyncio.gather(run(echo_request(tmp_path), SPEC))


async def test_host_that_is_cut_off(run: Runner, hosts: MemoryHosts, tmp_path: Path) -> None:
    task = asyncio.create_task(run(echo_request(tmp_path), PROBE))
    await probe_runs()
    await hosts.discard(PROBE.key)
    with pytest.raises(ExecutionError, match="killed by SIGKILL") as caught:
        await task
    assert caught.value.failure.kind == "killed"


async def test_error_of_the_listener_cancels_the_task(run: Runner, tmp_path: Path) -> None:
    def broken(_event: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run(echo_request(tmp_path, data={"items": [1]}), SPEC, on_event=broken)


async def test_idle_host_leaves_and_the_next_task_gets_a_new_one(tmp_path: Path) -> None:
    async with MemoryHosts(idle_seconds=0.5) as hosts:
        run = Runner(hosts, tmp_path)
        Probe.release.set()
        Probe.ended = []
        await run(echo_request(tmp_path), PROBE)
        await until(lambda: Probe.ended == ["done", "closed"])
        await run(echo_request(tmp_path), PROBE)
        assert len(hosts.starts) == 2


class Leaving:
    """A provider whose hosts have always just left."""

    async def acquire(self, spec: HostSpec) -> Host:
        return Host(spec.key, "/nowhere", 1, "/dev/null")

    async def discard(self, key: str, *, pid: int | None = None) -> HostExit | None: ...

    async def exit_of(self, key: str, *, pid: int | None = None) -> HostExit | None: ...


async def test_hosts_that_always_leave_end_the_patience(tmp_path: Path) -> None:
    limits = {"timeout": None, "stall": 1.0, "retry_pauses": (0.0, 0.001, 0.001)}
    with pytest.raises(DispatchError, match="leave before they take the task"):
        await execute(echo_request(tmp_path), SPEC, Leaving(), on_event=lambda _event: None, **limits)


class TestServer:
    """What a client may do wrong, and the operations beside `run`."""

    async def ask(self, hosts: MemoryHosts, line: bytes) -> list[dict[str, Any]]:
        host = await hosts.acquire(SPEC)
        reader, writer = await asyncio.open_unix_connection(host.socket)
        writer.write(line)
        answers = (await reader.read()).splitlines()
        writer.close()
        return [json.loads(answer) for answer in answers]

    async def test_ping(self, hosts: MemoryHosts, run: Runner, tmp_path: Path) -> None:
        await run(echo_request(tmp_path), SPEC)
        while True:  # the host counts a task as served a moment after its last line
            (pong,) = await self.ask(hosts, b'{"op": "ping"}\n')
            if not pong["tasks"]:
                break
        assert pong["t"] == "pong"
        assert (pong["pid"], pong["executor"], pong["tasks"], pong["served"]) == (os.getpid(), ECHO, 0, 1)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (b"nonsense\n", "bad request: Expecting value"),
            (b"[]\n", "bad request: expected a JSON object, got list"),
            (b'{"op": "dance"}\n', "unknown operation 'dance'"),
            (b'{"op": "run"}\n', "bad request"),
            (b'{"op": "run", "request": {"spec": {}}}\n', "bad request"),
            (b'{"op": "run", "request_file": "/not/there"}\n', "bad request: [Errno 2]"),
        ],
        ids=["text", "list", "op", "no request", "half a request", "no file"],
    )
    async def test_bad_requests_do_not_harm(
        self, hosts: MemoryHosts, run: Runner, tmp_path: Path, line: bytes, message: str
    ) -> None:
        (answer,) = await self.ask(hosts, line)
        assert answer["t"] == "error"
        assert message in answer["failure"]["message"]
        await run(echo_request(tmp_path), SPEC)
        assert len(hosts.starts) == 1

    async def test_endless_line_is_cut_off(self, hosts: MemoryHosts, run: Runner, tmp_path: Path) -> None:
        with suppress(ConnectionError):  # the host does not read to the end, so its answer may get lost
            (answer,) = await self.ask(hosts, b"x" * (5 << 20))
            assert "too long" in answer["failure"]["message"]
        await run(echo_request(tmp_path), SPEC)
        assert len(hosts.starts) == 1

    async def test_stop_waits_for_running_tasks(self, hosts: MemoryHosts, run: Runner, tmp_path: Path) -> None:
        task = asyncio.create_task(run(echo_request(tmp_path), PROBE))
        await probe_runs()
        host = await hosts.acquire(PROBE)
        for line, ok in ((b'{"op": "stop", "if_idle": true}\n', False), (b'{"op": "stop"}\n', True)):
            reader, writer = await asyncio.open_unix_connection(host.socket)
            writer.write(line)
            answer = json.loads(await reader.read())
            assert (answer["t"], answer["ok"]) == ("stopping", ok)
            writer.close()
        assert not Path(host.socket).exists()
        Probe.release.set()
        await task
        await until(lambda: "closed" in Probe.ended)
