"""Signals cancel the coroutine and let it clean up."""

from __future__ import annotations

import asyncio
import signal
import threading

import pytest

from mloc_prefect.cli.interrupt import run_interruptible


def test_the_value_comes_back_and_the_handlers_are_restored():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    async def main():
        return 7

    assert run_interruptible(main, on_interrupt=lambda: None) == 7
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_an_error_comes_back_as_it_is():
    async def main():
        raise LookupError("x")

    with pytest.raises(LookupError, match="x"):
        run_interruptible(main, on_interrupt=lambda: None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_and_the_clean_up_may_await(number):
    seen = []

    async def main():
        try:
            asyncio.get_running_loop().call_later(0.01, signal.raise_signal, number)
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            seen.append("cleaned")

    with pytest.raises(KeyboardInterrupt):
        run_interruptible(main, on_interrupt=lambda: seen.append("told"))
    assert seen == ["told", "cleaned"]


def test_a_coroutine_may_answer_the_cancellation_with_a_value():
    async def main():
        try:
            asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "cancelled"

    assert run_interruptible(main, on_interrupt=lambda: None) == "cancelled"


def test_a_clean_up_that_hangs_does_not_hold_the_user():
    release = threading.Event()

    class LeftError(Exception):
        pass

    def leave(code):
        release.set()
        raise LeftError(code)

    async def main():
        try:
            asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            release.wait(60)  # as a server that does not answer

    with pytest.raises(LeftError, match="130"):
        run_interruptible(main, on_interrupt=lambda: None, grace=0.01, leave=leave)
