"""Who takes over for a worker that is gone, and what becomes of its runs."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from mloc_prefect.errors import DispatchError
from mloc_prefect.orchestrate.lost import stopped_starts
from mloc_prefect.worker.card import WorkerCard
from mloc_prefect.worker.directory import MemoryDirectory
from mloc_prefect.worker.heartbeat import lock_name
from mloc_prefect.worker.identity import Process
from mloc_prefect.worker.reaper import Reaper
from mloc_prefect.worker.recovery import INCARNATION_LABEL, WORKER_LABEL, Recovery, taken_by
from mloc_prefect.worker.succession import succeed
from mloc_prefect.worker.view import WorkersView
from tests.support.cards import card
from tests.unit.test_worker_cards import Clock

DEAD = card("w")


# --- exactly one ------------------------------------------------------------------------------------------------------


class Site:
    """Reapers that look at one directory; a worker `w` that has not been heard of for long."""

    def __init__(self) -> None:
        self.directory, self.clock = MemoryDirectory(), Clock()
        self.recovered: list[tuple[str, str]] = []
        self.broken: set[str] = set()

    async def reaper(self, name: str) -> Reaper:
        view = WorkersView(self.directory, 10.0, clock=self.clock)

        async def recover(found: WorkerCard) -> None:
            self.recovered.append((name, found.id))
            if name in self.broken:
                raise KeyError("killed half-way")

        await view.look()
        return Reaper(view, recover, name, patience=20.0, clock=self.clock)

    async def wait(self, *reapers: Reaper, seconds: float = 12.0) -> None:
        """Let time pass in which everybody goes on looking."""
        for _ in range(int(seconds / 4)):
            self.clock.now += 4
            for reaper in reapers:
                await reaper.look()


@pytest.fixture
async def site() -> Site:
    found = Site()
    await found.directory.publish(DEAD)
    return found


async def test_exactly_one_takes_over(site: Site):
    reapers = [await site.reaper(name) for name in ("one", "two", "three")]
    await site.wait(*reapers, seconds=40)
    assert site.recovered == [("one", "w")]
    assert await site.directory.read() == []


async def test_another_goes_on_when_the_first_is_lost_itself(site: Site):
    one, two = await site.reaper("one"), await site.reaper("two")
    site.broken.add("one")
    with pytest.raises(KeyError):
        await site.wait(one, two)
    await site.wait(two, seconds=16)
    assert site.recovered == [("one", "w")]  # perhaps it is only slow
    await site.wait(two, seconds=24)
    assert site.recovered == [("one", "w"), ("two", "w")]
    assert await site.directory.read() == []


async def test_one_whose_server_was_away_goes_on_itself(site: Site):
    one = await site.reaper("one")
    site.broken.add("one")
    with pytest.raises(KeyError):
        await site.wait(one)
    site.broken.clear()
    await one.look()
    assert site.recovered == [("one", "w")] * 2
    assert await site.directory.read() == []


async def test_locks_are_forgotten_after_a_day(site: Site):
    one = await site.reaper("one")
    await site.wait(one)
    assert await site.directory.locked(lock_name(DEAD))
    site.clock.now += 3600
    await one.look()
    assert await site.directory.locked(lock_name(DEAD))
    site.clock.now += 86_400
    await one.look()
    assert not await site.directory.locked(lock_name(DEAD))


# --- a worker that comes back under its name -------------------------------------------------------------------------


@pytest.fixture
def passing(site: Site, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Steps that others take while the worker waits, a few seconds each."""
    steps: list[Any] = []

    async def wait(_: float) -> None:
        site.clock.now += 4
        if steps:
            await steps.pop(0)()

    monkeypatch.setattr("mloc_prefect.worker.succession._sleep", wait)
    return steps


async def come_back(site: Site) -> None:
    reaper = await site.reaper("w")
    await succeed(WorkersView(site.directory, 10.0, clock=site.clock), "w", reaper)


async def test_a_worker_that_comes_back_takes_over_from_itself(site: Site, passing: list[Any]):
    await come_back(site)
    assert site.recovered == [("w", "w")]
    assert await site.directory.read() == []


async def test_it_leaves_that_to_another_who_was_first_and_waits_for_it(site: Site, passing: list[Any]):
    other = await site.reaper("other")
    assert await site.directory.lock(lock_name(DEAD), "other")

    async def goes_on() -> None:
        other._locks[lock_name(DEAD)] = site.clock.now
        await other.take_over(DEAD)

    passing += [_nothing, goes_on]  # while it looks whether the earlier process lives, and after that
    await come_back(site)
    assert site.recovered == [("other", "w")]


async def test_it_goes_on_for_another_who_was_lost_meanwhile(site: Site, passing: list[Any]):
    assert await site.directory.lock(lock_name(DEAD), "other")
    await come_back(site)
    assert site.recovered == [("w", "w")]


async def test_it_waits_for_a_server_that_is_away(site: Site, passing: list[Any], monkeypatch: pytest.MonkeyPatch):
    read = site.directory.read

    async def away() -> Any:
        raise httpx.ConnectError("down")

    async def back() -> None:
        monkeypatch.setattr(site.directory, "read", read)

    reaper = await site.reaper("w")
    monkeypatch.setattr(site.directory, "read", away)
    passing += [_nothing, back]
    await succeed(WorkersView(site.directory, 10.0, clock=site.clock), "w", reaper)
    assert site.recovered == [("w", "w")]


async def test_two_of_one_name_are_refused(site: Site, passing: list[Any]):
    async def beats() -> None:
        await site.directory.publish(card("w", beat=7))

    passing.append(beats)
    with pytest.raises(DispatchError, match="runs already"):
        await come_back(site)
    assert site.recovered == []


async def _nothing() -> None: ...


# --- runs -------------------------------------------------------------------------------------------------------------


def run(run_id: str, flow: str, state: str, *, worker: str | None = "w", incarnation: str = "i1", **fields: Any) -> Any:
    labels = {WORKER_LABEL: worker, INCARNATION_LABEL: incarnation} if worker and state != "PENDING" else {}
    message = taken_by(worker, incarnation) if worker and state == "PENDING" else fields.pop("message", None)
    return {
        "id": run_id,
        "name": run_id,
        "flow_id": flow,
        "labels": labels,
        "run_count": 1,
        "infrastructure_pid": None,
        "parent": None,
        "state": {"type": state, "message": message},
        **fields,
    }


class Server:
    """As much of Prefect's API as recovery uses."""

    def __init__(self, *runs: Any) -> None:
        self.runs = {r["id"]: r for r in runs}
        self.steps: list[str] = []

    async def request(self, method: str, path: str, json: Any = None) -> Any:
        return SimpleNamespace(content=b"x", json=lambda: self.answer(method, path, json))

    def answer(self, method: str, path: str, body: Any) -> Any:
        if path == "/flow_runs/filter":
            return self.found(body)
        kind, _, rest = path.strip("/").partition("/")
        name = rest.split("/")[0]
        if kind == "flows":
            return {"name": name}
        if rest.endswith("/labels"):
            self.runs[name]["labels"] |= body
        elif method == "PATCH":
            assert body == {"infrastructure_pid": None}
        else:
            state = body["state"]
            self.runs[name]["state"] = {"type": state["type"], "message": state["message"]}
            self.steps.append(f"{name} {state['name']}{'' if body['force'] else ' asked'}")
        return {}

    def found(self, body: Any) -> list[Any]:
        wanted = body["flow_runs"]
        parents = wanted.get("parent_flow_run_id", {}).get("any_")
        types = wanted["state"]["type"]["any_"]
        return [
            json.loads(json.dumps(r))
            for r in self.runs.values()
            if r["state"]["type"] in types and (parents is None or r["parent"] in parents)
        ]

    async def recover(self, dead: WorkerCard = DEAD, *, retries: int = 3) -> list[str]:
        await Recovery(self, retries).recover(dead)  # type: ignore[arg-type]
        return self.steps


async def test_a_root_run_starts_again_with_all_below_it_ended():
    server = Server(
        run("root", "run-workflow", "RUNNING"),
        run("stage", "mloc-echo", "RUNNING", worker=None, parent="root"),
        run("done", "mloc-echo", "COMPLETED", worker=None, parent="root"),
        run("elsewhere", "run-stage", "RUNNING", worker="other", parent="stage"),
        run("shard", "mloc-shard", "RUNNING", worker=None, parent="stage"),  # nobody else would ever end it
    )
    assert await server.recover() == [
        "elsewhere Cancelling asked",
        "shard Crashed",
        "stage Crashed",
        "root Crashed",
        "root AwaitingRetry",
    ]
    assert server.runs["root"]["state"]["message"] == "worker w was lost; start 2 of 4"


async def test_the_budget_of_starts_ends():
    server = Server(run("root", "run-workflow", "RUNNING", run_count=4))
    assert await server.recover() == ["root Crashed"]


async def test_stops_on_purpose_are_not_in_the_budget():
    server = Server(run("root", "run-workflow", "RUNNING"))
    recovery = Recovery(server, 1)  # type: ignore[arg-type]
    for start in range(1, 6):
        server.runs["root"] |= {"state": {"type": "CRASHED", "message": None}, "run_count": start}
        await recovery.start_again(server.runs["root"], "worker w was stopped", stopped=True)
        assert server.runs["root"]["state"] == {"type": "SCHEDULED", "message": "worker w was stopped"}
    assert stopped_starts(server.runs["root"]["labels"]) == {1, 2, 3, 4, 5}
    for start, state in ((6, "SCHEDULED"), (7, "CRASHED")):  # of losses one is in the budget
        server.runs["root"] |= {"state": {"type": "RUNNING", "message": None}, "run_count": start}
        await server.recover(retries=1)
        assert server.runs["root"]["state"]["type"] == state


async def test_what_a_stopped_worker_has_not_begun_goes_back():
    server = Server(
        run("root", "run-workflow", "PENDING", infrastructure_pid="host:1"),
        run("stage", "run-stage", "PENDING"),
        run("user", "user", "PENDING"),
        run("starting", "user", "PENDING", infrastructure_pid="host:2"),
        run("running", "run-workflow", "RUNNING"),
        run("other", "run-stage", "PENDING", worker="other"),
    )
    await Recovery(server, 3).put_back(DEAD, "stopped")  # type: ignore[arg-type]
    assert server.steps == ["root AwaitingRetry", "stage AwaitingRetry", "user AwaitingRetry"]


async def test_a_stage_run_is_lost_for_whoever_waits_for_it():
    assert await Server(run("stage", "run-stage", "RUNNING")).recover() == ["stage Crashed"]


@pytest.mark.parametrize("flow", ["run-workflow", "run-stage", "user"])
async def test_what_had_not_begun_goes_back(flow: str):
    assert await Server(run("r", flow, "PENDING")).recover() == ["r AwaitingRetry"]


@pytest.mark.parametrize("flow", ["run-workflow", "run-stage"])
async def test_what_was_being_cancelled_is_cancelled(flow: str):
    assert await Server(run("r", flow, "CANCELLING")).recover() == ["r Cancelled"]


@pytest.mark.parametrize(
    "other",
    [
        run("r", "run-workflow", "RUNNING", worker="other"),
        run("r", "run-workflow", "RUNNING", incarnation="i2"),
        run("r", "run-workflow", "PENDING", incarnation="i2"),
        run("r", "run-workflow", "PENDING", worker=None),
        run("r", "run-workflow", "SCHEDULED"),
        run("r", "run-workflow", "CRASHED"),
    ],
)
async def test_runs_of_others_are_left_alone(other: Any):
    assert await Server(other).recover() == []


async def test_half_a_recovery_is_finished():
    """Whoever was lost between the two steps has marked the run as crashed."""
    server = Server(run("root", "run-workflow", "CRASHED", message="worker w was lost"))
    assert await server.recover() == ["root AwaitingRetry"]


async def test_a_process_of_its_own_may_go_on_without_the_worker():
    assert await Server(run("user", "user", "RUNNING", infrastructure_pid="host:1")).recover() == []
    near = card("w", process=Process.own())
    gone = Server(run("user", "user", "RUNNING", infrastructure_pid="999999999"))
    assert await gone.recover(near) == ["user Crashed"]
