"""The store on a real Valkey: the contract of the twins, many processes at once, and what goes wrong with Redis."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from mloc_prefect.errors import ConflictError, StoreError
from mloc_prefect.store.backends import Stores, memory_stores, open_stores
from mloc_prefect.store.interfaces import TASK_EVENTS, JournalEntry
from mloc_prefect.store.records import WorkerRecord
from mloc_prefect.store.states import Phase, StatusMark, allowed
from tests.support.counts import count
from tests.support.records import record, submission, submit
from tests.support.store_client import MARKS, TASKS
from tests.support.store_contract import StoreContract, hearing, ids
from tests.support.valkey import embedded_valkey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from mloc_prefect.services.valkey import EmbeddedValkey
    from mloc_prefect.store.interfaces import TaskStore

PORT = 26610
PROCESSES = 4
KILLS = count("valkey-kill", 2, 20)


@pytest.fixture(scope="module")
def valkey(tmp_path_factory) -> Iterator[EmbeddedValkey]:
    with embedded_valkey(tmp_path_factory.mktemp("store"), port=PORT) as server:
        yield server


@pytest.fixture
async def stores(valkey) -> AsyncIterator[Stores]:
    opened = open_stores(valkey.url())
    await opened.backing.redis.flushdb()
    yield opened
    await opened.close()


class TestOnValkey(StoreContract):
    """The contract."""


async def test_a_listener_hears_what_comes_after_a_message_that_nobody_can_read(stores):
    async with stores.publisher.listen(TASK_EVENTS) as heard:
        for data in ("[" * 100_000, "no json", json.dumps({"n": 1})):
            await stores.backing.redis.publish(TASK_EVENTS, data)
        assert await asyncio.wait_for(anext(heard), 60) == (TASK_EVENTS, {"n": 1})


# --- the rule of steps ------------------------------------------------------------------------------------------------


async def test_the_script_and_the_table_of_steps_agree_on_every_pair(stores):
    marks = [StatusMark(attempt, phase) for attempt, phase in itertools.product((1, 2, 10), Phase)]
    for number, old in enumerate(marks):
        await stores.tasks.create([record(f"{number}-{at}", mark=old) for at in range(len(marks))])
        found = await asyncio.gather(*(stores.tasks.transition(f"{number}-{at}", new) for at, new in enumerate(marks)))
        assert [step is not None for step in found] == [allowed(old, new) for new in marks], str(old)
    unknown = await asyncio.gather(*(stores.tasks.transition("unknown", new) for new in marks))
    assert set(unknown) == {None}
    shown = await stores.tasks.counts()
    for status, number in shown.items():
        assert len(await stores.tasks.page(status=status, brief=True)) == number
    assert sum(shown.values()) == len(marks) ** 2


LIVES = count("store-lives", 10, 300)


@pytest.mark.counted
async def test_the_store_and_its_twin_lead_the_same_lives(stores):
    for seed in range(LIVES):
        await stores.backing.redis.flushdb()
        twin = memory_stores()
        for number, (name, arguments) in enumerate(life(random.Random(seed))):
            found = [await called(stores.tasks, name, arguments), await called(twin.tasks, name, arguments)]
            assert found[0] == found[1], f"seed {seed}, call {number}: {name} {arguments}"
        assert await stores.journal.depth() == await twin.journal.depth()
        assert await stores.tasks.list() == await twin.tasks.list()


async def called(tasks: TaskStore, name: str, arguments: dict):
    """Return what a call gives, without what is a store's own: places in the journal."""
    try:
        result = await getattr(tasks, name)(**arguments)
    except (ConflictError, ValueError) as error:
        return str(error)
    return replace(result, id="") if isinstance(result, JournalEntry) else result


def life(chance: random.Random) -> Iterator[tuple[str, dict]]:
    """Yield calls that meet each other's records: few names, few keys, all marks."""
    names = [f"t{number}" for number in range(6)]
    for number in range(50):
        mark = StatusMark(chance.randint(1, 3), chance.choice(list(Phase)))
        changes = chance.choice([{}, {"error": "why"}, {"error": None, "assigned_worker": "w", "started_ts": 0.1}])
        some = chance.sample(names, chance.randint(1, 3))
        key = chance.choice([None, None, "k1", "k2"])
        made = submission(f"s{number}", *some, idempotency_key=key, digest=chance.choice("ab") if key else None)
        entries = [record(task_id, submission_id=made.submission_id) for task_id in some]
        yield from chance.choice(
            [
                [("submit", {"submission": made, "records": entries})],
                [("create", {"records": entries, "submission": chance.choice([None, made])})],
                [("transition", {"task_id": some[0], "mark": mark, "changes": changes, "add": {"n": 0.5}})] * 2,
                [("note", {"task_id": some[0], "mark": mark, "changes": changes})],
                [("request_cancel", {"submission_id": f"s{chance.randint(0, number)}"})],
                [("dispatched", {"submission_id": f"s{chance.randint(0, number)}", "flow_run": "run"})],
                [
                    ("page", {"status": mark.phase.status, "limit": 2, "newest_first": chance.random() < 0.5}),
                    ("page", {"after": some[0], "name": chance.choice([None, *names])}),
                    ("page", {"submission_id": f"s{chance.randint(0, number)}"}),
                ],
                [("counts", {}), ("tally", {}), ("get_many", {"task_ids": some})],
                [("submission", {"submission_id": f"s{chance.randint(0, number)}"})],
            ]
        )


async def test_a_step_whose_answer_was_lost_is_taken_once(stores, monkeypatch):
    monkeypatch.setattr("mloc_prefect.store.redis.task_store.secrets.token_hex", lambda _: "same call")
    await submit(stores.tasks, "s1", "t1")
    started = StatusMark(1, Phase.STARTED)
    async with hearing(stores, TASK_EVENTS) as heard:
        steps = [
            await stores.tasks.transition("t1", started, {"error": "x"}, [(TASK_EVENTS, {})], add={"n": 1})
            for _ in range(2)
        ]
    assert steps[0] == steps[1]
    assert len(heard) == 1
    assert await stores.tasks.tally() == {"n": 1}


async def test_a_submission_whose_answer_was_lost_is_stored_once(stores):
    for _ in range(2):
        made = await submit(stores.tasks, "s1", "a", "b", idempotency_key="k", digest="d")
        assert made.submission_id == "s1"
    assert ids(await stores.tasks.list()) == ["a", "b"]
    assert await stores.journal.depth() == 1


async def test_idempotency_keys_live_for_a_day(stores):
    await submit(stores.tasks, "s1", "a", idempotency_key="k" * 5000, digest="d")
    (key,) = await stores.backing.redis.keys("mloc:idempotency:*")
    assert 24 * 3600 - 60 < await stores.backing.redis.ttl(key) <= 24 * 3600


async def test_nothing_but_open_entries_stays_in_the_journal(stores):
    for number in range(20):
        await submit(stores.tasks, f"s{number}", f"t{number}")
    for entry in await stores.journal.read("one", count=20):
        await stores.journal.ack(entry)
    assert await stores.backing.redis.xlen("mloc:journal") == 0
    assert (await stores.backing.redis.xpending("mloc:journal", "dispatch"))["pending"] == 0


async def test_an_entry_that_cannot_be_read_is_dropped_and_stops_no_others(stores, caplog):
    await stores.backing.redis.xadd("mloc:journal", {"kind": "submit"})
    await stores.backing.redis.xadd("mloc:journal", {"kind": "submit", "submission": b"\xff"})
    await submit(stores.tasks, "s1", "a")
    assert [entry.submission_id for entry in await stores.journal.read("one")] == ["s1"]
    assert await stores.journal.depth() == 1
    assert caplog.text.count("cannot be read") == 2


async def test_a_restarted_reader_gets_first_what_it_had_taken(stores, valkey):
    for number in range(3):
        await submit(stores.tasks, f"s{number}", f"t{number}")
    taken = await stores.journal.read("one", count=2)
    restarted = open_stores(valkey.url())
    again = [*await restarted.journal.read("one", count=1), *await restarted.journal.read("one", count=5)]
    assert again == taken
    assert [entry.submission_id for entry in await restarted.journal.read("one", count=5)] == ["s2"]
    await restarted.close()


async def test_long_lists_come_in_pages(stores):
    await submit(stores.tasks, "s1", *(f"t{number:04}" for number in range(1203)))
    expected = [f"t{number:04}" for number in range(1203)]
    assert ids(await stores.tasks.list()) == expected
    assert ids(await stores.tasks.page(newest_first=True, limit=600)) == expected[:-601:-1]
    assert ids(await stores.tasks.page(name="t1202")) == ["t1202"]
    assert list(await stores.tasks.get_many(expected, brief=True)) == expected


# --- what others write ------------------------------------------------------------------------------------------------


async def test_workers_of_the_original_protocol_are_read_as_they_write(stores):
    redis = stores.backing.redis
    await redis.sadd("workers:ids", "w-a", "gone")
    await redis.hset("worker:w-a", mapping={"worker_id": "w-a", "pid": "0", "tags_json": '["cpu"]', "env_json": "{"})
    await redis.set("worker:w-a:hb", "2026-01-01T00:00:00+00:00")
    await redis.hset("worker:ghost", mapping={"status": "IDLE", "extra_last_task": "t"})
    (found,) = await stores.workers.list()
    # One broken field empties three; a heartbeat without a lifetime is stale; only the list fills in `last_seen`.
    assert found == WorkerRecord(worker_id="w-a", stale=True, last_seen="2026-01-01T00:00:00+00:00")
    assert (await stores.workers.get("w-a")).last_seen is None
    assert (await stores.workers.get("ghost")).last_task == "t"


async def test_what_is_no_object_is_not_heard(stores):
    async with hearing(stores, TASK_EVENTS) as heard:
        for text in ("no json", "[1]", '{"a": 1}', b"\xff"):
            await stores.backing.redis.publish(TASK_EVENTS, text)
    assert heard == [(TASK_EVENTS, {"a": 1})]


# --- several processes ------------------------------------------------------------------------------------------------


def together(url: str, job: str) -> list:
    """Run one job in several processes that begin together; returns what each printed."""
    clients = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.store_client", url, f"p{number}", job],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(PROCESSES)
    ]
    try:
        for client in clients:
            assert client.stdout.readline() == "ready\n"
        for client in clients:
            client.stdin.write("go\n")
            client.stdin.flush()
        return [json.loads(client.communicate(timeout=60)[0]) for client in clients]
    finally:
        for client in clients:
            client.kill()
            client.wait()


async def test_each_step_is_taken_by_one_process_and_told_once(stores, valkey):
    await submit(stores.tasks, "s1", *TASKS)
    async with hearing(stores, TASK_EVENTS) as heard:
        own = await asyncio.to_thread(together, valkey.url(), "steps")
    taken = [label for labels in own for label in labels]
    # A process may find a later step taken before an earlier one, which is then skipped: never taken twice.
    assert len(taken) == len(set(taken))
    assert sorted(message["step"] for _, message in heard) == sorted(taken)
    assert {f"{task_id} {MARKS[-1]}" for task_id in TASKS} <= set(taken)
    assert {entry.mark for entry in await stores.tasks.list()} == {MARKS[-1]}


async def test_one_submission_comes_of_a_key_however_many_processes_use_it(stores, valkey):
    got = await asyncio.to_thread(together, valkey.url(), "keys")
    assert got[0] == got[1] == got[2] == got[3]
    assert len(await stores.tasks.list()) == len(TASKS) == await stores.journal.depth()


async def test_each_entry_of_the_journal_goes_to_one_process(stores, valkey):
    for number in range(200):
        await submit(stores.tasks, f"s{number}", f"t{number}")
    taken = await asyncio.to_thread(together, valkey.url(), "journal")
    assert sorted(name for names in taken for name in names) == sorted(f"s{number}" for number in range(200))
    assert await stores.journal.depth() == 0


# --- faults -----------------------------------------------------------------------------------------------------------


async def test_a_flushed_database_is_used_again_at_once(stores):
    await submit(stores.tasks, "s1", "a")
    await stores.journal.read("one")
    await stores.backing.redis.flushall()
    await stores.backing.redis.script_flush()
    assert await stores.journal.read("one") == []
    assert await stores.journal.reclaim("one", min_idle_ms=0) == []
    assert await stores.tasks.list() == []
    await submit(stores.tasks, "s2", "b")
    assert await stores.tasks.transition("b", StatusMark(1, Phase.STARTED))
    await stores.backing.redis.flushall()
    await submit(stores.tasks, "s3", "c")
    assert [entry.submission_id for entry in await stores.journal.read("one")] == ["s3"]


async def test_a_server_that_is_down_or_silent_is_named_and_used_again_when_it_is_back(valkey):
    stores = open_stores(valkey.url())
    await submit(stores.tasks, "down", "down-task")
    pid = valkey.poll().pid
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(StoreError, match=rf"Redis at 127.0.0.1:{valkey.poll().port} does not answer"):
        await stores.tasks.get("down-task")
    os.kill(pid, signal.SIGCONT)
    assert await stores.tasks.get("down-task")
    async with stores.publisher.listen(TASK_EVENTS) as heard:
        next_one = asyncio.create_task(anext(heard))
        await kill(valkey)
        message = rf"Redis at 127.0.0.1:{PORT} cannot be reached: Connection refused"
        for call in (
            stores.check(),
            stores.tasks.counts(),
            submit(stores.tasks, "s2", "t2"),
            stores.journal.read("one", block_ms=1000),
            stores.workers.list(),
            stores.publisher.publish(TASK_EVENTS, {}),
        ):
            with pytest.raises(StoreError, match=message) as caught:
                await call
            assert valkey.password() not in str(caught.value)
        with pytest.raises(StoreError, match=message):
            async with stores.publisher.listen(TASK_EVENTS):
                pass
        await valkey.ready()
        assert await stores.tasks.get("down-task")
        assert await stores.tasks.get("t2") is None
        while not await stores.publisher.publish(TASK_EVENTS, {"back": True}):
            await asyncio.sleep(0.05)
        assert await next_one == (TASK_EVENTS, {"back": True})
    await stores.close()


@pytest.mark.counted
async def test_nothing_that_was_accepted_is_lost_when_the_server_is_killed(stores, valkey):
    accepted: list[str] = []
    numbers = itertools.count()
    over = asyncio.Event()

    async def client() -> None:
        while not over.is_set():
            name = f"k{next(numbers)}"
            try:
                made = await submit(stores.tasks, name, f"{name}-a", f"{name}-b")
            except StoreError:
                await asyncio.sleep(0.02)
            else:
                accepted.append(made.submission_id)

    async def more(number: int) -> None:
        goal = len(accepted) + number
        while len(accepted) < goal:
            await asyncio.sleep(0.005)

    clients = [asyncio.create_task(client()) for _ in range(8)]
    for _ in range(KILLS):
        await more(300)
        await kill(valkey)
        await valkey.ready()
        await more(50)
    over.set()
    await asyncio.gather(*clients)
    known = ids(await stores.tasks.page(brief=True))
    journalled = [entry.submission_id for entry in await stores.journal.read("one", count=10**6)]
    assert len(set(known)) == len(known)
    assert len(set(journalled)) == len(journalled)
    assert set(accepted) <= set(journalled)
    # Whole or not at all: also those whose answer never came.
    assert sorted(known) == sorted(f"{name}-{part}" for name in journalled for part in "ab")
    assert len(journalled) - len(accepted) <= 8 * KILLS


async def kill(valkey: EmbeddedValkey) -> None:
    os.kill(valkey.poll().pid, signal.SIGKILL)
    while valkey.running:
        await asyncio.sleep(0.01)
