"""One client of Prefect's API for all runs of an event loop.

The stock engine opens a client for each workflow run: an SSL context (tens of milliseconds of a core), a connection,
and a question for the token of the API each time.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import httpx
from prefect.context import AsyncClientContext

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from prefect.client.orchestration import PrefectClient

_LIMITS = httpx.Limits(max_connections=64, max_keepalive_connections=16, keepalive_expiry=25)
"""Of connections; the stock ones are for one run: 16 at most."""


class SharedClient:
    """That client; an async context manager, bound to one event loop.

    Attributes:
        client: The client, open inside the context.
    """

    client: PrefectClient

    async def __aenter__(self) -> Self:
        self._context = AsyncClientContext(httpx_settings={"limits": _LIMITS})
        self._context._httpx_settings = None  # a client that is asked for without settings is this one
        self.client = await self._context.client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.client.__aexit__(kind, error, tb)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Let runs that are started inside the block use it, and leave it open at their ends."""
        token = AsyncClientContext.__var__.set(self._context)
        try:
            yield
        finally:
            AsyncClientContext.__var__.reset(token)
