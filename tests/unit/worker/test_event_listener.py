"""Waking by events: which ones count, and that a poll that came too early is repeated."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from uuid import UUID, uuid4

import httpx
import pytest

from mloc_prefect.worker import event_listener
from mloc_prefect.worker.event_listener import EventListener

POOL, OTHER = uuid4(), uuid4()


def event(run: UUID | str, pool: UUID | None = POOL, *, state: str = "Scheduled", queue: str = "") -> SimpleNamespace:
    related = [SimpleNamespace(id=f"prefect.work-pool.{pool}")] if pool else []
    related += [SimpleNamespace(id=f"prefect.work-queue.{queue}")] if queue else []
    resource = SimpleNamespace(id=f"prefect.flow-run.{run}")
    return SimpleNamespace(event=f"prefect.flow-run.{state}", resource=resource, related=related)


class Server:
    """Answers polls: each takes the next set of run ids, or raises."""

    def __init__(self, *answers) -> None:
        self.answers, self.polls = list(answers), 0
        self.serves: dict[str, bool] = {"ours": True, "theirs": False}
        self.waker = EventListener(self.poll, lambda: POOL, self.serves.get, commit_seconds=0)

    async def poll(self) -> set[UUID]:
        self.polls += 1
        answer = self.answers.pop(0) if self.answers else set()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


async def test_one_poll_when_it_finds_the_run():
    run = uuid4()
    server = Server({run})
    async with server.waker.running():
        server.waker.notice(event(run))
        await server.settle()
    assert server.polls == 1


async def test_a_second_poll_when_the_run_was_not_committed_yet():
    run = uuid4()
    server = Server(set(), {run})
    async with server.waker.running():
        server.waker.notice(event(run))
        await server.settle()
    assert server.polls == 2


async def test_events_of_other_pools_and_of_no_run_do_not_wake():
    server = Server()
    async with server.waker.running():
        server.waker.notice(event(uuid4(), OTHER))
        server.waker.notice(event(uuid4(), None))
        server.waker.notice(event("not-an-id"))
        server.waker.notice(event(uuid4(), state="Completed"))
        server.waker.notice(event(uuid4(), queue="theirs"))
        await server.settle()
    assert server.polls == 0
    assert not server.waker.new_queue


async def test_a_run_in_an_unknown_queue_has_the_queues_read():
    server = Server()
    async with server.waker.running():
        server.waker.notice(event(uuid4(), queue="ours"))
        assert not server.waker.new_queue
        server.waker.notice(event(uuid4(), queue="new"))
    assert server.waker.new_queue


async def test_events_reach_all_listeners_and_a_connection_is_told(monkeypatch: pytest.MonkeyPatch):
    class Stream:
        """A subscription of two events, after which nothing happens."""

        async def __aenter__(self):
            return self.events()

        async def __aexit__(self, *_): ...

        async def events(self):
            yield event("1")
            yield event("2")
            await asyncio.Event().wait()

    monkeypatch.setattr(event_listener, "get_events_subscriber", lambda **_: Stream())
    heard: list[str] = []
    listeners = [lambda e: heard.append(e.resource.id[-1]), lambda e: heard.append(e.resource.id[-1] * 2)]
    async with event_listener.hearing(listeners, lambda: heard.append("connected")):
        while len(heard) < 5:
            await asyncio.sleep(0)
    assert heard == ["connected", "1", "11", "2", "22"]


async def test_many_events_at_once_are_one_poll():
    run_ids = {uuid4() for _ in range(20)}
    server = Server(run_ids)
    async with server.waker.running():
        for run in run_ids:
            server.waker.notice(event(run))
        await server.settle()
    assert server.polls == 1


@pytest.mark.parametrize("error", [httpx.ConnectError("down"), KeyError("nobody thought of this")])
async def test_a_failed_poll_does_not_end_the_watch(error: Exception):
    server = Server(error, set())
    async with server.waker.running():
        server.waker.wake()
        await server.settle()
        server.waker.wake()
        await server.settle()
    assert server.polls == 2
