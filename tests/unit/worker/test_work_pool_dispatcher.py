"""Attempts elsewhere: a run that ended without an outcome says by a code whether its worker was lost or stopped."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import httpx
import pytest

from mloc_prefect.errors import ExecutionError
from mloc_prefect.flow.attempt_files import EventReader
from mloc_prefect.flow.worker_loss import WorkerLostError, WorkerStoppedError
from mloc_prefect.prefect_ext.run_facts import STOPPED
from mloc_prefect.prefect_ext.run_follower import RunFollower
from mloc_prefect.prefect_ext.state_reasons import StateCode, StateReason
from mloc_prefect.worker.work_pool_dispatcher import WorkPoolDispatcher, _Attempt

CODE = StateReason(StateCode.WORKER_STOPPED).as_details()


class Server:
    """Knows the state of one run; does not answer the first questions."""

    def __init__(self, state: dict[str, Any] | None, away: int = 0) -> None:
        self.state, self.away, self.asked = state, away, 0

    async def request(self, _method: str, _path: str, **_: Any) -> Any:
        self.asked += 1
        if self.asked <= self.away:
            raise httpx.ConnectError("down")
        return SimpleNamespace(content=b"x", json=lambda: {"state": self.state})


async def outcome_of(server: Server, directory: Path, seen: str = "CRASHED") -> Any:
    """Return how an attempt ends whose run is seen, by an event, to be in a state."""
    client, run = cast("Any", server), uuid4()
    runs = RunFollower(client)
    dispatcher = WorkPoolDispatcher(client, "gpu", runs, lambda _: "", tail_seconds=0.01)
    attempt = _Attempt(cast("Any", None), directory, run, lambda _: None, EventReader(directory), worker="w")
    resource = {"prefect.state-type": seen, "prefect.state-message": "for people"}
    with runs.following(run) as followed:
        runs.notice(
            cast("Any", SimpleNamespace(resource=SimpleNamespace(id=f"prefect.flow-run.{run}", get=resource.get)))
        )
        return await dispatcher._outcome(attempt, followed)


@pytest.mark.parametrize(
    ("state", "error", "text"),
    [
        ({"type": "CRASHED", "message": "any text", "state_details": CODE}, WorkerStoppedError, "w was stopped"),
        ({"type": "CRASHED", "message": STOPPED}, WorkerStoppedError, "w was stopped"),  # of the version before
        ({"type": "CRASHED", "message": "Crash detected"}, WorkerLostError, "w was lost: Crash detected"),
        ({"type": "CRASHED"}, WorkerLostError, "w was lost: crashed"),
        ({"type": "CANCELLED", "message": "by its user"}, ExecutionError, "cancelled"),
    ],
)
async def test_an_end_without_an_outcome(state: dict[str, Any], error: type[Exception], text: str, tmp_path: Path):
    with pytest.raises(ExecutionError) as caught:
        await outcome_of(Server(state), tmp_path)
    assert type(caught.value) is error
    assert caught.value.message == text


async def test_the_reason_of_a_crash_is_waited_for(tmp_path: Path):
    """An event does not carry it, and a stop that is taken for a loss costs an attempt."""
    server = Server({"type": "CRASHED", "state_details": CODE}, away=3)
    with pytest.raises(WorkerStoppedError):
        await outcome_of(server, tmp_path)
    assert server.asked == 4
