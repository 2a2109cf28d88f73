"""GPUs for runs of users' own flows: leased by their job variables, visible to their process only."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from mloc_prefect.errors import DispatchError
from mloc_prefect.hardware.inventory import misfit
from mloc_prefect.plan.resources import ResourceRequest, gpu_type, parse_memory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun, WorkPool

    from mloc_prefect.leases import Lease
    from mloc_prefect.worker.machine import Machine
    from mloc_prefect.worker.own_runs import OwnRuns

logger = logging.getLogger("prefect.mloc.worker")


class UserRuns:
    """Leases GPUs for runs of users' own flows.

    Args:
        machine: The machine.
        runs: Says which of them may start, and reads their job variables.
    """

    def __init__(self, machine: Machine, runs: OwnRuns) -> None:
        self._machine = machine
        self._runs = runs

    async def lease(self, client: PrefectClient, pool: WorkPool | None, run: FlowRun) -> tuple[bool, Lease | None]:
        """Return whether `run` may start now, and its lease when it asked for GPUs.

        A run that asks for none starts at once. A run that does not fit this machine is left to other workers.

        Raises:
            httpx.HTTPError: Its deployment cannot be read.
        """
        if not await self._runs.may_start(client, pool, run):
            return False, None
        request = request_of(await self._runs.variables(client, pool, run))
        if not request.gpu_count:
            return True, None
        if misfit(request, self._machine.leases.inventory) is not None:
            return False, None
        try:
            lease = await self._machine.leases.try_acquire(request, holder=run.name)
        except DispatchError as error:
            logger.warning("run %s is not for this worker: %s", run.name, error)
            return False, None
        return lease is not None, lease


def request_of(variables: Mapping[str, Any]) -> ResourceRequest:
    """Return the request in job variables (`gpu_count`, `gpu_type`, `gpu_memory`)."""
    count = variables.get("gpu_count")
    return ResourceRequest(
        gpu_count=count if isinstance(count, int) and count > 0 else 0,
        gpu_type=gpu_type(variables.get("gpu_type")),
        gpu_memory_bytes=parse_memory(variables.get("gpu_memory")),
    )
