"""Users' own flows whose worker is gone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prefect.flow_engine import AsyncFlowRunEngine

from mloc_prefect.cluster.cluster_view import ClusterView
from mloc_prefect.cluster.membership import MemoryMembership
from mloc_prefect.cluster.orphans import HEARTBEAT, Orphans, heartbeats_of
from mloc_prefect.prefect_ext.run_facts import INCARNATION_LABEL, WORKER_LABEL
from tests.support.cards import card
from tests.unit.cluster.test_worker_card import Clock


class Site:
    """A server with runs and their heartbeats, and one worker that looks at it every minute."""

    def __init__(self) -> None:
        self.clock, self.directory = Clock(), MemoryMembership()
        self.view = ClusterView(self.directory, 1e9, clock=self.clock)
        self.orphans = Orphans(self, "gpu", self.view, clock=self.clock)  # type: ignore[arg-type]
        self.runs: dict[str, Any] = {}
        self.beats: dict[str, list[int]] = {}

    def run(self, name: str, *beats: int, flow: str = "user", incarnation: str = "i1") -> None:
        labels = {WORKER_LABEL: "w", INCARNATION_LABEL: incarnation}
        self.runs[name] = {"id": name, "name": name, "flow_id": flow, "labels": labels, "state": {"type": "RUNNING"}}
        self.beats[name] = list(beats)

    async def request(self, _method: str, path: str, json: Any = None) -> Any:
        return SimpleNamespace(content=b"x", json=lambda: self.answer(path, json))

    def answer(self, path: str, body: Any) -> Any:
        if path == "/events/filter":
            (resource,) = body["filter"]["resource"]["id"]
            beats = sorted(self.beats[resource.rpartition(".")[2]], reverse=True)[: body["limit"]]
            return {"events": [{"id": f"e{n}", "occurred": f"2030-01-01T{n // 60:02}:{n % 60:02}:00Z"} for n in beats]}
        if path == "/flow_runs/filter":
            return [run for run in self.runs.values() if run["state"]["type"] == "RUNNING"]
        if path.startswith("/flows/"):
            return {"name": path.rpartition("/")[2]}
        assert path.endswith("/set_state")
        assert body["force"] is False, "it may have ended meanwhile"
        self.runs[path.split("/")[2]]["state"] = body["state"]
        return {}

    async def minutes(self, number: int) -> list[str]:
        crashed = []
        for _ in range(number):
            crashed += await self.orphans.check()
            self.clock.now += 60
        return crashed


@pytest.fixture
def site() -> Site:
    return Site()


async def test_a_silent_run_of_a_worker_that_is_gone_has_crashed(site: Site):
    site.run("silent", 0, 3)
    assert await site.minutes(10) == []
    assert await site.minutes(1) == ["silent"]
    assert site.runs["silent"]["state"]["message"] == "worker w was lost, and this run with it"


async def test_a_run_that_is_heard_outlives_its_worker(site: Site):
    site.run("alive", 0)
    for minute in range(3, 40, 3):
        site.beats["alive"].append(minute)
        assert await site.minutes(3) == []


async def test_one_that_beats_slowly_is_given_more_time(site: Site):
    site.run("slow", 0, 10)
    assert await site.minutes(30) == []
    assert await site.minutes(1) == ["slow"]


async def test_one_beat_alone_does_not_tell_how_often_it_beats(site: Site):
    site.run("young", 0)
    assert await site.minutes(60) == []
    assert await site.minutes(1) == ["young"]


async def test_silence_in_our_own_absence_does_not_count(site: Site):
    site.run("silent", 0, 3)
    await site.minutes(5)
    site.clock.now += 3600
    assert await site.minutes(10) == []
    assert await site.minutes(1) == ["silent"]


async def test_what_nobody_can_tell_is_left_alone(site: Site):
    """Heartbeats are off; the worker is there; the run is ours; another worker's, which says no incarnation."""
    await site.directory.publish(card("w", incarnation="i2"))
    await site.view.refresh()
    site.run("mute")
    site.run("attended", 0, incarnation="i2")
    site.run("ours", 0, flow="run-stage")
    site.run("stock", 0)
    del site.runs["stock"]["labels"][INCARNATION_LABEL]
    assert await site.minutes(30) == []


def test_prefects_engine_sends_the_event_and_its_server_finds_it():
    from prefect.server.events.filters import EventFilter

    assert HEARTBEAT in AsyncFlowRunEngine._emit_flow_run_heartbeat.__code__.co_consts
    found = EventFilter.model_validate(heartbeats_of("x"))
    assert found.event is not None
    assert found.event.name == [HEARTBEAT]
    assert found.resource is not None
    assert found.resource.id == ["prefect.flow-run.x"]
