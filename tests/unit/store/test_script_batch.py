"""Script calls that go together, against a client that answers when it is told to."""

from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from mloc_prefect.store.redis.script_batch import LARGEST, ScriptCalls


class FakeRedis:
    """Answers each call with its arguments, once `open` is set; knows no script until its text was sent."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.batches: list[int] = []
        self.texts: list[str] = []
        self.error: Exception | None = None
        self.unknown = False
        self.queue: list[tuple] = []

    async def evalsha(self, digest: str, *arguments):
        return (await self._answer([(digest, *arguments)]))[0]

    async def eval(self, text: str, *arguments):
        self.texts.append(text)
        return arguments

    def pipeline(self, *, transaction: bool):
        assert not transaction
        return FakePipeline(self)

    async def _answer(self, calls):
        self.batches.append(len(calls))
        await self.open.wait()
        if self.error is not None:
            raise self.error
        if self.unknown:
            if len(calls) == 1:
                raise NoScriptError("NOSCRIPT")
            return [NoScriptError("NOSCRIPT")] * len(calls)
        return [arguments for _, *arguments in calls]


class FakePipeline:
    def __init__(self, redis: FakeRedis) -> None:
        self.redis, self.calls = redis, []

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        return None

    def evalsha(self, *call):
        self.calls.append(call)

    async def execute(self, *, raise_on_error: bool):
        assert not raise_on_error
        answers = await self.redis._answer(self.calls)
        return [RedisError("bad") if answer == [0, "bad"] else answer for answer in answers]


async def started(call: ScriptCalls, *names: str) -> list[asyncio.Task]:
    """Start calls, each of them on its way or in the queue when this returns."""
    tasks = []
    for name in names:
        tasks.append(asyncio.create_task(call("text", (0, name))))
        await asyncio.sleep(0)
    return tasks


async def test_calls_that_wait_go_together():
    redis = FakeRedis()
    call = ScriptCalls(redis)
    tasks = await started(call, *(str(number) for number in range(LARGEST + 3)))
    redis.open.set()
    assert [list(answer)[1] for answer in await asyncio.gather(*tasks)] == [str(n) for n in range(LARGEST + 3)]
    assert redis.batches == [1, LARGEST, 2]
    assert list(await call("text", (0, "alone"))) == [0, "alone"]
    assert redis.batches == [1, LARGEST, 2, 1]


async def test_an_unknown_script_is_sent():
    redis = FakeRedis()
    call = ScriptCalls(redis)
    tasks = await started(call, "a", "b", "c")
    redis.unknown = True
    redis.open.set()
    assert await asyncio.gather(*tasks) == [(0, "a"), (0, "b"), (0, "c")]
    assert redis.texts == ["text"] * 3


async def test_an_error_is_that_of_its_call():
    redis = FakeRedis()
    call = ScriptCalls(redis)
    tasks = await started(call, "a", "bad", "c")
    redis.open.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers[1], RedisError)
    assert [list(answers[0]), list(answers[2])] == [[0, "a"], [0, "c"]]


async def test_who_waits_for_a_silent_server_waits_no_longer_than_the_first():
    redis = FakeRedis()
    call = ScriptCalls(redis)
    tasks = await started(call, "a", "b", "c")
    redis.error = RedisTimeoutError("silent")
    redis.open.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in answers] == [RedisTimeoutError] * 3
    assert redis.batches == [1]
    redis.error = None
    assert list(await call("text", (0, "d"))) == [0, "d"]


@pytest.mark.parametrize("victim", [0, 1])
async def test_a_caller_that_goes_takes_nobody_along(victim):
    redis = FakeRedis()
    call = ScriptCalls(redis)
    tasks = await started(call, "a", "b", "c")
    tasks[victim].cancel()
    redis.open.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [n == victim for n in range(3)]
    assert list(await call("text", (0, "d"))) == [0, "d"]
