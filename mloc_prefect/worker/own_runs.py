"""Which scheduled runs a worker may start: those of our own entry points, and others only if the operator allows it.

A deployment names what runs: any file, with any command and environment. Whoever can write to Prefect's API would
otherwise run commands on every worker of the pool.
"""

from __future__ import annotations

import logging
import re
import time
from typing import TYPE_CHECKING, Any
from uuid import UUID

from mloc_prefect.worker.in_loop_runs import own_flow

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun, WorkPool
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.flows import Flow

    from mloc_prefect.worker.claims.claim_loop import RunClaim

logger = logging.getLogger("prefect.mloc.worker")

REFUSAL = "this worker runs MLOC's own flows only"
HINT = "MLOC_USER_FLOWS=true lets it run others, with any command"

_OWN_PROCESS = ("command", "env", "working_dir")
_KEPT_SECONDS = 30.0
_REMEMBERED = 5000


class OwnRuns:
    """Judges runs before they are claimed; deployments are read once in a while.

    Args:
        user_flows: Whether deployments of users' own flows may run, too.
    """

    def __init__(self, *, user_flows: bool) -> None:
        self._user_flows = user_flows
        self._deployments: dict[UUID, tuple[float, DeploymentResponse]] = {}
        self._reported: dict[UUID, None] = {}

    async def may_start(self, client: PrefectClient, pool: WorkPool | None, run: FlowRun) -> bool:
        """Return whether `run` may start here; one that may not is logged once.

        Raises:
            httpx.HTTPError: Its deployment cannot be read.
        """
        if self._user_flows or await self.flow_of(client, pool, run) is not None:
            return True
        if run.id not in self._reported:
            self._reported[run.id] = None
            while len(self._reported) > _REMEMBERED:
                del self._reported[next(iter(self._reported))]
            logger.warning("run %s (%s) is not started: %s; %s", run.name, run.id, REFUSAL, HINT)
        return False

    async def keep_own(
        self,
        client: PrefectClient,
        pool: WorkPool | None,
        claims: Sequence[RunClaim],
        give_back: Callable[[Sequence[RunClaim]], Awaitable[None]],
    ) -> list[RunClaim]:
        """Return the claims that may start here; leases of the others are given back, of all after an error.

        Raises:
            httpx.HTTPError: A deployment cannot be read.
        """
        kept: list[RunClaim] = []
        try:
            own = [claim for claim in claims if await self.may_start(client, pool, claim.entry.flow_run)]
            kept = own
        finally:
            await give_back([claim for claim in claims if claim not in kept])
        return kept

    async def variables(self, client: PrefectClient, pool: WorkPool | None, run: FlowRun) -> dict[str, Any]:
        """Return job variables as Prefect merges them: of the pool, the deployment, the run.

        Raises:
            httpx.HTTPError: The deployment cannot be read.
        """
        template = (pool.base_job_template if pool else None) or {}
        properties = template.get("variables", {}).get("properties", {})
        merged = {name: field["default"] for name, field in properties.items() if "default" in field}
        if run.deployment_id is not None:
            merged |= (await self._deployment(client, run.deployment_id)).job_variables or {}
        return merged | (run.job_variables or {})

    async def flow_of(self, client: PrefectClient, pool: WorkPool | None, run: FlowRun) -> Flow[..., Any] | None:
        """Return the flow of ours that runs in the worker's loop for `run`; None if it needs a process of its own.

        Raises:
            httpx.HTTPError: Its deployment cannot be read.
        """
        if run.deployment_id is None:
            return None
        flow = own_flow(await self._deployment(client, run.deployment_id))
        variables = await self.variables(client, pool, run) if flow is not None else {}
        configuration = ((pool.base_job_template if pool else None) or {}).get("job_configuration", {})
        apart = any(variables.get(name) or _is_fixed(configuration.get(name), name) for name in _OWN_PROCESS)
        return None if apart else flow

    async def _deployment(self, client: PrefectClient, deployment_id: UUID) -> DeploymentResponse:
        at, known = self._deployments.get(deployment_id, (0.0, None))
        if known is None or time.monotonic() - at > _KEPT_SECONDS:
            known = await client.read_deployment(deployment_id)
            now = time.monotonic()
            self._deployments = {i: d for i, d in self._deployments.items() if now - d[0] <= _KEPT_SECONDS}
            self._deployments[deployment_id] = (now, known)
        return known


def _is_fixed(value: Any, name: str) -> bool:
    """Return whether the template of a pool has a value of its own where others have the variable `name`."""
    is_variable = isinstance(value, str) and re.fullmatch(r"\s*\{\{\s*" + name + r"\s*\}\}\s*", value)
    return bool(value) and not is_variable
