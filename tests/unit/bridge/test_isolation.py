"""Anybody may publish anything on MLOC's channels: those who listen go on."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.bridge.worker_metrics import count_worker_events
from mloc_prefect.errors import StoreError
from mloc_prefect.mloc_workers import subscription
from mloc_prefect.mloc_workers.subscription import EventSubscription
from mloc_prefect.server.streams import message_feed as feeds
from mloc_prefect.server.streams.message_feed import MessageFeed
from mloc_prefect.store.backends import memory_stores
from mloc_prefect.store.interfaces import TASK_EVENTS, WORKER_EVENTS
from mloc_prefect.store.memory.publisher import MemoryPublisher
from mloc_prefect.store.redis.publisher import _object

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DONE = {"type": "TASK_SUCCEEDED", "worker_id": "w", "task_id": "t"}


class Breaking(MemoryPublisher):
    """Breaks off when it is told to, or hears nothing at all."""

    def __init__(self, *, closed: Exception | None = None) -> None:
        super().__init__()
        self.closed = closed

    @asynccontextmanager
    async def listen(self, *channels: str) -> AsyncIterator[AsyncIterator[tuple[str, dict[str, Any]]]]:
        if self.closed is not None:
            raise self.closed
        async with super().listen(*channels) as messages:
            yield _until_told(messages)


async def _until_told(messages: AsyncIterator[tuple[str, dict[str, Any]]]) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    async for channel, message in messages:
        if message.get("break"):
            raise RuntimeError("nobody thought of this")
        yield channel, message


def _refuses_odd(then: Any) -> Any:
    def malformed(*given: Any) -> Any:
        if given[-1].get("malformed"):
            raise RecursionError("too deep")
        return then(*given)

    return malformed


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"a":' * 100_000, b"\xff", b"{", b"[1]", b"null"])
def test_what_is_no_object_is_left_out(data: bytes) -> None:
    assert _object(data) is None


async def test_a_type_that_is_no_text_is_not_counted() -> None:
    stores = memory_stores()
    counting = asyncio.create_task(count_worker_events(stores))
    await asyncio.sleep(0.01)
    for kind in ({"HEARTBEAT": 1}, ["HEARTBEAT"], 7, None, "heartbeat"):
        await stores.publisher.publish(WORKER_EVENTS, {"type": kind})
    await asyncio.sleep(0.01)
    counting.cancel()
    assert await stores.tasks.tally() == {"worker_heartbeats": 1}


# --- those who follow workers of the original protocol ----------------------------------------------------------------


async def test_an_odd_message_of_a_worker_does_not_end_the_listener(
    monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(subscription, "parse_report", _refuses_odd(subscription.parse_report))
    publisher = MemoryPublisher()
    subscription_ = EventSubscription(publisher)
    await subscription_.listening()
    reports = subscription_.follow("w")
    await publisher.publish(TASK_EVENTS, {"malformed": True})
    await publisher.publish(TASK_EVENTS, DONE)
    assert (await asyncio.wait_for(reports.get(), 1)).what == "succeeded"
    assert "a message on tasks.events could not be handled" in caplog.text
    await subscription_.close()


async def test_a_listener_that_ended_is_started_again_by_the_next_task(caplog: Any) -> None:
    publisher = Breaking()
    subscription_ = EventSubscription(publisher)
    await subscription_.listening()
    reports = subscription_.follow("w")
    await publisher.publish(TASK_EVENTS, {"break": True})
    await asyncio.sleep(0.01)
    assert "nobody thought of this" in caplog.text
    await subscription_.listening()
    await publisher.publish(TASK_EVENTS, DONE)
    assert (await asyncio.wait_for(reports.get(), 1)).what == "succeeded"
    await subscription_.close()


@pytest.mark.parametrize("error", [StoreError("away"), RuntimeError("nobody thought of this")])
async def test_who_cannot_listen_is_told_why_and_the_next_one_tries_again(error: Exception) -> None:
    publisher = Breaking(closed=error)
    subscription_ = EventSubscription(publisher)
    for caught in await asyncio.gather(subscription_.listening(), subscription_.listening(), return_exceptions=True):
        assert caught is error
    publisher.closed = None
    await subscription_.listening()
    await subscription_.close()


# --- those who hear all messages --------------------------------------------------------------------------------------


async def test_an_odd_message_is_left_out_of_the_feed(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(feeds, "mask_document", _refuses_odd(feeds.mask_document))
    publisher = MemoryPublisher()
    feed = MessageFeed(publisher)
    await feed.open()
    with feed.reader(None) as messages:
        await publisher.publish(TASK_EVENTS, {"malformed": True})
        await publisher.publish(TASK_EVENTS, DONE)
        assert (await asyncio.wait_for(anext(messages), 1)).message == DONE
    assert "could not be handled" in caplog.text
    await feed.close()


async def test_readers_of_a_feed_that_ended_end_and_go_on_where_they_were(caplog: Any) -> None:
    publisher = Breaking()
    feed = MessageFeed(publisher)
    await feed.open()
    with feed.reader(None) as messages:
        for message in (DONE, {"n": 1}, {"break": True}):
            await publisher.publish(TASK_EVENTS, message)
        async with asyncio.timeout(1):
            heard = [heard async for heard in messages]
    assert [h.message for h in heard] == [DONE, {"n": 1}]
    assert "nobody thought of this" in caplog.text
    with feed.reader(None) as messages, pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(anext(messages), 1)
    await feed.open()
    await publisher.publish(TASK_EVENTS, {"n": 2})
    with feed.reader(feed.id_of(heard[0])) as messages:
        assert [(await asyncio.wait_for(anext(messages), 1)).message for _ in range(2)] == [{"n": 1}, {"n": 2}]
    await feed.close()


@pytest.mark.parametrize("number", ["9" * 5000, "²", "٣", "-1", ""])
async def test_a_last_id_may_be_anything(number: str) -> None:
    publisher = MemoryPublisher()
    feed = MessageFeed(publisher)
    await feed.open()
    await publisher.publish(TASK_EVENTS, {"n": 0})
    await asyncio.sleep(0)
    with feed.reader(f"{feed._name}-{number}") as messages:
        await publisher.publish(TASK_EVENTS, {"n": 1})
        assert (await asyncio.wait_for(anext(messages), 1)).message == {"n": 1}
    await feed.close()
