"""Sends concurrent script calls together: one write, one read, one sync of the append-only file."""

from __future__ import annotations

import asyncio
from hashlib import sha1
from typing import Any, NamedTuple

from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

LARGEST = 64
"""Maximum number of calls in one batch."""

_digests: dict[str, str] = {}


class _Call(NamedTuple):
    text: str
    arguments: tuple[Any, ...]
    answer: asyncio.Future[Any]


class ScriptCalls:
    """Runs scripts on one client; calls that arrive while another one is in flight go together.

    A call may be sent again after a lost connection, so scripts must be repeatable.

    Args:
        redis: A client of redis-py.
    """

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._waiting: list[_Call] = []
        self._busy = False
        self._sender: asyncio.Task[None] | None = None  # a reference, so that it is not garbage-collected

    async def __call__(self, text: str, arguments: tuple[Any, ...]) -> Any:
        """Run the script `text` with number of keys, keys and arguments; raises errors of redis-py."""
        if self._busy:
            answer = asyncio.get_running_loop().create_future()
            self._waiting.append(_Call(text, arguments, answer))
            return await answer
        self._busy = True
        try:
            return await self._run_one(text, arguments)
        except RedisTimeoutError as error:
            self._fail_waiting(error)
            raise
        finally:
            self._send_waiting()

    def _send_waiting(self) -> None:
        self._busy = bool(self._waiting)
        if self._busy:
            self._sender = asyncio.create_task(self._send())

    async def _send(self) -> None:
        while self._waiting:
            calls, self._waiting = self._waiting[:LARGEST], self._waiting[LARGEST:]
            try:
                async with self._redis.pipeline(transaction=False) as pipe:
                    for call in calls:
                        pipe.evalsha(_digest(call.text), *call.arguments)
                    answers = await pipe.execute(raise_on_error=False)
            except (RedisError, OSError) as error:
                answers = [error] * len(calls)
                if isinstance(error, RedisTimeoutError):
                    self._fail_waiting(error)
            for call, answer in zip(calls, answers, strict=True):
                await self._set_answer(call, answer)
        self._busy = False

    async def _set_answer(self, call: _Call, answer: Any) -> None:
        """Set the answer of a call; send the text of a script that the server does not have."""
        if isinstance(answer, NoScriptError):
            try:
                answer = await self._run_one(call.text, call.arguments)
            except (RedisError, OSError) as error:
                answer = error
        if call.answer.done():  # the caller was cancelled
            return
        if isinstance(answer, Exception):
            call.answer.set_exception(answer)
        else:
            call.answer.set_result(answer)

    def _fail_waiting(self, error: Exception) -> None:
        """Fail the waiting calls after a timeout: they were not sent."""
        calls, self._waiting = self._waiting, []
        for call in calls:
            if not call.answer.done():
                call.answer.set_exception(error)

    async def _run_one(self, text: str, arguments: tuple[Any, ...]) -> Any:
        try:
            return await self._redis.evalsha(_digest(text), *arguments)
        except NoScriptError:
            return await self._redis.eval(text, *arguments)


def _digest(text: str) -> str:
    if text not in _digests:
        _digests[text] = sha1(text.encode(), usedforsecurity=False).hexdigest()
    return _digests[text]
