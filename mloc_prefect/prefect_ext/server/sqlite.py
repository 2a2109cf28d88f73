"""SQLite for Prefect's server: every write transaction begins IMMEDIATE, and one at a time.

Stock Prefect begins DEFERRED; a transaction that reads first and writes later fails at once when another one wrote in
between (the busy timeout does not apply), the server answers 503 and the client sleeps 2, 4, 8 ... seconds. Sixteen
writers at once are enough for that. Taking the write lock at the start, in turn, costs no more than SQLite's own
queue, and no request fails. Postgres needs none of this.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakKeyDictionary

from prefect.server.database import dependencies
from prefect.server.database.configurations import AioSqliteConfiguration

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction


class _Open:
    """A transaction of this context; `active` becomes false at its end, so that tasks it left behind queue again."""

    active = True


_current: ContextVar[_Open | None] = ContextVar("mloc_sqlite_transaction", default=None)


class SerialSqlite(AioSqliteConfiguration):
    """Prefect's SQLite configuration with write transactions in turn."""

    _turns: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]] = WeakKeyDictionary()

    @asynccontextmanager
    async def begin_transaction(
        self, session: AsyncSession, with_for_update: bool = False
    ) -> AsyncIterator[AsyncSessionTransaction]:
        """Enter a transaction of `session`; one opened inside another keeps the outer one's turn."""
        outer = _current.get()
        if outer is not None and outer.active:
            async with super().begin_transaction(session, with_for_update) as transaction:
                yield transaction
            return
        turn = self._turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        async with turn:
            this = _Open()
            token = _current.set(this)
            try:
                async with super().begin_transaction(session, with_for_update=True) as transaction:
                    yield transaction
            finally:
                this.active = False
                _current.reset(token)


def install(connection_url: str) -> SerialSqlite:
    """Make every database interface of this process use `SerialSqlite` (Prefect's dependency hook)."""
    config = SerialSqlite(connection_url=connection_url)
    dependencies.set_database_config(config)
    return config
