"""Runs of processes that no card tells of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mloc_prefect.cluster.cluster_view import ClusterView
from mloc_prefect.cluster.membership import MemoryMembership
from mloc_prefect.cluster.run_recovery import RunRecovery
from mloc_prefect.cluster.run_sweep import RunSweep
from tests.support.cards import card
from tests.support.recovery_server import Server, run
from tests.unit.cluster.test_worker_card import Clock

if TYPE_CHECKING:
    import pytest

PATIENCE = 10.0


class Site:
    """A server with runs, and one process that sweeps."""

    def __init__(self, *runs: Any, name: str | None = "a", workers: tuple[str, ...] = ("a",)) -> None:
        for number, found in enumerate(runs):
            found["state"]["id"] = f"state-{number}"
        self.server, self.clock, self.directory = Server(*runs), Clock(), MemoryMembership()
        self.workers = workers
        self.view = ClusterView(self.directory, 1e9, clock=self.clock)
        self.sweep = self.sweeper(name)

    def sweeper(self, name: str | None) -> RunSweep:
        recovery = RunRecovery(self.server, 3)  # type: ignore[arg-type]

        async def lock(key: str) -> bool:
            return await self.directory.lock(key, str(name))

        return RunSweep(self.view, recovery, lock, pool="gpu", name=name, patience=PATIENCE, clock=self.clock)

    async def look(self, times: int = 4, *sweeps: RunSweep) -> list[str]:
        for name in self.workers:
            await self.directory.publish(card(name))
        await self.view.refresh()
        for _ in range(times):
            for sweep in sweeps or (self.sweep,):
                await sweep.sweep()
            self.clock.now += PATIENCE / 2
        return self.server.steps


async def test_runs_of_a_process_without_a_card_are_recovered_after_a_while() -> None:
    site = Site(
        run("root", "run-workflow", "RUNNING", worker="a", incarnation="i0"),
        run("claimed", "run-stage", "PENDING", worker="gone"),
        run("stage", "run-stage", "RUNNING", worker="gone"),
        run("cancelled", "run-workflow", "CANCELLING", worker="gone"),
    )
    assert await site.look(2) == [], "whoever holds it may be about to say so"
    assert sorted(await site.look(1)) == [
        "cancelled Cancelled",
        "claimed AwaitingRetry",
        "root AwaitingRetry",
        "root Crashed",
        "stage Crashed",
    ]


async def test_runs_of_those_with_a_card_are_left_to_them_and_to_the_reaper() -> None:
    assert (
        await Site(
            run("root", "run-workflow", "RUNNING", worker="a"),
            run("claimed", "run-stage", "PENDING", worker="a"),
            run("foreign", "run-stage", "PENDING", worker=None),
            run("user", "user", "RUNNING", worker="gone", infrastructure_pid="host:1"),  # see `orphans`
        ).look(9)
        == []
    )


async def test_what_goes_on_without_its_worker_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    site = Site(run("user", "user", "RUNNING", worker="gone", infrastructure_pid="host:1"))
    assert await site.look(20) == []
    assert caplog.text.count("is left as it is") == 1


async def test_a_run_that_moves_on_is_held_by_somebody() -> None:
    site = Site(run("claimed", "run-stage", "PENDING", worker="gone"))
    await site.look(2)
    site.server.runs["claimed"]["state"]["id"] = "another"
    assert await site.look(2) == []
    assert await site.look(1) == ["claimed AwaitingRetry"]


async def test_one_process_sweeps() -> None:
    site = Site(run("claimed", "run-stage", "PENDING", worker="gone"), workers=("a", "b"))
    assert await site.look(9, site.sweeper("b"), site.sweeper(None)) == []
    twice = [site.sweeper("a"), site.sweeper("a")]  # two whose looks at the workers differ
    assert await site.look(9, *twice) == ["claimed AwaitingRetry"]


async def test_the_bridge_sweeps_where_no_worker_is_left() -> None:
    site = Site(run("claimed", "run-stage", "PENDING", worker="gone"), name=None, workers=())
    assert await site.look() == ["claimed AwaitingRetry"]


async def test_nothing_is_swept_without_a_current_look_at_the_workers() -> None:
    site = Site(run("claimed", "run-stage", "PENDING", worker="gone"))
    await site.look(0)
    site.clock.now += 2e9
    assert await site.sweep.sweep() == []
    assert site.server.steps == []
