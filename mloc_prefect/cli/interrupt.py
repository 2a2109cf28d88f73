"""An event loop that Ctrl-C and SIGTERM stop in order.

The loop runs in a separate thread: in the main thread, Prefect's engine would install a SIGTERM handler that raises
anywhere in the loop instead of cancelling the run.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import FrameType

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_WAKE = 0.25  # seconds; a signal that another thread received is handled when the main thread wakes
_PATIENCE = 3  # number of signals after which the process exits at once


def run_interruptible(
    main: Callable[[], Coroutine[Any, Any, T]],
    *,
    on_interrupt: Callable[[], None],
    grace: float = 20.0,
    leave: Callable[[int], object] = os._exit,
) -> T:
    """Run `main()` to its end; the first SIGINT or SIGTERM cancels it, the third exits the process.

    Args:
        main: Returns the coroutine. A signal reaches it as `asyncio.CancelledError`; it may await during cleanup.
        on_interrupt: Called once, in the main thread, when the first signal arrives.
        grace: Seconds that `main` may clean up after a signal; a server that hangs must not hold the user longer.
        leave: Exits the process with a code; replaced in tests.

    Raises:
        KeyboardInterrupt: A signal arrived and `main` did not return a value.
    """
    runner = _LoopThread(main)
    received = 0
    ended_by = math.inf

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal received, ended_by
        received += 1
        if received == 1:
            ended_by = time.monotonic() + grace
            on_interrupt()
            runner.cancel()
        elif received >= _PATIENCE:
            leave(130)

    before = [(number, signal.signal(number, handle)) for number in _SIGNALS]
    try:
        runner.start()
        while runner.is_alive():
            runner.join(min(_WAKE, grace))
            if runner.is_alive() and time.monotonic() > ended_by:
                leave(130)
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    return runner.result()


class _LoopThread(threading.Thread, Generic[T]):
    def __init__(self, main: Callable[[], Coroutine[Any, Any, T]]) -> None:
        super().__init__(name="mloc-loop", daemon=True)
        self._main = main
        self._lock = threading.Lock()
        self._cancelled = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[T] | None = None
        self._value: T | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            with asyncio.Runner() as runner:
                self._value = runner.run(self._watched())
        except BaseException as error:  # thread boundary: raised again in the main thread
            self._error = error

    async def _watched(self) -> T:
        task = asyncio.ensure_future(self._main())
        with self._lock:
            self._loop, self._task = asyncio.get_running_loop(), task
            if self._cancelled:
                task.cancel()
        return await task

    def cancel(self) -> None:
        """Cancel the coroutine, even if it has not started yet."""
        with self._lock:
            self._cancelled = True
            if self._loop is not None and self._task is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._task.cancel)

    def result(self) -> T:
        if isinstance(self._error, asyncio.CancelledError):
            raise KeyboardInterrupt from None
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]  # T may itself be None
