"""Cancellations whose events were lost are found by asking."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest

from mloc_prefect.worker.cancels import CancelWatch


class Server:
    """Runs by state, as the API's filter finds them, a page at a time."""

    def __init__(self) -> None:
        self.runs: dict[UUID, str] = {}

    async def request(self, _method: str, _path: str, json: Any = None) -> Any:
        wanted = json["flow_runs"]
        types, ids = wanted["state"]["type"]["any_"], wanted.get("id", {}).get("any_")
        found = [r for r, s in self.runs.items() if s in types and (ids is None or str(r) in ids)]
        assert json["sort"] == "ID_DESC"
        found = sorted(found, reverse=True)[json["offset"] :][: json["limit"]]
        return SimpleNamespace(content=b"x", json=lambda: [{"id": str(run)} for run in found])


@pytest.mark.parametrize("state", ["CANCELLING", "CANCELLED"])
async def test_one_of_ours_is_found_behind_many_of_others(state: str):
    """Also the last of all: more runs than a page has are stuck in Cancelling, or watched."""
    server, ended = Server(), []
    server.runs = {uuid4(): "CANCELLING" for _ in range(450)}
    watch = CancelWatch(server)  # type: ignore[arg-type]
    ours = UUID(int=1)
    server.runs[ours] = state
    for run in [*(uuid4() for _ in range(250)), ours]:
        watch.add(run, lambda run=run: ended.append(run))  # type: ignore[misc]
    await watch.look()
    assert ended == [ours]


async def test_a_run_that_is_not_cancelled_goes_on():
    server, ended = Server(), []
    run = uuid4()
    server.runs[run] = "RUNNING"
    watch = CancelWatch(server)  # type: ignore[arg-type]
    watch.add(run, lambda: ended.append(run))
    await watch.look()
    assert ended == []
