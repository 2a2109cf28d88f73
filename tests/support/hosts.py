"""Shared by tests of hosts: requests, waiting, and whether a process is alive."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.host_types import HostSpec
from mloc_prefect.execution.hosts.attempt_client import CANCEL_SECONDS, execute
from mloc_prefect.execution.protocol import ExecutionRequest
from mloc_prefect.process.run_dir import run_dir
from mloc_prefect.process.supervisor import read_process
from tests.support.patience import FACT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionResult

ECHO = "mloc_prefect.executors.echo:EchoExecutor"
TROUBLE = "executors_for_tests:Trouble"
HELD = "held_executors:Echo"

_numbers = itertools.count(1)


def host_spec(executor: str = ECHO, **options: Any) -> HostSpec:
    """Return a host spec for the interpreter of the tests; test executors can be imported in it."""
    return HostSpec(executor, sys.executable, options, env={"PYTHONPATH": str(Path(__file__).parent)})


def late_spec(root: Path) -> HostSpec:
    """Return the spec of a host that begins when the file `begin` is there."""
    python = root / "late-python"
    python.write_text(f'#!/bin/sh\nwhile [ ! -e {root}/begin ]; do sleep 0.02; done\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return replace(host_spec(), python=str(python))


def echo_request(root: Path, *, task: str = "task", attempt: int | None = None, **spec: Any) -> ExecutionRequest:
    """Return a request for echo; without `attempt` every call is a new attempt."""
    number = attempt if attempt is not None else next(_numbers)
    task_dir = root / task
    return ExecutionRequest(
        task_id=task,
        name=task,
        task_type="echo",
        executor=ECHO,
        spec={"taskType": "echo", **spec},
        task_dir=str(task_dir),
        attempt_dir=str(task_dir / "attempts" / f"1-{number}"),
        attempt=number,
    )


def trouble_request(root: Path, *steps: list[Any], **fields: Any) -> ExecutionRequest:
    """Return a request for `Trouble`."""
    request = echo_request(root, do=list(steps))
    return ExecutionRequest(**{**request.to_wire(), "executor": TROUBLE, **fields})


def run_dir_of(root: Path) -> Path:
    """Return the run directory of a test: next to its own directory, whose path is too long for sockets."""
    return run_dir(root.parent / f"{zlib.crc32(root.name.encode()):08x}")


class Runner:
    """`execute` with the arguments of tests filled in; records the events."""

    def __init__(self, hosts: Any, root: Path) -> None:
        self.hosts = hosts
        self.root = root
        self.events: list[ExecutionEvent] = []

    async def __call__(
        self,
        request: ExecutionRequest,
        spec: HostSpec,
        *,
        timeout: float | None = None,
        stall: float = 60.0,
        cancel_seconds: float = CANCEL_SECONDS,
        on_event: Callable[[ExecutionEvent], None] | None = None,
    ) -> ExecutionResult:
        return await execute(
            request,
            spec,
            self.hosts,
            on_event=on_event or self.events.append,
            timeout=timeout,
            stall=stall,
            cancel_seconds=cancel_seconds,
        )

    async def trouble(self, *steps: list[Any], **limits: float) -> dict[str, Any]:
        """Run steps of `Trouble` and return the result object."""
        result = await self(trouble_request(self.root, *steps), host_spec(TROUBLE), **limits)
        return read_json(result.path)


def read_json(path: str | Path) -> Any:
    return json.loads(Path(path).read_text())


def names(directory: str | Path) -> list[str]:
    """Return the names in a directory, sorted."""
    return sorted(path.name for path in Path(directory).iterdir())


def read_pids(path: Path) -> list[int]:
    return [int(pid) for pid in path.read_text().split()]


def is_alive(pid: int) -> bool:
    """Return whether `pid` runs; zombies do not count (there may be no process to reap them)."""
    process = read_process(pid)
    return process is not None and process.alive


async def until(fact: Callable[[], Any], seconds: float = FACT_SECONDS) -> None:
    """Wait until `fact()` is true."""
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, f"not within {seconds} s: {fact}"
        await asyncio.sleep(0.01)


async def until_dead(pids: list[int], seconds: float = FACT_SECONDS) -> None:
    """Wait until none of `pids` runs."""
    await until(lambda: not [pid for pid in pids if is_alive(pid)], seconds)
