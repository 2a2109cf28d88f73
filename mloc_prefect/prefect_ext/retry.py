"""Outages of the Prefect server: a request of a stage is repeated until the server answers.

Prefect's client retries for about a minute. An update of the server, or of its database, may take longer, and must not
fail stages whose work is done.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, TypeVar

import httpx

from mloc_prefect.errors import reason
from mloc_prefect.process.backoff import Backoff, retry_after

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")
_log = logging.getLogger(__name__)

_WAITS = Backoff(first=1.0, most=10.0)
_TROUBLE_SECONDS = 1800.0  # a server that answers with errors for so long will not recover
_LONGEST_ASKED = 60.0  # seconds; a server, or a proxy before it, may name a day
_TEMPORARY = frozenset({httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS})
_STEP_SECONDS = 1.0
_SAID_EVERY_SECONDS = 60.0
_sleep, _clock = asyncio.sleep, time.monotonic


async def until_answered(call: Callable[[], Awaitable[T]], what: str, *, wanted: Callable[[], bool] | None = None) -> T:
    """Return the result of `call`; repeat it while the server is away. Cancelling this ends it.

    Args:
        call: Sends the request; may be called more than once.
        what: What waits for the answer, for the log.
        wanted: Whether the answer is still worth waiting for; asked after each failure, and every second.

    Raises:
        httpx.HTTPStatusError: The server refuses it, or has answered with its own errors for half an hour; those that
            announce maintenance do not count.
        httpx.HTTPError: There was no answer, and it is not wanted any more.
    """
    waits, since, said = iter(_WAITS), _clock(), -_SAID_EVERY_SECONDS
    while True:
        try:
            return await call()
        except httpx.HTTPError as error:
            if not is_outage(error) or (wanted is not None and not wanted()):
                raise
            if not isinstance(error, httpx.HTTPStatusError) or in_maintenance(error.response):
                since = _clock()
            elif _clock() - since > _TROUBLE_SECONDS:
                raise
            if _clock() - said >= _SAID_EVERY_SECONDS:
                said = _clock()
                _log.warning("%s waits for the Prefect server, which does not answer: %s", what, reason(error))
            asked = asked_wait(error.response) if isinstance(error, httpx.HTTPStatusError) else 0.0
        await _pause(max(next(waits), asked), wanted)


async def _pause(seconds: float, wanted: Callable[[], bool] | None) -> None:
    while wanted is not None and wanted() and seconds > _STEP_SECONDS:
        await _sleep(_STEP_SECONDS)
        seconds -= _STEP_SECONDS
    await _sleep(min(seconds, _STEP_SECONDS) if wanted is not None else seconds)


def is_outage(error: BaseException) -> bool:
    """Return whether the same request may succeed later: there was no answer, or an error of the server."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.is_server_error or error.response.status_code in _TEMPORARY
    return isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)


def asked_wait(response: httpx.Response) -> float:
    """Return the seconds after which the server wants to be asked again, a minute at most; 0 when it does not say."""
    return min(_LONGEST_ASKED, retry_after(response.headers.get("Retry-After")))


def in_maintenance(response: httpx.Response) -> bool:
    """Return whether the server says that it is being maintained, so that a failure says nothing about the request."""
    return bool(response.headers.get("Prefect-Maintenance") == "true")
