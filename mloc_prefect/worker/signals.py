"""Signals that stop a worker process: drain, stop, kill."""

from __future__ import annotations

import asyncio
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


@contextmanager
def stopping_on_signals(drain: Callable[[Callable[[], None]], None]) -> Iterator[None]:
    """Call `drain` on the first SIGTERM or SIGINT, cancel the current task on the second; a third one kills.

    `drain` gets a function that cancels the task, to be called when it is done.

    Prefect passes SIGTERM on as SIGINT, which a process that a shell started with `&` ignores: it would never end.
    """
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    if task is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore(handlers: Mapping[signal.Signals, Any]) -> None:
        for number, handler in handlers.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)

    def first() -> None:
        for number in before:
            loop.add_signal_handler(number, stop)
        drain(stop)

    def stop() -> None:
        restore(dict.fromkeys(before, signal.SIG_DFL))
        task.cancel()

    for number in before:
        loop.add_signal_handler(number, first)
    try:
        yield
    finally:
        restore(before)
