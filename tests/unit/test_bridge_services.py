"""The services of the bridge: following events, comparing, being the only one, dispatching, watching."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from redis.exceptions import ResponseError

from mloc_prefect.bridge import active, dispatch_service, entry_work, reconcile, service, watch
from mloc_prefect.bridge.active import LEASE, ActiveLease
from mloc_prefect.bridge.dispatch_service import DispatchService
from mloc_prefect.bridge.memory import MemoryLeases
from mloc_prefect.bridge.memory_runs import MemorySource
from mloc_prefect.bridge.rebuild import Rebuilder
from mloc_prefect.bridge.reconcile import ASK_SECONDS, CRASH_SECONDS, KEPT_SECONDS, LEFT, Reconciler
from mloc_prefect.bridge.republish import attend
from mloc_prefect.bridge.runs import Tags
from mloc_prefect.bridge.service import Follower
from mloc_prefect.bridge.states import Mark, Phase
from mloc_prefect.bridge.watch import StoreWatch
from mloc_prefect.errors import FencedError, PlanError, StoreError
from tests.support.bridging import WORKER, BridgeBench, root, state, told, view
from tests.support.flows import graph_text

HAPPY = ["tasks", "STATUS RUNNING", "TASK_STARTED", "STATUS RUNNING", "TASK_SUCCEEDED", "STATUS IDLE"]


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(reconcile, "_sleep", lambda _seconds: asyncio.sleep(0))
    monkeypatch.setattr(dispatch_service, "_FIRST_PAUSE", 0.0)
    monkeypatch.setattr(watch, "_AWAY_SECONDS", 0.0)


@asynccontextmanager
async def running(work: Any):
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(fact) -> None:
    async with asyncio.timeout(5):
        while not (await fact() if asyncio.iscoroutinefunction(fact) else fact()):
            await asyncio.sleep(0.001)


def started(run: str = "run-t1", task: str = "t1"):
    return [told("placed", run=run, task=task, **WORKER), told("started", run=run, task=task, **WORKER)]


# --- following --------------------------------------------------------------------------------------------------------


async def test_events_are_acknowledged_after_their_step():
    bench, source = BridgeBench(view(since=20)), MemorySource()
    await bench.submitted()
    source.put(*started(), state("Completed", at=20))
    async with running(Follower(source, bench.keeper, bench.runs).run()):
        await until(lambda: not source.pending)
    assert bench.messages == HAPPY


async def test_the_end_is_believed_when_the_api_shows_it():
    bench, source = BridgeBench(view("RUNNING", since=11)), MemorySource()
    await bench.submitted("t1", "t2")
    source.put(*started(), state("Completed", at=20), *started("run-t2", "t2"))
    async with running(Follower(source, bench.keeper, bench.runs).run()):
        await until(lambda: bench.messages.count("TASK_STARTED") == 2)
        assert [event.state for event in source.pending] == ["Completed"], "it is not acknowledged, and holds up nobody"
        assert (await bench.record()).status == "DISPATCHED"
        bench.runs.put(view(since=20))
        await until(lambda: not source.pending)
    assert (await bench.record()).status == "DONE"


@pytest.mark.parametrize("shown", [view("RUNNING", since=30), None])
async def test_an_end_that_is_over_or_was_rolled_back_changes_nothing(shown, monkeypatch):
    monkeypatch.setattr(service, "_COMMIT_SECONDS", 0.02)
    bench, source = BridgeBench(*([shown] if shown else [])), MemorySource()
    await bench.submitted()
    source.put(*started(), state("Failed", at=20))
    async with running(Follower(source, bench.keeper, bench.runs).run()):
        await until(lambda: not source.pending)
    assert (await bench.record()).status == "DISPATCHED"


async def test_while_store_or_api_are_away_nothing_is_lost():
    bench, source = BridgeBench(view(since=20)), MemorySource()
    await bench.submitted()
    away = {"store": 2, "api": 2}
    transition, get = bench.stores.tasks.transition, bench.runs.get

    async def no_transition(*args, **kwargs):
        away["store"] -= 1
        if away["store"] >= 0:
            raise StoreError("Redis at nowhere:1 does not serve")
        return await transition(*args, **kwargs)

    async def no_get(ids):
        away["api"] -= 1
        if away["api"] >= 0:
            raise httpx.ConnectError("refused")
        return await get(ids)

    bench.stores.tasks.transition, bench.runs.get = no_transition, no_get
    source.put(*started(), state("Completed", at=20))
    async with running(Follower(source, bench.keeper, bench.runs).run()):
        await until(lambda: not source.pending)
    assert bench.messages == HAPPY


async def test_an_event_that_breaks_us_does_not_stop_the_others(caplog):
    bench, source = BridgeBench(), MemorySource()
    await bench.submitted()
    source.put(told("placed", attempt="not a number"), *started())
    async with running(Follower(source, bench.keeper, bench.runs).run()):
        await until(lambda: not source.pending)
    assert (await bench.record()).status == "DISPATCHED"
    assert "could not be handled" in caplog.text


async def test_a_bridge_that_was_replaced_stops():
    bench, source = BridgeBench(), MemorySource()
    await bench.submitted()
    old = await bench.stores.leases.acquire(LEASE, "old", ttl=0)
    await bench.stores.leases.acquire(LEASE, "new", ttl=60)
    bench.keeper._fence = lambda: old
    source.put(*started())
    with pytest.raises(FencedError):
        await Follower(source, bench.keeper, bench.runs).run()
    assert bench.messages == []
    assert len(source.pending) == 2


# --- comparing --------------------------------------------------------------------------------------------------------


def reconciler(bench: BridgeBench, now: float) -> Reconciler:
    return Reconciler(bench.stores.tasks, bench.keeper, bench.runs, clock=lambda: now)


async def test_a_lost_end_is_found_with_what_led_to_it():
    bench = BridgeBench(root(), view(since=100))
    await bench.submitted()
    bench.runs.told = started()
    await reconciler(bench, 100 + KEPT_SECONDS - 1).look()
    assert bench.messages == [], "its events may not be kept yet"
    await reconciler(bench, 100 + KEPT_SECONDS).look()
    assert bench.messages == HAPPY


async def test_an_odd_event_that_was_kept_does_not_stop_the_comparison(caplog):
    bench = BridgeBench(root(), view(since=100))
    await bench.submitted()
    bench.runs.told = [told("shard"), told("placed", attempt="not a number"), *started()]
    await reconciler(bench, 100 + KEPT_SECONDS).look()
    assert bench.messages == HAPPY
    assert caplog.text.count("could not be handled") == 2
    assert "Traceback" not in caplog.text


async def test_an_odd_submission_does_not_stop_the_comparison_of_others(caplog, monkeypatch):
    bench = BridgeBench(root(), view(since=100), root(run="root-2", submission="s2"))
    bench.runs.put(view(run="run-t2", task="t2", submission="s2", since=100))
    await bench.submitted("t1", submission="s1")
    await bench.submitted("t2", submission="s2")
    end = bench.keeper.end

    async def odd(run, record=None):
        if run.id == "run-t1":
            raise KeyError("odd")
        await end(run, record)

    monkeypatch.setattr(bench.keeper, "end", odd)
    await reconciler(bench, 200).look()
    assert [(await bench.record(t)).status for t in ("t1", "t2")] == ["PENDING", "DONE"]
    assert "submission s1 could not be handled: KeyError: 'odd'" in caplog.text


async def test_the_end_of_a_task_known_to_run_needs_no_events():
    bench = BridgeBench(root(), view(since=100))
    await bench.submitted()
    for event in started():
        await bench.keeper.apply(event)
    await reconciler(bench, 101).look()
    assert (await bench.record()).status == "DISPATCHED", "the event may still come"
    await reconciler(bench, 102.5).look()
    assert (await bench.record()).status == "DONE"


async def test_a_lost_start_is_found_and_not_asked_for_all_the_time():
    bench = BridgeBench(root(), view("RUNNING", since=100))
    await bench.submitted()
    now = [100 + KEPT_SECONDS]
    looks = Reconciler(bench.stores.tasks, bench.keeper, bench.runs, clock=lambda: now[0])
    await looks.look()
    bench.runs.told = started()
    now[0] += ASK_SECONDS - 1
    await looks.look()
    assert bench.messages == []
    now[0] += 2
    await looks.look()
    assert (await bench.record()).mark == Mark(1, Phase.STARTED)


async def test_unattended_runs_are_compared_by_state():
    bench = BridgeBench(view("RUNNING", since=100, stage=None, run_count=1))
    await bench.submitted()
    await reconciler(bench, 103).look()
    assert (await bench.record()).mark == Mark(1, Phase.STARTED)
    bench.runs.put(view("FAILED", since=110, stage=None, message="boom"))
    await reconciler(bench, 113).look()
    assert ((await bench.record()).status, (await bench.record()).error) == ("FAILED", "boom")


async def test_runs_are_looked_for_by_their_tags_only_now_and_then(monkeypatch):
    now = [1000.0]
    bench = BridgeBench(root(), view("RUNNING", since=900.0))
    await bench.submitted()
    tagged = bench.runs.of_submissions
    asked: list[float] = []

    async def by_tags(names):
        asked.append(now[0])
        return await tagged(names)

    monkeypatch.setattr(bench.runs, "of_submissions", by_tags)
    reconciler = Reconciler(bench.stores.tasks, bench.keeper, bench.runs, clock=lambda: now[0])
    for _ in range(14):
        await reconciler.look()
        now[0] += 5.0
    assert asked == [1000.0, 1035.0]


async def test_an_unattended_run_below_no_root_is_found_between_the_searches():
    now = [1000.0]
    bench = BridgeBench(view("RUNNING", since=900.0, stage=None))
    await bench.submitted()
    reconciler = Reconciler(bench.stores.tasks, bench.keeper, bench.runs, clock=lambda: now[0])
    await reconciler.look()
    assert (await bench.record()).mark.phase is Phase.STARTED
    bench.runs.put(view("COMPLETED", since=1001.0, stage=None))
    now[0] += 5.0
    await reconciler.look()
    assert (await bench.record()).mark.phase is Phase.DONE


async def test_a_crashed_root_run_gets_its_time():
    bench = BridgeBench(root("CRASHED", since=100, message="worker lost"))
    await bench.submitted()
    await reconciler(bench, 100 + CRASH_SECONDS - 1).look()
    assert (await bench.record()).status == "PENDING"
    await reconciler(bench, 100 + CRASH_SECONDS + 1).look()
    assert (await bench.record()).error == "worker lost"


async def test_a_deleted_run_fails_its_tasks_but_one_that_is_not_made_yet_does_not():
    bench = BridgeBench()
    await bench.submitted()
    await reconciler(bench, 100).look()
    assert (await bench.record()).status == "PENDING"
    await bench.stores.tasks.dispatched("s1", "root-1")
    await reconciler(bench, 100).look()
    assert (await bench.record()).error == "its run was deleted in Prefect"


async def test_a_run_of_another_prefect_is_left_alone_as_long_as_its_process_is_heard_of():
    bench = BridgeBench()
    elsewhere = Rebuilder(bench.stores.tasks, bench.settings, attended_until=lambda: 300.0)
    await elsewhere.from_root(root(parameters={"spec": graph_text({"a": ([], {})})}))
    (made,) = await bench.stores.tasks.list()
    await reconciler(bench, 299).look()
    assert (await bench.record(made.task_id)).status == "PENDING"
    await bench.stores.tasks.attend("s1", 600)
    await reconciler(bench, 301).look()
    assert (await bench.record(made.task_id)).status == "PENDING"
    await reconciler(bench, 601).look()
    assert (await bench.record(made.task_id)).error == LEFT


async def test_a_process_says_that_its_run_goes_on_as_soon_as_it_has_one(monkeypatch):
    bench = BridgeBench()
    await bench.submitted()
    named: list[str] = []
    answers = [StoreError("away")]
    noted = bench.stores.tasks.attend

    async def sometimes(name, until):
        if answers:
            raise answers.pop()
        await noted(name, until)

    monkeypatch.setattr(bench.stores.tasks, "attend", sometimes)
    async with running(attend(bench.stores.tasks, lambda: named[0] if named else None, every=0.001)):
        await asyncio.sleep(0.01)
        named.append("s1")

        async def told() -> bool:
            return ((await bench.stores.tasks.submission("s1")).attended_until or 0) > time.time() + 60

        await until(told)


async def test_runs_at_work_without_records_get_them():
    spec = graph_text({"a": ([], {})})
    bench = BridgeBench(root(parameters={"spec": spec}, since=100))
    await reconciler(bench, 200).look()
    assert [r.submission_id for r in await bench.stores.tasks.list()] == ["s1"]


async def test_attempts_on_the_pool_are_neither_tasks_nor_submissions():
    tags = Tags.of({"mloc", "mloc-attempt:t1"})
    bench = BridgeBench(replace(view("RUNNING", run="attempt-1", since=100), tags=tags))
    await reconciler(bench, 200).look()
    await reconciler(bench, 200).rebuild(quiet=True)
    event = state("Running", run="attempt-1", task=None, submission=None)
    await bench.keeper.apply(replace(event, tags=frozenset({"mloc", "mloc-attempt:t1"})))
    source = MemorySource()
    source.put(replace(state("Completed", run="attempt-1", at=100), tags=frozenset({"mloc", "mloc-attempt:t1"})))
    bench.runs.put(replace(view("COMPLETED", run="attempt-1", since=100), tags=tags))
    async with running(Follower(source, bench.keeper, bench.runs).run()):
        await until(lambda: not source.pending)
    assert await bench.stores.tasks.submission("attempt-1") is None
    assert await bench.stores.tasks.list() == []


@pytest.mark.parametrize("quiet", [True, False])
async def test_lost_records_are_rebuilt_as_they_were(quiet):
    bench = BridgeBench(root("COMPLETED"), view(run="r1", name="n:a"), view("RUNNING", run="r2", task="t2", name="n:b"))
    bench.runs.put(replace(bench.runs.views["root-1"], type="RUNNING"))
    bench.runs.told = [told("shard", run="r1"), *started("r1"), *started("r2", "t2")]  # the first lacks its facts
    await reconciler(bench, 30).rebuild(quiet=quiet)
    assert ((await bench.record()).status, (await bench.record("t2")).mark) == ("DONE", Mark(1, Phase.STARTED))
    assert bench.messages == ([] if quiet else [*HAPPY[:4] * 2, "TASK_SUCCEEDED", "STATUS RUNNING"])
    assert bool(await bench.stores.tasks.tally()) is not quiet
    await bench.keeper.end(view(run="r2", task="t2"))
    assert "TASK_SUCCEEDED" in bench.messages, "what happens after it is news"


# --- one is active ----------------------------------------------------------------------------------------------------


@pytest.fixture
def leases() -> tuple[MemoryLeases, list[float]]:
    now = [0.0]
    return MemoryLeases(clock=lambda: now[0]), now


def candidate(leases: tuple[MemoryLeases, list[float]], terms: list[tuple[int, bool]], ttl: float = 0.02) -> Any:
    async def work(term: active.Term) -> None:
        terms.append((term.fence.number, term.fresh))
        await asyncio.Event().wait()

    return ActiveLease(leases[0], ttl=ttl, clock=lambda: leases[1][0]).run(work)


async def test_one_works_and_the_next_takes_over(leases):
    first: list[tuple[int, bool]] = []
    second: list[tuple[int, bool]] = []
    async with running(candidate(leases, first)) as task:
        await until(lambda: first)
        async with running(candidate(leases, second)):
            await asyncio.sleep(0.05)
            assert second == []
            task.cancel()
            await until(lambda: second)
    assert first == [(2, True)], "a store without any bridge before"
    assert second == [(3, False)]


async def test_a_holder_that_lost_the_lease_stops_its_work_and_stands_by(leases):
    terms: list[tuple[int, bool]] = []
    async with running(candidate(leases, terms)):
        await until(lambda: terms)
        leases[1][0] = 100.0
        await leases[0].acquire(LEASE, "other", ttl=10)
        await asyncio.sleep(0.05)
        assert len(terms) == 1
        leases[1][0] = 200.0
        await until(lambda: len(terms) == 2)
    assert terms[1][1] is False


async def test_an_emptied_store_starts_the_work_afresh(leases):
    terms: list[tuple[int, bool]] = []
    async with running(candidate(leases, terms)):
        await until(lambda: terms)
        leases[0]._held.clear()
        leases[0]._numbers.clear()
        await until(lambda: len(terms) == 2)
    assert terms[1][1] is True


async def test_a_store_that_is_away_is_told_of_once(caplog):
    class Away:
        asked = 0

        async def acquire(self, name: str, holder: str, *, ttl: float) -> None:
            self.asked += 1
            raise StoreError("Redis is away")

        async def release(self, name: str, holder: str) -> bool:
            raise StoreError("Redis is away")

    away = Away()
    async with running(ActiveLease(away, ttl=0.01).run(asyncio.sleep)):
        await until(lambda: away.asked > 3)
    assert caplog.text.count("no bridge can be active: Redis is away") == 1


async def test_an_error_of_the_work_ends_the_bridge_but_fencing_does_not(leases):
    errors = [FencedError("replaced"), KeyError("defect")]

    async def work(term: active.Term) -> None:
        raise errors.pop(0)

    with pytest.raises(KeyError):
        await ActiveLease(leases[0], ttl=0.02).run(work)
    assert errors == []


# --- dispatching ------------------------------------------------------------------------------------------------------


def refused(status: int, text: str = "") -> httpx.HTTPStatusError:
    answer = httpx.Response(status, request=httpx.Request("POST", "http://x"), text=text)
    return httpx.HTTPStatusError(f"answer {status}", request=answer.request, response=answer)


class FakePrefect:
    """What the dispatcher asks of Prefect's API."""

    def __init__(self) -> None:
        self.created: list[dict[str, Any]] = []
        self.states: list[tuple[str, str]] = []
        self.errors: list[Exception] = []
        self.odd: dict[str, Exception] = {}
        self.ready: list[int] = []
        self.busy = self.most = 0

    async def create_flow_run_from_deployment(self, deployment: Any, **fields: Any) -> Any:
        self.busy += 1
        self.most = max(self.most, self.busy)
        await asyncio.sleep(0)
        self.busy -= 1
        if self.errors:
            raise self.errors.pop(0)
        if (error := self.odd.get(fields["idempotency_key"])) is not None:
            raise error
        known = {c["idempotency_key"] for c in self.created}
        if fields["idempotency_key"] not in known:
            self.created.append(fields)
        return SimpleNamespace(id=f"root-of-{fields['idempotency_key']}")

    async def request(self, method: str, path: str, json: Any = None) -> Any:
        if path == "/ready":
            if self.ready and self.ready.pop(0) != 200:
                raise refused(503)
            return httpx.Response(200, json={})
        if (error := self.odd.get(path)) is not None:
            raise error
        assert method == "POST"
        self.states.append((path.split("/")[2], json["state"]["type"]))
        return httpx.Response(200, json={})


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> FakePrefect:
    async def ensured(*_: Any) -> str:
        return "deployment"

    monkeypatch.setattr(entry_work, "ensure_deployment", ensured)
    return FakePrefect()


def dispatcher(bench: BridgeBench, prefect: FakePrefect) -> DispatchService:
    return DispatchService(bench.stores, prefect, bench.runs, bench.settings)  # type: ignore[arg-type]


async def drain(bench: BridgeBench, prefect: FakePrefect) -> None:
    async with running(dispatcher(bench, prefect).run()):

        async def empty() -> bool:
            return not await bench.stores.journal.depth()

        await until(empty)


async def test_a_submission_becomes_one_run(prefect):
    bench = BridgeBench()
    await bench.submitted(raw_yaml="a: 1", parameters={"who": "me"}, file="x.yaml")
    await drain(bench, prefect)
    (run,) = prefect.created
    assert run["idempotency_key"] == "s1"
    assert run["work_queue_name"] == "coordinator"
    assert run["tags"] == ["mloc", "mloc-submission:s1"]
    assert run["parameters"] == {"spec": "a: 1", "parameters": {"who": "me"}, "submission_id": "s1", "file": "x.yaml"}
    assert (await bench.stores.tasks.submission("s1")).flow_run == "root-of-s1"


async def test_a_long_spec_goes_by_its_content(prefect):
    bench = BridgeBench()
    text = "a: " + "x" * 20_000
    await bench.submitted(raw_yaml=text)
    await drain(bench, prefect)
    assert prefect.created[0]["parameters"]["spec"].startswith("sha256:")


async def test_several_go_at_once_but_not_all(prefect):
    bench = BridgeBench()
    for number in range(40):
        await bench.submitted(f"t{number}", submission=f"s{number}")
    await drain(bench, prefect)
    assert len(prefect.created) == 40
    assert 2 <= prefect.most <= dispatch_service.AT_ONCE


async def test_while_prefect_is_away_entries_stay(prefect, caplog, monkeypatch):
    monkeypatch.setattr(dispatch_service, "_FIRST_PAUSE", 0.001)
    bench = BridgeBench()
    await bench.submitted()
    prefect.errors = [httpx.ConnectError("refused"), refused(503)]
    await drain(bench, prefect)
    assert len(prefect.created) == 1
    assert caplog.text.count("submit of s1 waits") == 1


async def test_entries_that_always_fail_stop_no_others_and_are_given_up(prefect, monkeypatch):
    monkeypatch.setattr(dispatch_service, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(dispatch_service, "_LONGEST_PAUSE", 0.01)
    bench = BridgeBench()
    odd = [f"s{number}" for number in range(dispatch_service.AT_ONCE + 4)]
    wrong = StoreError("Redis did not like it")
    wrong.__cause__ = ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")
    prefect.odd = dict.fromkeys(odd, KeyError("part")) | {odd[0]: refused(500), odd[1]: refused(404), odd[3]: wrong}
    for number, name in enumerate([*odd, "fine"]):
        await bench.submitted(f"t{number}", submission=name)
    async with running(dispatcher(bench, prefect).run()):
        await until(lambda: prefect.created)
        assert (await bench.record("t0")).status == "PENDING", "a submission behind all of them was not kept waiting"
        await bench.submitted("later", submission="later")
        await until(lambda: len(prefect.created) == 2)

        async def empty() -> bool:
            return not await bench.stores.journal.depth()

        await until(empty)
    records = [await bench.record(f"t{number}") for number in range(3)]
    assert [r.status for r in records] == ["FAILED"] * 3
    assert [r.error for r in records] == [f"could not be started: {e}" for e in ("answer 500", "answer 404", "'part'")]


async def test_while_prefect_is_not_ready_its_500s_are_waited_for(prefect):
    bench = BridgeBench()
    await bench.submitted()
    away = 3 * dispatch_service.MOST_FAILURES
    prefect.errors = [refused(500) for _ in range(away)]
    prefect.ready = [503] * away
    await drain(bench, prefect)
    assert len(prefect.created) == 1
    assert (await bench.record()).status == "PENDING"


async def test_a_cancellation_waits_for_its_submission_and_not_for_others(prefect):
    bench = BridgeBench(root("RUNNING", run="root-2", submission="s2"))
    await bench.submitted("t1")
    await bench.submitted("t2", submission="s2")
    await bench.stores.tasks.dispatched("s2", "root-2")
    prefect.errors = [KeyError("odd")] * 3
    await bench.stores.tasks.request_cancel("s1", "t1")
    await bench.stores.tasks.request_cancel("s2")
    await drain(bench, prefect)
    assert [run["idempotency_key"] for run in prefect.created] == ["s1"], "it was made, and ended after that"
    assert prefect.states == [("root-2", "CANCELLING")]
    assert (await bench.record("t1")).status == "CANCELLED"


async def test_a_cancellation_that_always_fails_is_told_in_the_record_of_what_goes_on(prefect):
    bench = BridgeBench(root(), view("RUNNING"))
    await bench.submitted()
    await bench.stores.tasks.dispatched("s1", "root-1")
    for event in started():
        await bench.keeper.apply(event)
    await bench.stores.tasks.request_cancel("s1", "t1")
    prefect.odd = {"/flow_runs/run-t1/set_state": refused(405)}
    await drain(bench, prefect)
    record = await bench.record()
    assert (record.status, record.error) == ("DISPATCHED", "could not be cancelled: answer 405; cancel it again")


async def test_no_more_is_read_than_can_be_held(prefect, monkeypatch):
    monkeypatch.setattr(dispatch_service, "_MOST_HELD", 4)
    monkeypatch.setattr(dispatch_service, "_BATCH", 2)
    bench = BridgeBench()
    for number in range(20):
        await bench.submitted(f"t{number}", submission=f"s{number}")
    service_ = dispatcher(bench, prefect)
    most = 0
    take = service_._take

    def noted(entries, tasks):
        nonlocal most
        take(entries, tasks)
        most = max(most, len(service_._held))

    monkeypatch.setattr(service_, "_take", noted)
    async with running(service_.run()):
        await until(lambda: len(prefect.created) == 20)
    assert most <= 5


async def test_an_entry_that_comes_again_runs_nothing_twice(prefect):
    bench = BridgeBench()
    await bench.submitted()
    (entry,) = await bench.stores.journal.read("dead", count=1)
    service_ = dispatcher(bench, prefect)
    await service_.dispatch([entry])
    await service_.dispatch([entry])
    assert len(prefect.created) == 1
    prefect.created.clear()
    for event in started():  # known to have begun, even if nobody noted the run
        await bench.keeper.apply(event)
    bench.stores.tasks._submissions["s1"] = replace(await bench.stores.tasks.submission("s1"), flow_run=None)
    await dispatcher(bench, prefect).dispatch([entry])
    assert prefect.created == []


async def test_what_prefect_refuses_for_good_fails(prefect):
    bench = BridgeBench()
    await bench.submitted()
    prefect.errors = [refused(422, "name too long")]
    await drain(bench, prefect)
    assert (await bench.record()).error == "Prefect refused its run: name too long"


async def test_a_submission_that_was_cancelled_first_gets_no_run(prefect):
    bench = BridgeBench()
    await bench.submitted()
    await bench.stores.tasks.request_cancel("s1")
    await drain(bench, prefect)
    assert prefect.created == []
    assert (await bench.record()).status == "CANCELLED"


async def test_a_running_submission_is_told_to_stop(prefect):
    bench = BridgeBench(root(), view("RUNNING"))
    await bench.submitted("t1", "t2")
    await bench.stores.tasks.dispatched("s1", "root-1")
    for event in started():
        await bench.keeper.apply(event)
    await bench.stores.tasks.request_cancel("s1")
    await drain(bench, prefect)
    assert prefect.states == [("root-1", "CANCELLING")]
    assert [(await bench.record(t)).status for t in ("t1", "t2")] == ["DISPATCHED", "CANCELLED"]


async def test_one_task_is_told_to_stop(prefect):
    bench = BridgeBench(root(), view("RUNNING"), view("RUNNING", run="run-t2", task="t2"))
    await bench.submitted("t1", "t2")
    await bench.stores.tasks.dispatched("s1", "root-1")
    for event in started():
        await bench.keeper.apply(event)
    await bench.stores.tasks.request_cancel("s1", "t1")
    await drain(bench, prefect)
    assert prefect.states == [("run-t1", "CANCELLING")]
    assert (await bench.record("t2")).status == "PENDING"


# --- watching ---------------------------------------------------------------------------------------------------------


async def test_the_watch_sees_the_ends_of_tasks():
    bench = BridgeBench()
    await bench.submitted("t1", "t2", "t3")
    async with StoreWatch(bench.stores.tasks, every=0.001) as looks:
        done = asyncio.ensure_future(looks.completed("t1"))
        stopped = asyncio.ensure_future(looks.cancelled("t2"))
        ended = asyncio.ensure_future(looks.ended("t3"))
        await asyncio.sleep(0.02)
        assert not (done.done() or stopped.done() or ended.done())
        await bench.stores.tasks.transition("t1", Mark(1, Phase.DONE))
        await bench.stores.tasks.transition("t2", Mark(1, Phase.CANCELLED))
        await bench.stores.tasks.transition("t3", Mark(1, Phase.FAILED))
        async with asyncio.timeout(5):
            await done
            await stopped
            assert await ended == "FAILED"
        with pytest.raises(PlanError, match="not known here"):
            await looks.ended("nobody")
        assert looks._waiting == {}


async def test_the_watch_survives_a_store_that_is_away():
    bench = BridgeBench()
    await bench.submitted()
    await bench.stores.tasks.transition("t1", Mark(1, Phase.DONE))
    get_many, away = bench.stores.tasks.get_many, [True, True]

    async def flaky(*args: Any, **kwargs: Any) -> Any:
        if away:
            away.pop()
            raise StoreError("Redis at nowhere:1 does not serve")
        return await get_many(*args, **kwargs)

    bench.stores.tasks.get_many = flaky  # type: ignore[method-assign]
    async with StoreWatch(bench.stores.tasks, every=0.001) as looks, asyncio.timeout(5):
        await looks.completed("t1")
