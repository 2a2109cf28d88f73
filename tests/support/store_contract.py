"""The contract of task store, journal and leases, which both implementations must fulfill."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from mloc_prefect.errors import ConflictError, FencedError
from mloc_prefect.store.backends import Stores
from mloc_prefect.store.interfaces import TASK_EVENTS, WORKER_EVENTS
from mloc_prefect.store.records import WorkerRecord
from mloc_prefect.store.states import Phase, StatusMark, TaskStatus
from tests.support.records import record, submission, submit

STARTED = StatusMark(1, Phase.STARTED)
TIME = 1_700_000_000.0


def ids(records) -> list[str]:
    return [entry.task_id for entry in records]


@asynccontextmanager
async def hearing(stores: Stores, *channels: str):
    """Collect the messages published on `channels` until the block ends."""
    messages: list[tuple[str, dict]] = []
    async with stores.publisher.listen(*channels, "end") as heard:
        yield messages
        await stores.publisher.publish("end", {})
        while (message := await anext(heard))[0] != "end":
            messages.append(message)


class StoreContract:
    """Tests of a fixture `stores`."""

    # --- submissions --------------------------------------------------------------------------------------------------

    async def test_records_come_back_in_order_of_creation(self, stores):
        store = stores.tasks
        await submit(store, "s1", "b", "a")
        await submit(store, "s2", "c")
        assert ids(await store.list()) == ["b", "a", "c"]
        assert ids(await store.list(submission_id="s1")) == ["b", "a"]
        assert list(await store.get_many(["c", "nobody", "b"])) == ["c", "b"]
        assert await store.get("nobody") is None
        assert await store.submission("nobody") is None

    async def test_everything_that_was_submitted_comes_back(self, stores):
        text = "text: \u00e4\U0001f600\n" + "x" * 10_000
        made = submission(
            "s1", "a", raw_yaml=text, name="n", file="f.yaml", parameters={"p": "q"}, idempotency_key="k", digest="d"
        )
        entry = record("a", raw_yaml=text, parsed={"a": ["\u00e4" * 5000, 1.5, None]}, submission_id="s1")
        entry = replace(entry, depends_on=("x", "y"), load=3, submitted_ts=TIME, shard_index=0, shard_total=2)
        assert await stores.tasks.submit(made, [entry]) == made
        assert await stores.tasks.submission("s1") == made
        assert await stores.tasks.get("a") == entry

    async def test_a_submission_is_stored_whole_or_not_at_all(self, stores):
        store = stores.tasks
        await submit(store, "s1", "a")
        with pytest.raises(ValueError, match="task id taken: a"):
            await submit(store, "s2", "b", "a")
        with pytest.raises(ValueError, match="task id taken: c"):
            await submit(store, "s3", "c", "c")
        assert ids(await store.list()) == ["a"]
        assert await store.submission("s2") is None
        assert await stores.journal.depth() == 1

    async def test_a_key_that_is_used_again_gives_the_earlier_submission(self, stores):
        store = stores.tasks
        first = await submit(store, "s1", "a", idempotency_key="k", digest="d")
        assert await submit(store, "s2", "b", idempotency_key="k", digest="d") == first
        assert (await store.keyed("k"), await store.keyed("unknown")) == (first, None)
        with pytest.raises(ConflictError, match="the idempotency key 'k' was used for another submission"):
            await submit(store, "s3", "c", idempotency_key="k", digest="other")
        assert ids(await store.list()) == ["a"]
        assert await stores.journal.depth() == 1
        await submit(store, "s4", "d", idempotency_key="other", digest="d")
        assert ids(await store.list()) == ["a", "d"]

    async def test_a_submission_knows_its_run_and_that_it_was_cancelled(self, stores):
        store = stores.tasks
        await submit(store, "s1", "a")
        await store.request_cancel("s1", "a")
        assert not (await store.submission("s1")).cancelled
        await store.dispatched("s1", "run")
        await store.request_cancel("s1")
        await store.dispatched("nobody", "run")
        assert (await store.submission("s1")).attended_until is None
        await store.attend("s1", TIME)
        await store.attend("nobody", TIME)
        found = await store.submission("s1")
        assert (found.flow_run, found.cancelled, found.attended_until) == ("run", True, TIME)
        assert await store.submission("nobody") is None

    async def test_records_of_runs_started_elsewhere_are_added_once_and_in_their_place(self, stores):
        store = stores.tasks
        await submit(store, "s1", "x")
        old = submission("s0", "b", "a")
        records = [record(task_id, submission_id="s0", submitted_ts=TIME) for task_id in ("a", "b")]
        assert await store.create(records[:1], old) == ("a",)
        assert await store.create(records, old) == ("b",)
        assert await store.create(records) == ()
        assert ids(await store.list()) == ["b", "a", "x"]
        assert ids(await store.list(submission_id="s0")) == ["b", "a"]
        assert await store.submission("s0") == old
        assert await stores.journal.depth() == 1
        assert await store.create([record("single", raw_yaml="own: text")]) == ("single",)
        assert ids(await store.list())[-1] == "single"
        assert (await store.get("single")).raw_yaml == "own: text"

    # --- lists --------------------------------------------------------------------------------------------------------

    async def test_pages_and_filters(self, stores):
        store = stores.tasks
        for number in range(4):
            await submit(store, f"s{number}", f"t{number}a", f"t{number}b", name=f"n{number}")
        assert ids(await store.page(limit=3)) == ["t0a", "t0b", "t1a"]
        assert ids(await store.page(after="t1a", limit=2)) == ["t1b", "t2a"]
        assert ids(await store.page(newest_first=True, limit=2)) == ["t3b", "t3a"]
        assert ids(await store.page(newest_first=True, after="t0b")) == ["t0a"]
        assert ids(await store.page(after="t3b")) == []
        assert ids(await store.page(after="nobody")) == []
        assert ids(await store.page(limit=0)) == []
        assert ids(await store.page(name="n2")) == ["t2a", "t2b"]
        assert ids(await store.page(name="t2b")) == ["t2b"]
        assert ids(await store.page(task_type="sft")) == []
        assert len(await store.page(task_type="echo")) == 8

    async def test_a_page_goes_on_behind_a_record_that_changed_its_status_since(self, stores):
        store = stores.tasks
        await submit(store, "s1", *"abcd")
        await store.transition("b", STARTED)
        assert ids(await store.page(status=TaskStatus.DISPATCHED)) == ["b"]
        assert ids(await store.page(status=TaskStatus.PENDING, after="b", limit=1)) == ["c"]
        assert ids(await store.page(status=TaskStatus.PENDING, after="b", newest_first=True)) == ["a"]
        assert ids(await store.page(status=TaskStatus.PENDING, submission_id="s1")) == ["a", "c", "d"]
        shown = {"DISPATCHED": 1, "PENDING": 3}
        assert await store.counts() == {status: shown.get(status, 0) for status in TaskStatus}

    async def test_views_are_stored_with_what_they_show(self, stores):
        """Records of an earlier version have no views, and say so, also beside a submission of this one."""
        made = submission("s1", "a", "b", masked=True, shown_yaml="a: ***")
        seen = record("a", submission_id="s1", masked=True, shown_yaml="a: ***", shown_parsed={"a": "***"})
        await stores.tasks.submit(made, [seen, record("b", submission_id="s1")])
        assert await stores.tasks.get("a") == seen
        assert not (await stores.tasks.get("b")).masked
        assert (await stores.tasks.submission("s1")).shown_yaml == "a: ***"

    async def test_a_list_has_outlines_instead_of_long_documents(self, stores):
        long = record("a", submission_id="s1", parsed={"a": "x" * 9000}, masked=True, outline={"kind": "K"})
        short = record("b", submission_id="s1", masked=True)
        await stores.tasks.submit(submission("s1", "a", "b", masked=True), [long, short])
        first, second = await stores.tasks.page(outlines=True)
        assert (first.raw_yaml, first.parsed, first.outline) == ("", {}, {"kind": "K"})
        assert second == short
        assert (await stores.tasks.get("a")).parsed == long.parsed

    async def test_brief_records_have_no_long_fields(self, stores):
        await submit(stores.tasks, "s1", "a")
        whole = await stores.tasks.get("a")
        brief = replace(whole, raw_yaml="", parsed={})
        assert (whole.raw_yaml, whole.parsed) == ("a: 1", {"a": 1})
        assert await stores.tasks.page(brief=True) == [brief]
        assert await stores.tasks.get_many(["a"], brief=True) == {"a": brief}

    # --- steps --------------------------------------------------------------------------------------------------------

    async def test_a_step_changes_the_record_and_sends_its_messages(self, stores):
        store = stores.tasks
        await submit(store, "s1", "t1")
        sent = [(TASK_EVENTS, {"type": "TASK_STARTED", "error": "\u00e4"}), (WORKER_EVENTS, {"type": "STATUS"})]
        changes = {"assigned_worker": "w", "error": "none yet", "started_ts": 1.5}
        async with hearing(stores, TASK_EVENTS, WORKER_EVENTS) as heard:
            moved = await store.transition("t1", STARTED, changes, sent, add={"n": 1.5})
        assert heard == sent
        assert moved == (await store.get_many(["t1"], brief=True))["t1"]
        assert (moved.mark, moved.assigned_worker, moved.error, moved.started_ts) == (STARTED, "w", "none yet", 1.5)
        done = await store.transition("t1", StatusMark(1, Phase.DONE), {"error": None}, add={"n": 1, "m": 2})
        assert (done.status, done.error, done.assigned_worker) == (TaskStatus.DONE, None, "w")
        assert await store.tally() == {"n": 2.5, "m": 2}
        await store.add({"n": 1, "of no record": 3})
        assert await store.tally() == {"n": 3.5, "m": 2, "of no record": 3}

    async def test_a_forbidden_step_changes_and_sends_nothing(self, stores):
        store = stores.tasks
        await store.create([record("t1", mark=StatusMark(1, Phase.DONE))])
        failed = StatusMark(1, Phase.FAILED)
        async with hearing(stores, TASK_EVENTS) as heard:
            assert await store.transition("t1", failed, {"error": "late"}, [(TASK_EVENTS, {})], add={"n": 1}) is None
            assert await store.transition("unknown", failed, {"error": "x"}, [(TASK_EVENTS, {})]) is None
        assert heard == []
        assert (await store.get("t1")).error is None
        assert await store.get("unknown") is None
        assert await store.tally() == {}

    async def test_a_note_changes_only_a_record_that_stands_where_it_should(self, stores):
        store = stores.tasks
        await submit(store, "s1", "t1")
        waiting = StatusMark(1, Phase.WAITING)
        async with hearing(stores, TASK_EVENTS) as heard:
            assert await store.note("t1", waiting, {"error": "no GPU"}, [(TASK_EVENTS, {})]) is None
            await store.transition("t1", waiting)
            assert (await store.note("t1", waiting, {"error": "no GPU"}, [(TASK_EVENTS, {})])).error == "no GPU"
        assert len(heard) == 1
        assert (await store.get("t1")).mark == waiting
        assert await store.note("nobody", waiting, {}) is None

    async def test_who_lost_the_lease_takes_no_step(self, stores):
        store = stores.tasks
        await submit(store, "s1", "t1")
        fence = await stores.leases.acquire("bridge", "a", ttl=60)
        assert await stores.leases.acquire("bridge", "b", ttl=60) is None
        assert await stores.leases.acquire("bridge", "a", ttl=60) == fence
        assert not await stores.leases.release("bridge", "b")
        assert await stores.leases.release("bridge", "a")
        later = await stores.leases.acquire("bridge", "b", ttl=60)
        assert later.number > fence.number
        with pytest.raises(FencedError, match="the lease bridge has gone to another holder"):
            await store.transition("t1", STARTED, fence=fence)
        assert await store.transition("t1", STARTED, fence=later)

    # --- journal ------------------------------------------------------------------------------------------------------

    async def test_an_entry_stays_until_it_is_acknowledged(self, stores):
        journal = stores.journal
        assert await journal.read("one") == []
        await submit(stores.tasks, "s1", "a")
        await submit(stores.tasks, "s2", "b")
        asked = await stores.tasks.request_cancel("s1", "a")
        first = await journal.read("one", count=1)
        rest = await journal.read("two", count=9)
        assert [(entry.kind, entry.submission_id, entry.task_id) for entry in (*first, *rest)] == [
            ("submit", "s1", None),
            ("submit", "s2", None),
            ("cancel", "s1", "a"),
        ]
        assert rest[1] == asked
        assert await journal.read("one", block_ms=1) == []
        await journal.ack(rest[0])
        assert await journal.depth() == 2
        assert await journal.reclaim("three", min_idle_ms=60_000) == []
        assert list(await journal.reclaim("three", min_idle_ms=0)) == [first[0], rest[1]]
        for entry in (first[0], rest[1]):
            await journal.ack(entry)
        assert await journal.depth() == 0

    async def test_a_waiting_reader_gets_what_comes(self, stores):
        reader = asyncio.create_task(stores.journal.read("one", block_ms=30_000))
        await asyncio.sleep(0)
        await submit(stores.tasks, "s1", "a")
        assert [entry.submission_id for entry in await reader] == ["s1"]

    # --- messages -----------------------------------------------------------------------------------------------------

    async def test_a_listener_hears_its_channels_while_it_listens(self, stores):
        publisher = stores.publisher
        await publisher.publish(TASK_EVENTS, {"n": 0})
        async with publisher.listen(TASK_EVENTS, WORKER_EVENTS) as heard:
            received = [
                await publisher.publish(channel, {"n": n})
                for channel, n in ((TASK_EVENTS, 1), ("elsewhere", 2), (WORKER_EVENTS, 3))
            ]
            assert received == [1, 0, 1]
            assert [await anext(heard), await anext(heard)] == [(TASK_EVENTS, {"n": 1}), (WORKER_EVENTS, {"n": 3})]
        assert await publisher.publish(TASK_EVENTS, {}) == 0

    # --- workers ------------------------------------------------------------------------------------------------------

    async def test_a_worker_comes_changes_and_leaves(self, stores):
        workers = stores.workers
        shown = WorkerRecord(
            worker_id="w1",
            status="STARTING",
            pid=7,
            tags=("cpu",),
            env={"A": "b"},
            hardware={"cpu": {}},
            protocol="ours",
        )
        async with hearing(stores, WORKER_EVENTS) as heard:
            await workers.register(WorkerRecord(worker_id="w2"), ttl=60)
            await workers.register(shown, ttl=60, messages=[(WORKER_EVENTS, {"n": 1})])
            assert await workers.heartbeat("w1", ttl=60, messages=[(WORKER_EVENTS, {"n": 2})])
            assert await workers.set_status(
                "w1", "RUNNING", extra={"task_id": "t"}, messages=[(WORKER_EVENTS, {"n": 3})]
            )
            found = await workers.list()
            assert not await workers.remove("w1", only_stale=True, messages=[(WORKER_EVENTS, {"n": 4})])
            assert await workers.remove("w1", messages=[(WORKER_EVENTS, {"n": 5})])
            assert not await workers.remove("w1", messages=[(WORKER_EVENTS, {"n": 6})])
        assert [data["n"] for _, data in heard] == [1, 2, 3, 5]
        assert [worker.worker_id for worker in found] == ["w1", "w2"]
        assert found[0].last_seen
        assert found[0] == replace(
            shown, status="RUNNING", running="t", last_seen=found[0].last_seen, started_at=found[0].started_at
        )
        assert await workers.get("w1") is None

    async def test_a_heartbeat_says_what_a_worker_holds_and_runs(self, stores):
        workers, at_work = stores.workers, {"leases": [], "models": ["m"], "runs": ["r"]}
        await workers.register(WorkerRecord(worker_id="w", protocol="ours"), ttl=60)
        assert "at_work" not in (await workers.get("w")).to_dict()
        assert await workers.heartbeat("w", ttl=60, at_work=at_work)
        assert await workers.heartbeat("w", ttl=60)
        found = await workers.get("w")
        assert (found.at_work, found.cached_models, found.to_dict()["at_work"]) == (at_work, ("m",), at_work)

    async def test_unknown_worker_gets_no_ghost_record(self, stores):
        workers = stores.workers
        assert not await workers.set_status("ghost", "IDLE", messages=[(WORKER_EVENTS, {})])
        assert not await workers.heartbeat("ghost", ttl=1)
        assert await workers.get("ghost") is None
        assert await workers.list() == []

    async def test_a_worker_is_stale_after_its_time_without_heartbeat(self, stores):
        await stores.workers.register(WorkerRecord(worker_id="w"), ttl=0.001)
        await asyncio.sleep(0.01)
        assert (await stores.workers.get("w")).stale
        assert await stores.workers.heartbeat("w", ttl=60)
        assert not (await stores.workers.get("w")).stale
