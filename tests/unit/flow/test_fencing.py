"""Which start of a run may still commit."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.states import AwaitingRetry, Cancelling, Completed, Crashed, Pending, Running

from mloc_prefect.flow.fencing import ApiFence, StaleRunError
from mloc_prefect.prefect_ext import retry


class Server:
    """Answers one run, once it has raised what it is to raise."""

    def __init__(self, state: State[Any], run_count: int, *errors: Exception) -> None:
        self.found = SimpleNamespace(state=state, run_count=run_count)
        self.errors = list(errors)

    async def read(self) -> Any:
        if self.errors:
            raise self.errors.pop(0)
        return self.found


def status(code: int) -> httpx.HTTPStatusError:
    return httpx.HTTPStatusError(str(code), request=httpx.Request("GET", "http://x"), response=httpx.Response(code))


@pytest.mark.parametrize("state", [Running(), Cancelling()])
async def test_the_current_start_may(state: State[Any]) -> None:
    await ApiFence(Server(state, 2).read, 2).check()


@pytest.mark.parametrize(
    ("state", "run_count", "words"),
    [
        (Running(), 3, "started again"),
        (Completed(), 2, "ended"),
        (Crashed(), 2, "ended"),
        (AwaitingRetry(), 2, "given up"),  # the time between the end of one start and the next
        (Pending(), 2, "given up"),  # another worker has claimed the next start
    ],
)
async def test_an_earlier_one_may_not(state: State[Any], run_count: int, words: str) -> None:
    with pytest.raises(StaleRunError, match=words):
        await ApiFence(Server(state, run_count).read, 2).check()


async def test_what_is_done_waits_for_a_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(retry, "_sleep", sleep)
    away = [httpx.ConnectError("no"), status(503), status(500), httpx.ReadTimeout("no"), *[httpx.ReadError("")] * 2]
    await ApiFence(Server(Running(), 1, *away).read, 1).check()
    assert pauses == [1, 2, 4, 8, 10, 10]


async def test_a_server_that_never_stops_to_answer_with_errors_is_no_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would refuse this request for ever."""
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(retry, "_sleep", sleep)
    monkeypatch.setattr(retry, "_clock", lambda: now)
    away = [*[httpx.ConnectError("no")] * 500, *[status(500)] * 500]
    with pytest.raises(httpx.HTTPStatusError):
        await ApiFence(Server(Running(), 1, *away).read, 1).check()
    assert 4975 + 1800 <= now < 4975 + 1850


async def test_a_refusal_is_an_answer() -> None:
    with pytest.raises(httpx.HTTPStatusError):
        await ApiFence(Server(Running(), 1, status(403)).read, 1).check()
    with pytest.raises(StaleRunError, match="deleted"):
        await ApiFence(Server(Running(), 1, ObjectNotFound(status(404))).read, 1).check()


async def test_a_wait_for_the_server_can_be_cancelled() -> None:
    waiting = asyncio.create_task(ApiFence(Server(Running(), 1, status(503)).read, 1).check())
    await asyncio.sleep(0.01)
    waiting.cancel()
    assert (await asyncio.gather(waiting, return_exceptions=True))[0].__class__ is asyncio.CancelledError
