"""What tests of hosts share: requests, waiting for facts, and whether a process is alive."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.client import execute
from mloc_prefect.execution.dirs import run_dir
from mloc_prefect.execution.hosttypes import HostSpec
from mloc_prefect.execution.protocol import ExecutionRequest
from mloc_prefect.execution.supervisor import read_process

if TYPE_CHECKING:
    from collections.abc import Callable

    from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionResult

ECHO = "mloc_prefect.executors.echo:EchoExecutor"
TROUBLE = "executors_for_tests:Trouble"
HELD = "held_executors:Echo"

_numbers = itertools.count(1)


def host_spec(executor: str = ECHO, **options: Any) -> HostSpec:
    """Return a spec for the interpreter of the tests; test executors are importable in it."""
    return HostSpec(executor, sys.executable, options, env={"PYTHONPATH": str(Path(__file__).parent)})


def echo_request(root: Path, *, task: str = "task", attempt: int | None = None, **spec: Any) -> ExecutionRequest:
    """Return a request for echo; without `attempt` every call is another attempt."""
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
    """Return the run directory of a test; beside its own directory, whose long name would move it out of reach."""
    return run_dir(root.parent / f"{zlib.crc32(root.name.encode()):08x}")


class Runner:
    """`execute` with the arguments of tests filled in; keeps the events."""

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
        on_event: Callable[[ExecutionEvent], None] | None = None,
    ) -> ExecutionResult:
        return await execute(
            request, spec, self.hosts, on_event=on_event or self.events.append, timeout=timeout, stall=stall
        )

    async def trouble(self, *steps: list[Any], timeout: float | None = None, stall: float = 60.0) -> dict[str, Any]:
        """Run steps of `Trouble` and return the result object."""
        result = await self(trouble_request(self.root, *steps), host_spec(TROUBLE), timeout=timeout, stall=stall)
        return read_json(result.path)


def read_json(path: str | Path) -> Any:
    return json.loads(Path(path).read_text())


def names(directory: str | Path) -> list[str]:
    """Return the names in a directory, sorted."""
    return sorted(path.name for path in Path(directory).iterdir())


def read_pids(path: Path) -> list[int]:
    return [int(pid) for pid in path.read_text().split()]


def is_alive(pid: int) -> bool:
    """Return whether `pid` runs; zombies do not (nobody may be there to reap them)."""
    process = read_process(pid)
    return process is not None and process.alive


async def until(fact: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait until `fact()` is true."""
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline, f"not within {seconds} s: {fact}"
        await asyncio.sleep(0.01)


async def until_dead(pids: list[int], seconds: float = 60.0) -> None:
    """Wait until none of `pids` runs."""
    await until(lambda: not [pid for pid in pids if is_alive(pid)], seconds)
