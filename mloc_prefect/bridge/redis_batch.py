"""Script calls that come while others are on their way go together: one write, one read, one sync of the log."""

from __future__ import annotations

import asyncio
from hashlib import sha1
from typing import Any, NamedTuple

from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

LARGEST = 64
"""Calls that go together at most."""

_digests: dict[str, str] = {}


class _Call(NamedTuple):
    text: str
    arguments: tuple[Any, ...]
    answer: asyncio.Future[Any]


class ScriptCalls:
    """Runs scripts on one client, each call on its own when it is alone.

    A call may be sent again after a lost connection, so scripts must bear that.

    Args:
        redis: A client of redis-py.
    """

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._waiting: list[_Call] = []
        self._busy = False
        self._sender: asyncio.Task[None] | None = None  # referred to, so that it is not collected

    async def __call__(self, text: str, arguments: tuple[Any, ...]) -> Any:
        """Run the script `text` with number of keys, keys and arguments; raises errors of redis-py."""
        if self._busy:
            answer = asyncio.get_running_loop().create_future()
            self._waiting.append(_Call(text, arguments, answer))
            return await answer
        self._busy = True
        try:
            return await self._alone(text, arguments)
        except RedisTimeoutError as error:
            self._refuse(error)
            raise
        finally:
            self._go_on()

    def _go_on(self) -> None:
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
                    self._refuse(error)
            for call, answer in zip(calls, answers, strict=True):
                await self._tell(call, answer)
        self._busy = False

    async def _tell(self, call: _Call, answer: Any) -> None:
        """Hand over what came back; the server gets the text of a script that it does not have."""
        if isinstance(answer, NoScriptError):
            try:
                answer = await self._alone(call.text, call.arguments)
            except (RedisError, OSError) as error:
                answer = error
        if call.answer.done():  # the caller has gone
            return
        if isinstance(answer, Exception):
            call.answer.set_exception(answer)
        else:
            call.answer.set_result(answer)

    def _refuse(self, error: Exception) -> None:
        """Let those who wait for a silent server wait no longer: nothing of theirs was sent."""
        calls, self._waiting = self._waiting, []
        for call in calls:
            if not call.answer.done():
                call.answer.set_exception(error)

    async def _alone(self, text: str, arguments: tuple[Any, ...]) -> Any:
        try:
            return await self._redis.evalsha(_digest(text), *arguments)
        except NoScriptError:
            return await self._redis.eval(text, *arguments)


def _digest(text: str) -> str:
    if text not in _digests:
        _digests[text] = sha1(text.encode(), usedforsecurity=False).hexdigest()
    return _digests[text]
