"""Logs, server-sent events, the feed of messages."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing, asynccontextmanager

import pytest

from mloc_prefect.errors import StoreError
from mloc_prefect.server.streams import message_feed as feeds
from mloc_prefect.server.streams import sse, task_log
from mloc_prefect.server.streams.message_feed import LostBehindError, MessageFeed
from mloc_prefect.store.memory.publisher import MemoryPublisher
from mloc_prefect.store.states import Phase, StatusMark
from tests.support.endpoint import served

TASKS = "/api/v1/tasks"


async def test_the_log_of_a_task(tmp_path):
    async with served(tmp_path) as endpoint:
        task_id = await endpoint.one()
        url = f"{TASKS}/{task_id}/logs"
        nothing = await endpoint.client.get(url)
        assert (nothing.status_code, nothing.text) == (200, "")
        path = endpoint.results / task_id / "logs" / "stage.log"
        path.parent.mkdir(parents=True)
        path.write_text("one\ntwo ü\nthree\n")
        whole = await endpoint.client.get(url)
        assert (whole.text, whole.headers["content-type"]) == ("one\ntwo ü\nthree\n", "text/plain; charset=utf-8")
        for tail, text in ((0, ""), (1, "three\n"), (2, "two ü\nthree\n"), (3, whole.text), (99, whole.text)):
            assert (await endpoint.client.get(url, params={"tail": tail})).text == text
        lost = await endpoint.client.get(f"{TASKS}/nobody/logs")
        assert (lost.status_code, lost.json()) == (404, {"detail": "task not found"})
        assert (await endpoint.client.get(url, params={"tail": -1})).status_code == 422


@pytest.mark.parametrize("ending", [b"", b"\n"])
@pytest.mark.parametrize("width", [0, 10, 70_000])
def test_the_end_of_a_log_of_any_size(tmp_path, width, ending):
    lines = [b"%d %s" % (number, b"x" * width) for number in range(50)]
    path = tmp_path / "stage.log"
    path.write_bytes(b"\n".join(lines) + ending)
    for tail in (0, 1, 7, 49, 50, 51):
        start = task_log.start_of_tail(path, tail)
        expected = b"\n".join(lines[max(50 - tail, 0) :]) + (ending if tail else b"")
        assert path.read_bytes()[start:] == expected


def events(text: str) -> list[dict[str, str]]:
    """Return the events of a stream as fields."""
    return [
        dict(line.split(": ", 1) for line in block.split("\n"))
        for block in text.split("\n\n")
        if block and not block.startswith(":")
    ]


async def test_following_the_log_of_a_task_that_has_ended(tmp_path):
    async with served(tmp_path) as endpoint:
        task_id = await endpoint.one()
        path = endpoint.results / task_id / "logs" / "stage.log"
        path.parent.mkdir(parents=True)
        path.write_text("one\ntwo\nthree and no end")
        await endpoint.stores.tasks.transition(task_id, StatusMark(1, Phase.DONE))
        url = f"{TASKS}/{task_id}/logs"
        answer = await endpoint.client.get(url, headers={"accept": "text/event-stream"})
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert events(answer.text) == [
            {"id": "4", "data": "one"},
            {"id": "8", "data": "two"},
            {"id": "24", "data": "three and no end"},
            {"event": "end", "data": '{"status": "DONE"}'},
        ]
        later = await endpoint.client.get(url, params={"follow": True}, headers={"last-event-id": "4"})
        assert [e["data"] for e in events(later.text)][:1] == ["two"]
        tail = await endpoint.client.get(url, params={"follow": True, "tail": 1})
        assert [e["data"] for e in events(tail.text)][:1] == ["three and no end"]


async def test_following_a_log_that_grows(tmp_path):
    path = tmp_path / "stage.log"
    states = iter([("PENDING", False), ("DISPATCHED", False), ("DISPATCHED", False), ("DONE", True)])
    written = iter(["", "first\nsec", "ond\n", "last\n"])

    async def status() -> tuple[str, bool]:
        with path.open("a") as file:
            file.write(next(written))
        return next(states)

    following = task_log.follow(path, 0, status, poll_seconds=0.0, status_polls=1)
    found = b"".join([piece async for piece in following]).decode()
    assert [e["data"] for e in events(found)] == ["first", "second", "last", '{"status": "DONE"}']


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("a", b"data: a\n\n"),
        ("a\nb\r\nc\rd", b"data: a\ndata: b\ndata: c\ndata: d\n\n"),
        ({"a": "\u2028ü"}, b'data: {"a": "\\u2028\\u00fc"}\n\n'),
        ("", b"data: \n\n"),
    ],
)
def test_the_form_of_an_event(data, expected):
    assert sse.event(data) == expected
    assert sse.event(data, name="n", id_="7") == b"id: 7\nevent: n\n" + expected


async def test_a_stream_shows_signs_of_life_and_ends_when_told(tmp_path):
    closed = asyncio.Event()

    async def silent():
        try:
            yield b"data: first\n\n"
            await asyncio.sleep(3600)
        finally:
            closed.set()

    async with served(tmp_path) as endpoint:
        context = endpoint.app.state.endpoint
        body = sse.stream(context, silent(), keep_alive_seconds=0.001).body_iterator
        assert await anext(body) == b"data: first\n\n"
        assert await anext(body) == b": alive\n\n"
        context.stopping.set()
        assert [piece async for piece in body if piece != b": alive\n\n"] == []
        assert closed.is_set()


async def test_a_client_that_goes_closes_what_it_read_whatever_that_waits_for(tmp_path):
    closed = asyncio.Event()

    async def silent():
        try:
            yield b"data: first\n\n"
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)  # closing takes a moment, too
            closed.set()

    async def read(body):
        async for _ in body:
            reading.set()

    reading = asyncio.Event()
    async with served(tmp_path) as endpoint:
        body = sse.stream(endpoint.app.state.endpoint, silent()).body_iterator
        client = asyncio.create_task(read(body))
        await reading.wait()
        await asyncio.sleep(0)
        # As the framework does it: again and again until the task has ended.
        while not client.done():
            client.cancel()
            await asyncio.sleep(0)
        await body.aclose()
        await asyncio.wait_for(closed.wait(), 5)
        assert client.cancelled()


async def test_an_error_of_what_is_read_is_not_swallowed(tmp_path):
    async def broken():
        yield b"data: first\n\n"
        raise OSError("disk")

    async with served(tmp_path) as endpoint:
        # It ends the stream at once, not at the next keep-alive.
        stream = sse.stream(endpoint.app.state.endpoint, broken(), keep_alive_seconds=3600.0)
        body = stream.body_iterator
        assert await anext(body) == b"data: first\n\n"
        with pytest.raises(OSError, match="disk"):
            await anext(body)


async def test_the_feed_gives_what_was_missed_and_what_comes():
    publisher = MemoryPublisher()
    feed = MessageFeed(publisher)
    await feed.open()
    with feed.reader(None) as messages:
        for number in range(3):
            await publisher.publish("tasks.events", {"n": number, "headers": {"Authorization": "Bearer s3cret-token"}})
        first = [await anext(messages) for _ in range(3)]
    assert [heard.message["n"] for heard in first] == [0, 1, 2]
    assert first[0].message["headers"] == {"Authorization": "Bearer ***"}
    await publisher.publish("tasks", {"n": 3})
    await asyncio.sleep(0)
    with feed.reader(feed.id_of(first[1])) as messages:
        assert [(await anext(messages)).message["n"] for _ in range(2)] == [2, 3]
    for unknown in (None, "", "other-1", "x", f"{feed.id_of(first[0])}x"):
        with feed.reader(unknown) as messages:
            await publisher.publish("tasks", {"n": 4})
            assert (await anext(messages)).message["n"] == 4
    await feed.close()


async def test_a_slow_reader_is_told():
    publisher = MemoryPublisher()
    feed = MessageFeed(publisher)
    await feed.open()
    with feed.reader(None) as messages:
        for number in range(feeds._BEHIND + 5):
            await publisher.publish("tasks", {"n": number})
        for _ in range(2 * feeds._BEHIND):
            await asyncio.sleep(0)
        with pytest.raises(LostBehindError):
            await anext(messages)
    await feed.close()


async def test_a_feed_without_a_store_says_so_and_tries_again():
    class Flaky(MemoryPublisher):
        gone = True

        @asynccontextmanager
        async def listen(self, *channels):
            if self.gone:
                raise StoreError("Redis at lab:6379 does not serve: refused")
            async with super().listen(*channels) as messages:
                yield messages

    publisher = Flaky()
    feed = MessageFeed(publisher)
    with pytest.raises(StoreError, match="lab:6379"):
        await feed.open()
    publisher.gone = False
    await feed.open()
    with feed.reader(None) as messages:
        await publisher.publish("tasks", {"n": 1})
        assert (await anext(messages)).message == {"n": 1}
    await feed.close()


async def test_the_events_route(tmp_path):
    from mloc_prefect.server.routes.event_routes import _events

    async with served(tmp_path) as endpoint:
        context = endpoint.app.state.endpoint
        await context.feed.open()
        async with aclosing(_events(context, {"tasks.events"}, "t1", None)) as stream:
            assert await anext(stream) == b": listening\n\n"
            await endpoint.stores.publisher.publish("tasks", {"task_id": "t1"})
            await endpoint.stores.publisher.publish("tasks.events", {"task_id": "t2"})
            await endpoint.stores.publisher.publish("tasks.events", {"task_id": "t1", "type": "TASK_STARTED"})
            (event,) = events((await anext(stream)).decode())
            assert (event["event"], json.loads(event["data"])["type"]) == ("tasks.events", "TASK_STARTED")
            assert event["id"].endswith("-3")
        bad = await endpoint.client.get("/api/v1/events", params={"channel": "nope"})
        assert (bad.status_code, "'nope'" in bad.json()["detail"]) == (400, True)
        await context.feed.close()
