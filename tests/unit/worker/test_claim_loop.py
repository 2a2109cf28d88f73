"""What a worker takes of what is scheduled."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from mloc_prefect.cluster.requirement_queues import RequirementClass
from mloc_prefect.errors import DispatchError
from mloc_prefect.hardware.inventory import Inventory
from mloc_prefect.leases import book
from mloc_prefect.plan.resources import ResourceRequest
from mloc_prefect.worker.claims import claim_loop
from mloc_prefect.worker.user_runs import request_of
from tests.support.cards import card

if TYPE_CHECKING:
    from mloc_prefect.leases import Lease
from tests.support.claim_desk import LIGHT, NOWHERE, ONE, TWO, Desk, held


async def test_two_cards_are_two_runs_of_one_card(desk: Desk):
    runs = [desk.add(ONE) for _ in range(3)]
    assert await desk.poll() == runs[:2]
    assert held(desk) == [("gpu:0",), ("gpu:1",)]
    assert await desk.poll() == []


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


@pytest.fixture
def pages_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim_loop, "_ROOTS_AT_ONCE", 2)
    monkeypatch.setattr(claim_loop, "time", SimpleNamespace(monotonic=lambda: 100.0))


@pytest.mark.usefixtures("pages_of_two")
async def test_after_a_full_page_of_workflow_runs_the_next_is_read_at_once(desk: Desk):
    for _ in range(2):
        desk.add("coordinator")
    await desk.poll()
    assert desk.woken == [0.0]
    await desk.poll()
    assert desk.woken == [0.0], "the page was empty"


@pytest.mark.usefixtures("pages_of_two")
async def test_a_full_page_of_which_nothing_is_claimed_is_read_again_in_a_second_only(desk: Desk):
    """They are being claimed, or rest after a claim without an answer."""
    runs = [desk.add("coordinator") for _ in range(2)]
    for _ in range(3):
        assert await desk.claims.choose(desk, runs) == []  # type: ignore[arg-type]
    assert desk.woken == [1.0], "one wake, however many polls come before it"


@pytest.mark.usefixtures("pages_of_two")
async def test_a_full_page_that_is_refused_again_is_read_in_a_second_only(desk: Desk):
    for _ in range(2):
        desk.add("coordinator")
    for _ in range(3):
        assert len(await desk.claims.choose(desk, ())) == 2  # type: ignore[arg-type]
    assert desk.woken == [0.0, 1.0]


@pytest.mark.usefixtures("pages_of_two")
async def test_an_earlier_wake_is_kept_where_a_full_page_is_busy(desk: Desk):
    await desk.directory.publish(card("warm", "a100:80"))
    await desk.view.refresh()
    desk.add(ONE, prefer=["warm"])
    runs = [desk.add("coordinator") for _ in range(2)]
    claims = desk.new_claims(prefer_seconds=0.2)
    assert await claims.choose(desk, runs) == []  # type: ignore[arg-type]
    (woken,) = desk.woken
    assert 0 < woken <= 0.2


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


async def test_a_run_is_left_to_those_it_prefers_for_a_moment(desk: Desk):
    await desk.directory.publish(card("warm", "a100:80"))
    await desk.view.refresh()
    run = desk.add(ONE, prefer=["warm"])
    assert await desk.poll() == []
    assert 0 < desk.woken[-1] <= 2.0
    assert await desk.poll(desk.new_claims(prefer_seconds=0.0)) == [run]


async def test_a_preferred_worker_that_is_gone_is_not_waited_for(desk: Desk):
    run = desk.add(ONE, prefer=["gone"], avoid=["me"])
    assert await desk.poll() == [run]


async def test_a_run_that_failed_here_is_left_to_others(desk: Desk):
    await desk.directory.publish(card("other", "a100:80"))
    await desk.view.refresh()
    run = desk.add(ONE, avoid=["me"])
    assert await desk.poll() == []
    assert await desk.poll(desk.new_claims(avoid_seconds=0.0)) == [run]


async def test_others_that_could_never_run_it_are_not_waited_for(desk: Desk):
    await desk.directory.publish(card("other"))
    await desk.view.refresh()
    run = desk.add(ONE, avoid=["me"])
    assert await desk.poll() == [run]


async def test_a_job_that_is_not_here_stays_for_others(desk: Desk):
    desk.add(ONE, attempt_dir="/nowhere")
    fine = desk.add(ONE)
    assert await desk.poll() == [fine]


async def test_a_lease_book_that_cannot_be_used_ends_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    """A full disk, or a process that holds its lock and does not go on: asked once in a poll, as that takes long."""
    asked: list[str] = []

    async def broken(request: ResourceRequest, *, holder: str, **_: Any) -> Lease:
        asked.append(holder)
        raise DispatchError("the lease book is locked")

    monkeypatch.setattr(desk.machine.leases, "try_acquire", broken)
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
    whole, now = desk.machine.inventory, [Inventory(8, 64 << 30)]
    desk.machine.leases._look = lambda: now[0]
    monkeypatch.setattr(book, "_LOOK_SECONDS", 0.0)
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
