"""`mloc worker start`: one worker of a pool, until it is stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

from mloc_prefect.errors import DispatchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.settings import MlocSettings


async def run_worker(
    settings: MlocSettings,
    *,
    pool: str | None = None,
    limit: int | None = None,
    queues: Sequence[str] = (),
    coordinator_only: bool = False,
) -> None:
    """Serve a pool until SIGTERM or SIGINT; creates the pool and our deployments on it where missing.

    The Prefect server is the one that Prefect's own settings name (`PREFECT_API_URL`). The first signal lets runs
    end, for `drain_seconds` at most; a second one ends them at once.

    Args:
        settings: Settings in force.
        pool: Name of the pool; default: that of the settings.
        limit: Most runs at once; workflow runs do not count.
        queues: Names of the queues to serve; default: all.
        coordinator_only: Run workflow runs only, offer no hardware and be in no list of workers.

    Raises:
        MlocError: A setting is wrong, or no Prefect server is named; the message says it.
    """
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    from mloc_prefect.cluster.deployments import RUN_WORKFLOW, ensure_deployment
    from mloc_prefect.prefect_ext.requests import server_refusal
    from mloc_prefect.prefect_ext.run_facts import COORDINATOR_QUEUE
    from mloc_prefect.worker.worker import MlocGpuWorker

    if not PREFECT_API_URL.value():
        raise DispatchError("no Prefect server is named", hint="set PREFECT_API_URL, or use `mloc up`")
    chosen = pool or settings.work_pool
    async with get_client() as client:
        try:
            await ensure_deployment(client, RUN_WORKFLOW, chosen, move=False)
        except httpx.HTTPError as error:
            raise server_refusal(str(PREFECT_API_URL.value()), error) from None
    worker = MlocGpuWorker(
        work_pool_name=chosen,
        work_queues=[COORDINATOR_QUEUE] if coordinator_only else list(queues) or None,
        limit=limit,
        coordinator_only=coordinator_only,
        settings=settings,
    )
    await worker.serve()
