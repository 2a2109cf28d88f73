"""Outages of the Prefect server: what a stage needs of it is asked for until it answers.

Its client tries again for about a minute. An update of the server, or of its database, may take longer, and must not
make failures of stages whose work is done, or need not even stop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, TypeVar

import httpx

from mloc_prefect.errors import reason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")
_log = logging.getLogger(__name__)

_FIRST_SECONDS, _MOST_SECONDS = 1.0, 10.0
_TROUBLE_SECONDS = 1800.0  # a server that answers with errors for so long would do so for ever
_TEMPORARY = frozenset({httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS})
_sleep, _clock = asyncio.sleep, time.monotonic


async def until_answered(call: Callable[[], Awaitable[T]], what: str) -> T:
    """Return what `call` does; call it again for as long as the server is away. Cancelling this ends it.

    Args:
        call: Asks the server; may be called more than once.
        what: What waits for the answer, for the log.

    Raises:
        httpx.HTTPStatusError: The server refuses it, or has answered with its own errors for half an hour.
    """
    pause, since = _FIRST_SECONDS, _clock()
    while True:
        try:
            return await call()
        except httpx.HTTPError as error:
            if not is_outage(error):
                raise
            if not isinstance(error, httpx.HTTPStatusError):
                since = _clock()
            elif _clock() - since > _TROUBLE_SECONDS:
                raise
            _log.warning("%s waits for the Prefect server, which does not answer: %s", what, reason(error))
        await _sleep(pause)
        pause = min(2 * pause, _MOST_SECONDS)


def is_outage(error: BaseException) -> bool:
    """Return whether the same request may be answered later: there was no answer, or one of a server in trouble."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.is_server_error or error.response.status_code in _TEMPORARY
    return isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)
