"""GPUs for runs of other people's flows on our pool: leased by their job variables, shown to their process only."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any
from uuid import UUID

from mloc_prefect.errors import DispatchError
from mloc_prefect.plan.model import ResourceRequest
from mloc_prefect.plan.resources import gpu_type, parse_memory
from mloc_prefect.worker.inventory import misfit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun, WorkPool

    from mloc_prefect.worker.leases import Lease
    from mloc_prefect.worker.place import Place

logger = logging.getLogger("prefect.mloc.worker")

_KEPT_SECONDS = 30.0


class UserRuns:
    """Leases GPUs for runs that are not ours.

    Args:
        place: The machine.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._deployments: dict[UUID, tuple[float, dict[str, Any]]] = {}

    async def lease(self, client: PrefectClient, pool: WorkPool | None, run: FlowRun) -> tuple[bool, Lease | None]:
        """Return whether `run` may start now, and its lease when it asked for GPUs.

        A run that asks for none starts at once. One that does not fit here stays for another worker.

        Raises:
            httpx.HTTPError: Its deployment cannot be read.
        """
        request = request_of(await self._variables(client, pool, run))
        if not request.gpu_count:
            return True, None
        if misfit(request, self._place.leases.inventory) is not None:
            return False, None
        try:
            lease = await self._place.leases.try_acquire(request, holder=run.name)
        except DispatchError as error:
            logger.warning("run %s is not for this worker: %s", run.name, error)
            return False, None
        return lease is not None, lease

    async def _variables(self, client: PrefectClient, pool: WorkPool | None, run: FlowRun) -> dict[str, Any]:
        """Return job variables as Prefect merges them: of the pool, the deployment, the run."""
        template = (pool.base_job_template if pool else None) or {}
        properties = template.get("variables", {}).get("properties", {})
        merged = {name: field["default"] for name, field in properties.items() if "default" in field}
        if run.deployment_id is not None:
            merged |= await self._of_deployment(client, run.deployment_id)
        return merged | (run.job_variables or {})

    async def _of_deployment(self, client: PrefectClient, deployment_id: UUID) -> dict[str, Any]:
        at, known = self._deployments.get(deployment_id, (0.0, {}))
        if not at or time.monotonic() - at > _KEPT_SECONDS:
            known = (await client.read_deployment(deployment_id)).job_variables or {}
            self._deployments[deployment_id] = (time.monotonic(), known)
        return known


def request_of(variables: Mapping[str, Any]) -> ResourceRequest:
    """Return what job variables ask for (`gpu_count`, `gpu_type`, `gpu_memory`)."""
    count = variables.get("gpu_count")
    return ResourceRequest(
        gpu_count=count if isinstance(count, int) and count > 0 else 0,
        gpu_type=gpu_type(variables.get("gpu_type")),
        gpu_memory_bytes=parse_memory(variables.get("gpu_memory")),
    )
