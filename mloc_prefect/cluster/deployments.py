"""The work pool and the two deployments of our runs: created when missing, else left as they are."""

from __future__ import annotations

import asyncio
import itertools
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from mloc_prefect.errors import DispatchError
from mloc_prefect.flow.run_workflow import FLOW
from mloc_prefect.prefect_ext.requests import ask
from mloc_prefect.prefect_ext.run_facts import COORDINATOR_QUEUE
from mloc_prefect.process.backoff import Backoff
from mloc_prefect.version import __version__

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

POOL_TYPE = "mloc-gpu"
"""Type of our work pools and workers."""

_log = logging.getLogger(__name__)

_CONFLICTS = 8  # a process that is in our way has created what it creates by then, or has been deleted
_CONFLICT_WAITS = Backoff(first=0.05, most=2.0)
_sleep = asyncio.sleep


@dataclass(frozen=True, slots=True)
class OwnDeployment:
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


RUN_WORKFLOW = OwnDeployment(
    FLOW,
    "mloc",
    "mloc_prefect.orchestrate.entrypoint.run_workflow",
    COORDINATOR_QUEUE,
    "Runs any MLOC spec. Paste the YAML into `spec`.",
)
RUN_STAGE = OwnDeployment(
    "run-stage",
    None,
    "mloc_prefect.orchestrate.stage_entry.run_stage_attempt",
    "default",
    "One attempt at one stage of an MLOC run, on whichever worker has room for it. Started by that run.",
)


async def ensure_pool(client: PrefectClient, name: str) -> None:
    """Create the work pool `name` of our type when there is none."""
    from prefect.workers.base import BaseWorker

    if await ask(client, "GET", f"/work_pools/{name}") is not None:
        return
    worker = BaseWorker.get_worker_class_from_type(POOL_TYPE)  # by Prefect's registry: worker/ is above this package
    assert worker is not None, "the collection registers the worker type"
    body = {"name": name, "type": POOL_TYPE, "base_job_template": worker.get_default_base_job_template()}
    await ask(client, "POST", "/work_pools/", body)  # a conflict means that another process was faster


async def ensure_deployment(client: PrefectClient, what: OwnDeployment, pool: str, *, move: bool = True) -> UUID:
    """Return the id of a deployment of ours, creating it, or moving it to `pool`, where needed.

    Changes that users made to it (tags, description, schedules) stay.

    Args:
        client: Open client.
        what: Which of them.
        pool: Name of the pool.
        move: Whether it may be moved from another existing pool; else it stays, with a warning.
    """
    name = what.name or pool
    path = f"/deployments/name/{what.flow}/{name}"
    found = await ask(client, "GET", path)
    if found is None:
        return UUID((await _create(client, what, pool, path))["id"])
    other = found.get("work_pool_name")
    if other and other != pool and not move:
        await ensure_pool(client, pool)
        _log.warning("%s/%s sends its runs to work pool %r; this one is %r", what.flow, name, other, pool)
    elif found.get("entrypoint") != what.entrypoint or other != pool:
        await ensure_pool(client, pool)
        change = {"entrypoint": what.entrypoint, "work_pool_name": pool, "work_queue_name": what.queue}
        await ask(client, "PATCH", f"/deployments/{found['id']}", change)
    elif what.name is not None and found.get("parameter_openapi_schema") != (form := _schema(what)):
        # Made by another version, whose form asks for other things.
        await ask(client, "PATCH", f"/deployments/{found['id']}", {"parameter_openapi_schema": form})
    return UUID(found["id"])


async def _create(client: PrefectClient, what: OwnDeployment, pool: str, path: str) -> dict[str, Any]:
    """Create a deployment, or return the one that another process has created at the same time.

    On a new database several processes come here at once. One of them is first; the server answers the others that
    flow or deployment exist already.

    Raises:
        DispatchError: It neither exists nor can be created.
    """
    for pause in itertools.islice(_CONFLICT_WAITS, _CONFLICTS):
        await ensure_pool(client, pool)
        flow = await ask(client, "POST", "/flows/", {"name": what.flow})
        flow = flow or await ask(client, "GET", f"/flows/name/{what.flow}")
        if flow is not None:
            body = _body(what, pool) | {"flow_id": flow["id"]}
            made = await ask(client, "POST", "/deployments/", body) or await ask(client, "GET", path)
            if made is not None:
                found: dict[str, Any] = made
                return found
        await _sleep(pause)
    raise DispatchError(
        f"deployment {what.flow}/{what.name or pool} cannot be created: Prefect answers that it exists, and that it "
        "does not",
        hint="look into the log of the Prefect server",
    )


def _body(what: OwnDeployment, pool: str) -> dict[str, Any]:
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


def _schema(what: OwnDeployment) -> dict[str, Any]:
    """Return the parameters of the flow, from which Prefect's UI makes its form."""
    import importlib

    from prefect.utilities.callables import parameter_schema

    module, _, name = what.entrypoint.rpartition(".")
    return parameter_schema(getattr(importlib.import_module(module), name)).model_dump_for_openapi()
