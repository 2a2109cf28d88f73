"""Watches that go on after an error that they did not foresee."""

from __future__ import annotations

import asyncio

import pytest

from mloc_prefect.process.kept_watch import kept_running


async def test_a_watch_starts_again_after_an_error_and_ends_when_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    errors: list[Exception] = [ValueError("Expecting value: line 1 column 1"), KeyError("value")]
    pauses: list[float] = []
    working = asyncio.Event()

    async def watch() -> None:
        if errors:
            raise errors.pop(0)
        working.set()
        await asyncio.Event().wait()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    task = asyncio.create_task(kept_running(watch, sleep=sleep))
    await asyncio.wait_for(working.wait(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pauses == sorted(pauses)
    assert len(pauses) == 2
    assert "Expecting value" in caplog.text


@pytest.mark.parametrize(("seconds", "wanted"), [(5.0, [1.0, 2.0, 4.0]), (31.0, [1.0, 1.0, 1.0])])
async def test_the_first_wait_comes_again_after_a_watch_that_worked_for_long(
    seconds: float, wanted: list[float]
) -> None:
    now, pauses = 0.0, []

    async def watch() -> None:
        nonlocal now
        now += seconds
        raise ConnectionError

    async def sleep(pause: float) -> None:
        pauses.append(pause)
        if len(pauses) == 3:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await kept_running(watch, sleep=sleep, clock=lambda: now)
    assert pauses == wanted
