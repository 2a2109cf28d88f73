"""The retries of Prefect's client, with waits that stay short.

The stock client doubles its waits: 2, 4, 8, 16, 32 s. After an outage, or a minute in which a busy server answered 503,
a single request may then sleep for half a minute though the server is well again, and whatever follows it, such as the
start of a run or the next poll, waits as well. Here no wait is longer than a few seconds, except one that the server
asks for, a minute at most.

As in the stock client there are `PREFECT_CLIENT_MAX_RETRIES` tries more, five unless set: a request fails after about
15 s. Answers that announce maintenance of the server (`Prefect-Maintenance`) are not counted.

A request that has a caller with more patience (`waiting_requests`) is sent once: that caller repeats it.
"""

from __future__ import annotations

import asyncio
import random
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import httpx
from prefect.client import base
from prefect.client.base import PrefectHttpxAsyncClient
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES

from mloc_prefect.prefect_ext.retry import asked_wait, in_maintenance
from mloc_prefect.process.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

sent_once: ContextVar[bool] = ContextVar("mloc_request_sent_once", default=False)
"""Whether requests of this context are not repeated here."""

_WAITS = Backoff(first=1.0, most=4.0)
_JITTER = 0.3
_CHANGES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_sleep = asyncio.sleep
_note_maintenance: Any = getattr(base, "_record_if_maintenance_backoff", lambda *_: None)  # not in the oldest Prefect

STOCK = PrefectHttpxAsyncClient._send_with_retry
"""The method that is replaced; a test compares what both take."""


def keep_retries_short() -> None:
    """Let each client of this process wait as this module says, also those that stock code opens."""
    vars_of_client: Any = PrefectHttpxAsyncClient
    vars_of_client._send_with_retry = _send_with_retry


async def _send_with_retry(
    self: PrefectHttpxAsyncClient,
    request: httpx.Request,
    send: Callable[..., Awaitable[httpx.Response]],
    send_args: tuple[Any, ...],
    send_kwargs: dict[str, Any],
    retry_codes: Collection[int] = (),
    retry_exceptions: tuple[type[Exception], ...] = (),
) -> httpx.Response:
    """Send a request, and again for some failures; the stock method of this name does the same with longer waits."""
    once = sent_once.get()
    tries = 0 if once else PREFECT_CLIENT_MAX_RETRIES.value()
    protected = self.enable_csrf_support and request.method in _CHANGES
    if protected:
        await self._add_csrf_headers(request=request)
    for wait in _WAITS:
        seconds = wait * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311  # no secret
        try:
            response = await send(request, *send_args, **send_kwargs)
            if protected and _has_old_token(response):
                self.csrf_token = None
                await self._add_csrf_headers(request=request)
                response = await send(request, *send_args, **send_kwargs)
        except retry_exceptions:
            if tries <= 0:
                raise
            tries -= 1
        else:
            counts = once or not in_maintenance(response)
            if response.status_code not in retry_codes or (counts and tries <= 0):
                return response
            tries -= counts
            seconds = max(seconds, asked_wait(response) * random.uniform(1, 1 + _JITTER))  # noqa: S311
            _note_maintenance(response, None, seconds)  # for the health check of the stock worker
        await _sleep(seconds)
    raise AssertionError("the waits have no end")


def _has_old_token(response: httpx.Response) -> bool:
    return response.status_code == httpx.codes.FORBIDDEN and "Invalid CSRF token" in response.text
