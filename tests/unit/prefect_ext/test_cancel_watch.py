"""Cancellations are noticed by events; those whose events were lost are found by polling."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from mloc_prefect.prefect_ext import cancel_watch
from mloc_prefect.prefect_ext.cancel_watch import CancelWatch
from mloc_prefect.prefect_ext.run_control import RunContext, use_run_context, watched_for_cancel


class Server:
    """Runs by state, as the API's filter finds them, a page at a time."""

    def __init__(self) -> None:
        self.runs: dict[UUID, str] = {}
        self.away, self.asked = 0, 0

    async def request(self, _method: str, _path: str, json: Any = None) -> Any:
        self.asked += 1
        if self.asked <= self.away:
            raise httpx.ConnectError("down")
        wanted = json["flow_runs"]
        types, ids = wanted["state"]["type"]["any_"], wanted.get("id", {}).get("any_")
        found = [r for r, s in self.runs.items() if s in types and (ids is None or str(r) in ids)]
        assert json["sort"] == "ID_DESC"
        found = sorted(found, reverse=True)[json["offset"] :][: json["limit"]]
        return SimpleNamespace(content=b"x", json=lambda: [{"id": str(run)} for run in found])

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *_: object) -> None: ...


@pytest.mark.parametrize(("state", "full"), [("CANCELLING", False), ("CANCELLING", True), ("CANCELLED", True)])
async def test_a_watched_run_is_found_behind_many_others(state: str, *, full: bool) -> None:
    """Also the last of all: more runs than a page has are stuck in Cancelling, or watched."""
    server, ended, watch = Server(), [], CancelWatch()
    server.runs = {uuid4(): "CANCELLING" for _ in range(450)}
    ours = UUID(int=1)
    server.runs[ours] = state
    for run in [*(uuid4() for _ in range(250)), ours]:
        watch.add(run, lambda run=run: ended.append(run))  # type: ignore[misc]
    await watch.poll(server, full=full)  # type: ignore[arg-type]
    assert ended == [ours]


async def test_a_run_that_is_not_cancelled_continues() -> None:
    server, ended, watch, run = Server(), [], CancelWatch(), uuid4()
    server.runs[run] = "RUNNING"
    watch.add(run, lambda: ended.append(run))
    await watch.poll(server)  # type: ignore[arg-type]
    assert ended == []


async def test_without_watched_runs_nothing_is_asked() -> None:
    server, watch, run = Server(), CancelWatch(), uuid4()
    with use_run_context(RunContext(cancel_watch=watch)), watched_for_cancel(run, lambda: None):
        pass
    await watch.poll(server)  # type: ignore[arg-type]
    assert server.asked == 0


async def test_a_context_without_a_watch_watches_nothing() -> None:
    with watched_for_cancel(uuid4(), lambda: None):
        pass


def event(name: str, resource: str) -> Any:
    return SimpleNamespace(event=f"prefect.flow-run.{name}", resource=SimpleNamespace(id=resource))


async def test_events_cancel_a_run_once() -> None:
    watch, run, ended = CancelWatch(), uuid4(), []
    watch.add(run, lambda: ended.append(run))
    for name, resource in [
        ("Running", f"prefect.flow-run.{run}"),
        ("Cancelling", "prefect.flow-run.not-a-run"),
        ("Cancelling", f"prefect.flow-run.{uuid4()}"),
    ]:
        watch.notice(event(name, resource))
    assert ended == []
    for name in ("Cancelling", "Cancelled"):
        watch.notice(event(name, f"prefect.flow-run.{run}"))
    assert ended == [run]


@pytest.mark.parametrize("own_client", [True, False])
async def test_polling_continues_after_an_outage(monkeypatch: pytest.MonkeyPatch, *, own_client: bool) -> None:
    server, run, ended = Server(), uuid4(), asyncio.Event()
    server.away, server.runs = 2, {run: "CANCELLED"}
    monkeypatch.setattr(cancel_watch, "get_client", lambda: server)
    watch = CancelWatch(None if own_client else server, poll_seconds=0.0, full_poll_every=2)  # type: ignore[arg-type]
    watch.add(run, ended.set)
    async with watch.running():
        await asyncio.wait_for(ended.wait(), 20)
    assert server.asked == 4, "two failed polls, a short one, a full one"
