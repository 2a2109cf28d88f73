"""What is due is due by the clock of the server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError

from mloc_prefect.worker.claims import scheduled_runs as module
from mloc_prefect.worker.claims.scheduled_runs import ScheduledRuns

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Server:
    """Answers with no runs, and notes until when they were asked for."""

    def __init__(self) -> None:
        self.now = NOON
        self.asked: list[datetime] = []
        self.status: int | None = None

    async def request(self, method: str, path: str, json: Any = None) -> Any:
        self.asked.append(datetime.fromisoformat(json["scheduled_before"]))
        if self.status:
            response = httpx.Response(self.status, request=httpx.Request(method, f"http://test{path}"))
            raise PrefectHTTPStatusError("no", request=response.request, response=response)
        return SimpleNamespace(headers={"date": format_datetime(self.now, usegmt=True)}, json=list)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The clocks of this machine: wall time an hour slow, and one that never goes back."""
    found = SimpleNamespace(wall=(NOON - timedelta(hours=1)).timestamp(), steady=100.0)
    monkeypatch.setattr(
        module, "time", SimpleNamespace(time=lambda: found.wall, monotonic=lambda: found.steady), raising=True
    )
    return found


async def test_a_wrong_clock_here_hides_no_run_that_is_due(clock: SimpleNamespace) -> None:
    server, runs = Server(), ScheduledRuns("gpu")
    for _ in range(2):
        assert await runs.read(server, ["q"]) == []  # type: ignore[arg-type]
    assert server.asked[0] < NOON  # nothing was known of the server yet
    assert NOON <= server.asked[1] <= NOON + timedelta(seconds=5)


async def test_a_jump_of_the_clock_here_changes_nothing(clock: SimpleNamespace) -> None:
    server, runs = Server(), ScheduledRuns("gpu")
    await runs.read(server, ["q"])  # type: ignore[arg-type]
    clock.wall += 86_400
    await runs.read(server, ["q"])  # type: ignore[arg-type]
    assert server.asked[1] <= NOON + timedelta(seconds=5)


async def test_after_a_sleep_of_the_machine_the_servers_time_is_learned_anew(clock: SimpleNamespace) -> None:
    server, runs = Server(), ScheduledRuns("gpu")
    await runs.read(server, ["q"])  # type: ignore[arg-type]
    server.now += timedelta(hours=8)  # the clock that never goes back stood still meanwhile
    for _ in range(2):
        await runs.read(server, ["q"])  # type: ignore[arg-type]
    assert server.asked[-1] >= server.now


async def test_what_is_due_later_is_asked_for_in_advance_where_wanted(clock: SimpleNamespace) -> None:
    server, runs = Server(), ScheduledRuns("gpu")
    for _ in range(2):
        await runs.read(server, ["q"], ahead=60)  # type: ignore[arg-type]
    assert server.asked[1] == NOON + timedelta(seconds=60)


async def test_a_queue_that_was_deleted_has_no_runs_and_a_fault_is_one(clock: SimpleNamespace) -> None:
    server, runs = Server(), ScheduledRuns("gpu")
    assert await runs.read(server, []) == []  # type: ignore[arg-type]
    assert server.asked == []
    server.status = 404
    assert await runs.read(server, ["q"]) == []  # type: ignore[arg-type]
    server.status = 503
    with pytest.raises(PrefectHTTPStatusError):
        await runs.read(server, ["q"])  # type: ignore[arg-type]
