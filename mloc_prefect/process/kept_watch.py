"""Watches of a long-running process: loops that no unforeseen error may end. Standard library only.

Nobody awaits such a loop: it would end with a line in the log, and what it watches for would never be found again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from mloc_prefect.process.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

_WAITS = Backoff(first=1.0, most=30.0)


async def kept_running(
    watch: Callable[[], Awaitable[None]],
    *,
    waits: Backoff = _WAITS,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run a watch until cancelled; after an error it starts again.

    Args:
        watch: Starts the watch; it does not end by itself.
        waits: Waits before it starts again; the first one again when it ran for longer than the longest.
        sleep: Waits for so many seconds.
        clock: Returns seconds.
    """
    failures = 0
    while True:
        started = clock()
        try:
            await watch()
        except Exception:  # boundary, see the module
            logger.exception("a watch failed, starting it again")
        failures = 0 if clock() - started > waits.most else failures
        await sleep(waits.after(failures))
        failures += 1
