"""What a worker takes of what is scheduled."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import anyio
import httpx
import pytest

from mloc_prefect.errors import DispatchError
from mloc_prefect.execution.hosts import MemoryHosts
from mloc_prefect.execution.protocol import ExecutionRequest
from mloc_prefect.orchestrate.dispatch import InProcessDispatcher, StageJob
from mloc_prefect.orchestrate.jobfile import read_job, write_job
from mloc_prefect.plan.model import ResourceRequest
from mloc_prefect.settings import get_settings
from mloc_prefect.tasks.base import ExecutorRef
from mloc_prefect.worker import claims as module
from mloc_prefect.worker import lease_book
from mloc_prefect.worker.claims import Claims
from mloc_prefect.worker.directory import MemoryDirectory
from mloc_prefect.worker.here import Here, Slots
from mloc_prefect.worker.inventory import Inventory
from mloc_prefect.worker.leases import MemoryLeaseBook
from mloc_prefect.worker.place import Place
from mloc_prefect.worker.queues import RequirementClass
from mloc_prefect.worker.userruns import UserRuns, request_of
from mloc_prefect.worker.view import WorkersView
from tests.support.cards import card

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from mloc_prefect.worker.leases import Lease

ONE, TWO, NOWHERE = (RequirementClass(ResourceRequest(gpu_count=n)) for n in (1, 2, 16))
LIGHT = RequirementClass(ResourceRequest(cpus=1), lease=False)
ECHO = ExecutorRef("mloc_prefect.executors.echo:EchoExecutor", engine=False)
SHARED = ExecutorRef("mloc_prefect.executors.echo:EchoExecutor", shared=True)


class Desk:
    """A worker with two cards, and what Prefect has scheduled; answers as much of its API as claims use."""

    def __init__(self, root: Path, hosts: Any) -> None:
        own = card("me", "a100:80", "a100:80")
        self.root, self.limiter = root, anyio.CapacityLimiter(100)
        self.queues: dict[str, RequirementClass | None] = {"default": None, "coordinator": None}
        self.runs: list[tuple[str, Any]] = []
        self.asked: list[str] = []
        self.woken: list[float] = []
        self.down = False
        self.open = True
        self.pool_limit: int | None = None
        self.limits: dict[str, tuple[int | None, str]] = {}
        leases = MemoryLeaseBook(own.inventory)
        settings = get_settings(home=root)
        dispatcher = InProcessDispatcher(settings=settings, hosts=hosts, leases=leases, inventory=own.inventory)
        self.place = Place(own.inventory, leases, hosts, dispatcher, settings)
        self.here = Here("me", self.place, Slots(lambda: self.limiter), lambda: self.open, lambda: None)
        self.directory = MemoryDirectory()
        self.view = WorkersView(self.directory, 100.0, own=lambda: own)
        self.user = UserRuns(self.place)
        self.claims = self.new_claims()

    def new_claims(self, *only: str, here: Here | None = None, nowhere: bool = False) -> Claims:
        async def user_lease(run: Any) -> Any:
            return await self.user.lease(self, None, run)  # type: ignore[arg-type]

        return Claims(
            pool="gpu",
            limit=lambda: self.pool_limit,
            only=only,
            here=None if nowhere else here or self.here,
            view=self.view,
            wake=self.woken.append,
            user_lease=user_lease,
            ahead=10.0,
        )

    def add(
        self, queue: str | RequirementClass, *, executor: ExecutorRef = ECHO, engine: str = "e", **parameters: Any
    ) -> UUID:
        """Schedule a run."""
        name = queue if isinstance(queue, str) else queue.name
        self.queues[name] = None if isinstance(queue, str) else queue
        run_id = uuid4()
        run: dict[str, Any] = {"id": str(run_id), "name": f"run-{len(self.runs)}", "flow_id": str(uuid4())}
        if isinstance(queue, RequirementClass):
            directory = str(self.root / str(run_id))
            request = ExecutionRequest("t", run["name"], "echo", executor.path, {}, directory, directory)
            options = {"model": engine}
            write_job(StageJob(request=request, executor=executor, engine_options=options, resources=queue.request))
            parameters = {"attempt_dir": directory, "engine": engine, **parameters}
        run["parameters"] = parameters
        self.runs.append((name, run | {"job_variables": parameters.pop("job_variables", {})}))
        return run_id

    async def poll(self, claims: Claims | None = None, **options: Any) -> list[UUID]:
        found = await (claims or self.claims).choose(self, (), **options)  # type: ignore[arg-type]
        taken = [claim.entry.flow_run.id for claim in found]
        self.last = found
        self.runs = [(queue, run) for queue, run in self.runs if UUID(run["id"]) not in taken]
        return taken

    async def request(self, method: str, path: str, json: Any = None) -> Any:
        if self.down:
            raise httpx.ConnectError("down")
        answer: Any
        if path.endswith("/queues/filter"):
            answer = [
                {
                    "id": name,
                    "name": name,
                    "priority": number,
                    "is_paused": False,
                    "description": needs.description if needs else self.limits.get(name, (None, ""))[1],
                    "concurrency_limit": self.limits.get(name, (None, ""))[0],
                }
                for number, (name, needs) in enumerate(self.queues.items())
            ]
        elif method == "PATCH":
            answer = {}
            self.limits[path.rsplit("/", 1)[-1]] = (json["concurrency_limit"], json["description"])
        else:
            self.asked += json["work_queue_names"]
            answer = [
                {"work_pool_id": str(uuid4()), "work_queue_id": str(uuid4()), "flow_run": run}
                for queue, run in self.runs
                if queue in json["work_queue_names"]
            ]
        return SimpleNamespace(content=b"x", json=lambda: answer, headers={})


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with MemoryHosts() as hosts:
        found = Desk(tmp_path, hosts)
        yield found
        await found.claims.close()


def held(desk: Desk) -> list[tuple[str, ...]]:
    return sorted(entry.lease.devices for entry in desk.place.leases.snapshot())


async def test_two_cards_are_two_runs_of_one_card(desk: Desk):
    runs = [desk.add(ONE) for _ in range(3)]
    assert await desk.poll() == runs[:2]
    assert held(desk) == [("gpu:0",), ("gpu:1",)]
    assert await desk.poll() == []


async def test_it_stands_in_line_for_the_first_that_has_no_room(desk: Desk):
    first, second = desk.add(ONE), desk.add(TWO)
    assert await desk.poll() == [first]
    await asyncio.sleep(0)
    lease = desk.last[0].lease
    assert lease is not None
    await desk.place.leases.release(lease)
    async with asyncio.timeout(5):
        while 0.0 not in desk.woken:
            await asyncio.sleep(0.01)
    assert await desk.poll() == [second]
    assert held(desk) == [("gpu:0", "gpu:1")]


async def test_its_place_in_line_goes_with_the_run(desk: Desk):
    desk.add(ONE)
    desk.add(TWO)
    await desk.poll()
    desk.runs.clear()  # another worker took it
    await desk.poll()
    lease = desk.last
    assert lease == []
    assert len(held(desk)) == 1
    small = desk.add(ONE)
    assert await desk.poll() == [small]


async def test_queues_that_fit_nowhere_here_are_not_asked_for(desk: Desk):
    for _ in range(3):
        desk.add(NOWHERE)
    fits = desk.add(ONE)
    assert await desk.poll() == [fits]
    assert NOWHERE.name not in desk.asked
    assert desk.claims.serves(NOWHERE.name) is False
    assert desk.claims.serves(ONE.name) is True
    assert desk.claims.serves("new") is None


async def test_woken_by_an_event_it_looks_only_where_there_may_be_something(desk: Desk):
    """Classes of requirements add up; a request for each of them at each event would be too many."""
    desk.queues |= {LIGHT.name: LIGHT, ONE.name: ONE}
    desk.add(TWO)
    desk.add(TWO)  # waits for the first
    assert len(await desk.poll()) == 1
    desk.asked.clear()
    assert await desk.poll(settled=False) == []
    assert sorted(desk.asked) == ["coordinator", TWO.name]
    assert desk.claims.serves(LIGHT.name) is True  # an event: it comes before the run can be read
    assert await desk.poll(settled=False) == []
    run = desk.add(LIGHT)
    assert await desk.poll(settled=False) == [run]
    assert ONE.name not in desk.asked
    await desk.poll()
    assert ONE.name in desk.asked  # an ordinary poll misses nothing


async def test_root_runs_need_no_slot_others_do(desk: Desk):
    desk.limiter.total_tokens = 1
    roots = [desk.add("coordinator") for _ in range(3)]
    light = [desk.add(LIGHT) for _ in range(2)]
    taken = await desk.poll()
    assert taken == [*roots, light[0]]
    assert [claim.slot for claim in desk.last] == [False, False, False, True]
    assert held(desk) == []


async def test_without_a_slot_nothing_but_root_runs_is_asked_for(desk: Desk):
    desk.limiter.acquire_on_behalf_of_nowait("somebody")
    desk.limiter.total_tokens = 1
    desk.add(ONE)
    root = desk.add("coordinator")
    assert await desk.poll() == [root]
    assert desk.asked == ["coordinator"]


@pytest.mark.parametrize(
    ("own", "pool_limits", "expected"),
    [
        (None, [None], None),
        (None, [4], 3),
        (None, [4, 8], 7),
        (None, [4, None], None),  # ours goes with that of the pool
        (None, [1], 1),
        (2, [4, 8, None], 2),  # somebody's own that leaves room
        (9, [4], 3),
    ],
)
async def test_root_runs_leave_room_for_their_stages_in_a_pool_with_a_limit(
    desk: Desk, own: int | None, pool_limits: list[int | None], expected: int | None
):
    desk.limits["coordinator"] = (own, "")
    for desk.pool_limit in pool_limits:
        await desk.poll()
    assert desk.limits["coordinator"][0] == expected


async def test_a_worker_for_root_runs_takes_nothing_else(desk: Desk):
    claims = desk.new_claims("coordinator", nowhere=True)
    desk.add(LIGHT)
    desk.add("default")
    root = desk.add("coordinator")
    assert await desk.poll(claims) == [root]


async def test_only_the_queues_it_was_started_for(desk: Desk):
    claims = desk.new_claims(ONE.name)
    desk.add("default")
    desk.add("coordinator")
    one = desk.add(ONE)
    assert await desk.poll(claims) == [one]
    assert desk.asked == [ONE.name]


async def test_more_urgent_queues_come_first(desk: Desk):
    low, high = desk.add(ONE), desk.add(RequirementClass(ResourceRequest(gpu_count=2), priority=9))
    assert await desk.poll() == [high]
    assert low not in await desk.poll()


async def test_a_run_is_left_to_those_it_prefers_for_a_moment(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    await desk.directory.publish(card("warm", "a100:80"))
    await desk.view.look()
    run = desk.add(ONE, prefer=["warm"])
    assert await desk.poll() == []
    assert 0 < desk.woken[-1] <= module.PREFER_SECONDS
    monkeypatch.setattr(module, "PREFER_SECONDS", 0.0)
    assert await desk.poll() == [run]


async def test_a_preferred_worker_that_is_gone_is_not_waited_for(desk: Desk):
    run = desk.add(ONE, prefer=["gone"], avoid=["me"])
    assert await desk.poll() == [run]


async def test_a_run_that_failed_here_is_left_to_others(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    await desk.directory.publish(card("other", "a100:80"))
    await desk.view.look()
    run = desk.add(ONE, avoid=["me"])
    assert await desk.poll() == []
    monkeypatch.setattr(module, "AVOID_SECONDS", 0.0)
    assert await desk.poll() == [run]


async def test_others_that_could_never_run_it_are_not_waited_for(desk: Desk):
    await desk.directory.publish(card("other"))
    await desk.view.look()
    run = desk.add(ONE, avoid=["me"])
    assert await desk.poll() == [run]


async def test_a_job_that_is_not_here_stays_for_others(desk: Desk):
    desk.add(ONE, attempt_dir="/nowhere")
    fine = desk.add(ONE)
    assert await desk.poll() == [fine]


async def test_tasks_of_one_engine_run_under_its_device_together(desk: Desk):
    runs = [desk.add(TWO, executor=SHARED) for _ in range(3)]
    assert await desk.poll() == runs
    assert held(desk) == [("gpu:0", "gpu:1")] * 3


async def busy(desk: Desk) -> Lease:
    """Take both cards."""
    lease = await desk.place.leases.try_acquire(TWO.request, holder="busy")
    assert lease is not None
    return lease


async def turn_comes(desk: Desk, lease: Lease) -> None:
    """Free the cards, and wait until it is the turn of who stands in line for them."""
    desk.woken.clear()
    await desk.place.leases.release(lease)
    async with asyncio.timeout(5):
        while 0.0 not in desk.woken:
            await asyncio.sleep(0.01)


async def test_a_place_in_line_of_another_engine_is_given_up(desk: Desk):
    """Its lease is shared with tasks of that engine: with this one's they would be two on one card."""
    taken = await busy(desk)
    desk.add(TWO, executor=SHARED, engine="x")
    assert await desk.poll() == []
    desk.runs.clear()  # cancelled
    other = desk.add(TWO, executor=SHARED, engine="y")
    await turn_comes(desk, taken)
    assert await desk.poll() == [other]
    same = desk.add(TWO, executor=SHARED, engine="y")
    desk.add(TWO, executor=SHARED, engine="x")
    assert await desk.poll() == [same]


async def test_a_place_in_line_goes_to_the_next_of_its_engine(desk: Desk):
    taken = await busy(desk)
    desk.add(TWO, executor=SHARED)
    assert await desk.poll() == []
    desk.runs.clear()  # another worker took it
    following = desk.add(TWO, executor=SHARED)
    late = asyncio.create_task(desk.place.leases.acquire(TWO.request, holder="late"))
    await turn_comes(desk, taken)
    assert await desk.poll() == [following]
    late.cancel()


async def test_the_turn_of_the_first_is_left_to_it_by_those_behind(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    """It comes while the job of the second is read."""
    taken = await busy(desk)
    first, second = (desk.add(TWO, executor=SHARED, engine=name) for name in "xy")
    assert await desk.poll() == []
    loop = asyncio.get_running_loop()

    def read(directory: Path) -> StageJob:
        if directory.name == str(second):
            asyncio.run_coroutine_threadsafe(turn_comes(desk, taken), loop).result()
        return read_job(directory)

    monkeypatch.setattr(module, "read_job", read)
    assert await desk.poll() == []
    monkeypatch.undo()
    assert await desk.poll() == [first]
    assert held(desk) == [("gpu:0", "gpu:1")]


async def test_one_that_comes_before_the_first_takes_its_place(desk: Desk):
    """Else it would have no room, as the lease of the other one holds it, and that one would never be asked."""
    taken = await busy(desk)
    later = desk.add(TWO, executor=SHARED, engine="x")
    assert await desk.poll() == []
    sooner = desk.add(TWO, engine="y")
    desk.runs.reverse()
    await turn_comes(desk, taken)
    assert await desk.poll() == [sooner]
    lease = desk.last[0].lease
    assert lease is not None
    assert await desk.poll() == []
    await turn_comes(desk, lease)
    assert await desk.poll() == [later]


async def test_a_lease_book_that_cannot_be_used_ends_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    """A full disk, or a process that holds its lock and does not go on: asked once in a poll, as that takes long."""
    asked: list[str] = []

    async def broken(request: ResourceRequest, *, holder: str, **_: Any) -> Lease:
        asked.append(holder)
        raise DispatchError("the lease book is locked")

    monkeypatch.setattr(desk.place.leases, "try_acquire", broken)
    one = desk.add(ONE)
    desk.add(TWO)
    light, root = desk.add(LIGHT), desk.add("coordinator")
    assert sorted(await desk.poll()) == sorted([root, light])
    assert len(asked) == 1
    monkeypatch.undo()
    assert await desk.poll() == [one]


async def test_a_card_that_falls_away_is_counted_with_no_longer_until_it_is_back(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
):
    whole, now = desk.place.inventory, [Inventory(8, 64 << 30)]
    desk.place.leases._look = lambda: now[0]
    monkeypatch.setattr(lease_book, "_LOOK_SECONDS", 0.0)
    run = desk.add(ONE)
    assert await desk.poll() == []
    assert ONE.name not in desk.asked
    now[0] = whole
    assert await desk.poll() == [run]


async def test_leases_are_given_back_when_the_server_goes_away_meanwhile(desk: Desk):
    desk.add(ONE)
    await desk.claims.refresh(desk)  # type: ignore[arg-type]
    read = desk.claims._scheduled.read

    async def fails_for_roots(client: Any, queues: Any, **options: Any) -> Any:
        if "coordinator" in queues:
            await asyncio.sleep(0.05)
            raise httpx.ConnectError("down")
        return await read(client, queues, **options)

    desk.claims._scheduled.read = fails_for_roots  # type: ignore[method-assign]
    with pytest.raises(httpx.ConnectError):
        await desk.poll(settled=False)
    assert held(desk) == []


async def test_users_runs_lease_what_their_variables_say(desk: Desk):
    plain, gpus = desk.add("default"), desk.add("default", job_variables={"gpu_count": 2, "gpu_type": "A100"})
    desk.add("default", job_variables={"gpu_count": 1})
    desk.add("default", job_variables={"gpu_count": 8})
    assert await desk.poll() == [plain, gpus]
    assert held(desk) == [("gpu:0", "gpu:1")]


@pytest.mark.parametrize("count", [None, 0, -1, "2", 1.5])
def test_what_is_no_number_of_gpus_asks_for_none(count: Any):
    assert request_of({"gpu_count": count}).gpu_count == 0
