"""The pool and the two deployments that our runs go through; made when they are missing, else left as they are."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from mloc_prefect import __version__
from mloc_prefect.orchestrate.api import ask

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

COORDINATOR_QUEUE = "coordinator"
"""Queue of root runs: they wait for their stages, hold no lease and count against no limit."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Deployed:
    """One of our flows as a deployment.

    Attributes:
        flow: Name of the flow.
        name: Name of the deployment; None for one on each pool, by the pool's name.
        entrypoint: Its module path; such a flow runs in the worker's loop.
        queue: Queue of its runs when none is named.
        description: For people.
    """

    flow: str
    name: str | None
    entrypoint: str
    queue: str
    description: str


RUN_WORKFLOW = Deployed(
    "run-workflow",
    "mloc",
    "mloc_prefect.orchestrate.entrypoint.run_workflow",
    COORDINATOR_QUEUE,
    "Runs any MLOC spec. Paste the YAML into `spec`.",
)
RUN_STAGE = Deployed(
    "run-stage",
    None,
    "mloc_prefect.orchestrate.stage_entry.run_stage_attempt",
    "default",
    "One attempt at one stage of an MLOC run, on whichever worker has room for it. Started by that run.",
)


async def ensure_pool(client: PrefectClient, name: str) -> None:
    """Make the work pool `name` of our type when there is none."""
    from mloc_prefect.worker.worker import MlocGpuWorker

    template = MlocGpuWorker.get_default_base_job_template()
    body = {"name": name, "type": MlocGpuWorker.type, "base_job_template": template}
    if await ask(client, "GET", f"/work_pools/{name}") is None:
        await ask(client, "POST", "/work_pools/", body)  # a conflict means that another was faster


async def ensure_deployment(client: PrefectClient, what: Deployed, pool: str, *, move: bool = True) -> UUID:
    """Return the id of a deployment of ours, which is made, or moved to `pool`, when it is not there yet.

    What somebody has changed of it (tags, description, schedules) stays.

    Args:
        client: Open client.
        what: Which of them.
        pool: Name of the pool.
        move: Whether it may be moved from another pool that is there; else it stays, with a warning.
    """
    name = what.name or pool
    path = f"/deployments/name/{what.flow}/{name}"
    found = await ask(client, "GET", path)
    if found is None:
        await ensure_pool(client, pool)
        flow = await ask(client, "POST", "/flows/", {"name": what.flow})
        found = await ask(client, "POST", "/deployments/", _body(what, pool) | {"flow_id": flow["id"]})
        return UUID(found["id"])
    other = found.get("work_pool_name")
    if other and other != pool and not move:
        await ensure_pool(client, pool)
        _log.warning("%s/%s sends its runs to work pool %r; this one is %r", what.flow, name, other, pool)
    elif found.get("entrypoint") != what.entrypoint or other != pool:
        await ensure_pool(client, pool)
        change = {"entrypoint": what.entrypoint, "work_pool_name": pool, "work_queue_name": what.queue}
        await ask(client, "PATCH", f"/deployments/{found['id']}", change)
    return UUID(found["id"])


def _body(what: Deployed, pool: str) -> dict[str, Any]:
    return {
        "name": what.name or pool,
        "version": __version__,
        "description": what.description,
        "entrypoint": what.entrypoint,
        "work_pool_name": pool,
        "work_queue_name": what.queue,
        "tags": ["mloc"],
        "enforce_parameter_schema": False,
        "parameter_openapi_schema": _schema(what),
    }


def _schema(what: Deployed) -> dict[str, Any]:
    """Return the parameters of the flow, from which Prefect's UI makes its form."""
    import importlib

    from prefect.utilities.callables import parameter_schema

    module, _, name = what.entrypoint.rpartition(".")
    return parameter_schema(getattr(importlib.import_module(module), name)).model_dump_for_openapi()
