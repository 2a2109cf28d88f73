"""The bridge as a service: dispatcher, events and reconciler, as long as this one is the active bridge."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import httpx
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from mloc_prefect.bridge.active import ActiveLease
from mloc_prefect.bridge.census import take_census
from mloc_prefect.bridge.dispatch_service import DispatchService
from mloc_prefect.bridge.events import EventSource, SocketSource, StreamSource
from mloc_prefect.bridge.keeper import Keeper
from mloc_prefect.bridge.rebuild import Rebuilder
from mloc_prefect.bridge.reconcile import Reconciler
from mloc_prefect.bridge.runs import PrefectRuns
from mloc_prefect.bridge.service import Follower
from mloc_prefect.bridge.stores import open_stores
from mloc_prefect.errors import DispatchError, StoreError, reason
from mloc_prefect.worker.directory import VariableDirectory
from mloc_prefect.worker.reaper import reap_for_ever
from mloc_prefect.worker.view import WorkersView

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prefect.client.orchestration import PrefectClient

    from mloc_prefect.bridge.active import Term
    from mloc_prefect.bridge.stores import Stores
    from mloc_prefect.settings import MlocSettings

_log = logging.getLogger(__name__)

_AGAIN_SECONDS = 2.0


async def run_bridge(settings: MlocSettings, *, on_ready: Callable[[], None] = lambda: None) -> None:
    """Run until cancelled. Redis and Prefect may be away, also at the start: the work waits for them.

    Args:
        settings: Redis, pool, results root.
        on_ready: Called once the bridge competes for being the active one.

    Raises:
        DispatchError: There is no Redis, or no Prefect API, in the settings.
        MissingExtraError: The Redis client is not installed.
    """
    if settings.redis_url is None:
        raise DispatchError("the bridge needs a Redis", hint="set REDIS_URL, or use `mloc up`, which brings its own")
    if not PREFECT_API_URL.value():
        raise DispatchError("the bridge needs a Prefect server", hint="set PREFECT_API_URL, or use `mloc up`")
    async with AsyncExitStack() as stack:
        stores = open_stores(settings.redis_url)
        stack.push_async_callback(stores.close)
        # Our own loops wait and try again; the client's patience would only hide from them that the server is away.
        stack.enter_context(temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}))
        client = await stack.enter_async_context(get_client())
        source = await _source(settings, stack)

        async def work(term: Term) -> None:
            await _active(term, stores, client, source, settings)

        on_ready()
        await ActiveLease(stores.leases).run(work)


async def _source(settings: MlocSettings, stack: AsyncExitStack) -> EventSource:
    if settings.events_redis_url is None:
        _log.info("events come by Prefect's websocket; with MLOC_EVENTS_REDIS_URL none would be missed")
        return SocketSource()
    source = StreamSource(settings.events_redis_url)
    stack.push_async_callback(source.close)
    return source


async def _active(
    term: Term, stores: Stores, client: PrefectClient, source: EventSource, settings: MlocSettings
) -> None:
    """Do all that the active bridge does, until cancelled or fenced off."""
    runs = PrefectRuns(client)
    rebuilder = Rebuilder(stores.tasks, settings)

    def keeper() -> Keeper:
        return Keeper(stores, runs, rebuilder, lambda: term.fence)

    def reconciler(own: Keeper) -> Reconciler:
        return Reconciler(stores.tasks, own, runs)

    if term.fresh:
        await _rebuild(reconciler(keeper()), quiet=True)
    main = keeper()
    await _patiently(main.load)

    async def reconcile() -> None:
        if not term.fresh:
            await _rebuild(reconciler(keeper()), quiet=False)
        await reconciler(main).run(settings.reconcile_seconds)

    view = WorkersView(VariableDirectory(client), settings.heartbeat_ttl)
    services = (
        Follower(source, main, runs).run(),
        reconcile(),
        DispatchService(stores, client, runs, settings).run(),
        take_census(stores),
        reap_for_ever(settings, client, view, "bridge"),  # a lost worker may have been the last one
    )
    tasks = [asyncio.create_task(service) for service in services]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _rebuild(reconciler: Reconciler, *, quiet: bool) -> None:
    async def rebuild() -> None:
        await reconciler.rebuild(quiet=quiet)

    await _patiently(rebuild)


async def _patiently(do: Callable[[], Awaitable[None]]) -> None:
    """Do it again until nothing is away."""
    while True:
        try:
            await do()
        except (StoreError, httpx.HTTPError) as error:
            _log.warning("the bridge waits: %s", reason(error))
            await asyncio.sleep(_AGAIN_SECONDS)
        else:
            return
