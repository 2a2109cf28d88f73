"""The bridge as a service: runs everything that the active bridge does, for as long as it holds the lease."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import httpx
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from mloc_prefect.bridge.event_consumer import EventConsumer
from mloc_prefect.bridge.event_sources import EventSource, SocketSource, StreamSource
from mloc_prefect.bridge.journal_consumer import JournalConsumer
from mloc_prefect.bridge.leader import LeaderLease
from mloc_prefect.bridge.prefect_runs import PrefectRuns
from mloc_prefect.bridge.projector import Projector
from mloc_prefect.bridge.rebuild import Rebuilder
from mloc_prefect.bridge.reconcile import Reconciler
from mloc_prefect.bridge.worker_metrics import count_worker_events
from mloc_prefect.cluster.cluster_view import ClusterView
from mloc_prefect.cluster.membership import VariableMembership
from mloc_prefect.cluster.reaper import Reaper
from mloc_prefect.cluster.results_proof import BRIDGE, publish
from mloc_prefect.cluster.run_recovery import RunRecovery
from mloc_prefect.cluster.run_sweep import RunSweep
from mloc_prefect.errors import DispatchError, StoreError, reason
from mloc_prefect.store.backends import open_stores

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from prefect.client.orchestration import PrefectClient

    from mloc_prefect.bridge.leader import LeaderTerm
    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.store.backends import Stores

_log = logging.getLogger(__name__)

_AGAIN_SECONDS = 2.0


async def run_bridge(settings: MlocSettings, *, on_ready: Callable[[], None] = lambda: None) -> None:
    """Run until cancelled; while Redis or Prefect cannot be reached, also at the start, the bridge waits for them.

    Args:
        settings: Redis, pool, results root.
        on_ready: Called once the bridge competes for the lease.

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
        # Our loops retry; retries inside the client would only hide an outage from them.
        stack.enter_context(temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}))
        client = await stack.enter_async_context(get_client())
        source = await _event_source(settings, stack)

        async def work(term: LeaderTerm) -> None:
            await _run_services(term, stores, client, source, settings)

        on_ready()
        await LeaderLease(stores.leases).hold_and_work(work)


async def _event_source(settings: MlocSettings, stack: AsyncExitStack) -> EventSource:
    if settings.events_redis_url is None:
        _log.info("events come from Prefect's websocket, which can miss some; set MLOC_EVENTS_REDIS_URL to miss none")
        return SocketSource()
    source = StreamSource(settings.events_redis_url)
    stack.push_async_callback(source.close)
    return source


async def _run_services(
    term: LeaderTerm, stores: Stores, client: PrefectClient, source: EventSource, settings: MlocSettings
) -> None:
    """Do everything that the active bridge does, until cancelled or fenced off."""
    runs = PrefectRuns(client)
    rebuilder = Rebuilder(stores.tasks, settings)

    def new_projector() -> Projector:
        return Projector(stores, runs, rebuilder, lambda: term.fence)

    def reconciler(own: Projector) -> Reconciler:
        return Reconciler(stores.tasks, own, runs)

    if term.fresh:
        await _rebuild(reconciler(new_projector()), quiet=True)
    main = new_projector()
    await _until_reachable(main.load)

    async def vouch() -> None:
        try:
            await publish(client, settings.results_root, BRIDGE)
        except OSError as error:
            _log.error("the results root %s cannot be written: %s", settings.results_root, error.strerror)

    await _until_reachable(vouch)

    async def reconcile() -> None:
        if not term.fresh:
            await _rebuild(reconciler(new_projector()), quiet=False)
        await reconciler(main).compare_repeatedly(settings.reconcile_seconds)

    view = ClusterView(VariableMembership(client), settings.heartbeat_ttl)
    reaper = Reaper.of(settings, client, view, "bridge")
    recovery = RunRecovery(client, settings.max_retries)
    services = (
        EventConsumer(source, main, runs).consume_events(),
        reconcile(),
        JournalConsumer(stores, client, runs, settings).consume_journal(),
        count_worker_events(stores),
        reaper.watch(),  # a lost worker may have been the last one
        RunSweep.of(settings, recovery, reaper, view, pool=settings.work_pool, name=None).watch(),
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

    await _until_reachable(rebuild)


async def _until_reachable(do: Callable[[], Awaitable[None]]) -> None:
    """Repeat `do` until it succeeds, while Redis or Prefect cannot be reached."""
    while True:
        try:
            await do()
        except (StoreError, httpx.HTTPError) as error:
            _log.warning("the bridge is waiting, will retry: %s", reason(error))
            await asyncio.sleep(_AGAIN_SECONDS)
        else:
            return
