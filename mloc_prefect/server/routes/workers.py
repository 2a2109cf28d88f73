"""`/workers` and `/admin/cleanup`. [protocol 1.2, 1.6]."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, StrictBool, ValidationError
from starlette.responses import Response

from mloc_prefect.bridge.ports import WORKER_EVENTS
from mloc_prefect.server import examples
from mloc_prefect.server.auth import Guarded
from mloc_prefect.server.body import parse_json, read_body
from mloc_prefect.server.context import Here
from mloc_prefect.server.replies import MISSING_BODY, Json, Problem

if TYPE_CHECKING:
    from mloc_prefect.bridge.records import WorkerRecord

router = APIRouter(dependencies=[Guarded], tags=["workers"])

_LARGEST_SWITCH = 4096  # bytes


class Switch(BaseModel):
    """Body of the elastic route."""

    enabled: StrictBool


@router.get("/workers", summary="List workers", responses=examples.answers([examples.WORKER], 401, 403, 503))
async def list_workers(endpoint: Here) -> Response:
    """List the registered workers; `stale` ones have missed their heartbeats."""
    return Json([_shown(worker) for worker in await endpoint.stores.workers.list()])


@router.get(
    "/workers/{worker_id}",
    summary="Look at a worker",
    responses=examples.answers(examples.WORKER, 401, 403, 404, 503),
)
async def get_worker(worker_id: str, endpoint: Here) -> Response:
    """Return one worker."""
    worker = await endpoint.stores.workers.get(worker_id)
    if worker is None:
        raise Problem(404, "worker not found")
    return Json(_shown(worker))


@router.post(
    "/workers/{worker_id}/elastic",
    summary="Take a worker out, or back in",
    responses=examples.answers(
        {"worker_id": "lab-1-4f2a9c", "enabled": False, "elastic_disabled": True}, 400, 401, 403, 404, 422, 503
    ),
    openapi_extra=examples.body({"application/json": {"enabled": False}}),
)
async def set_elastic(worker_id: str, request: Request, endpoint: Here) -> Response:
    """Say whether a worker gets new work; what it runs goes on."""
    body = await read_body(request, _LARGEST_SWITCH, what="the body")
    if not body:
        raise Problem(422, MISSING_BODY)
    try:
        enabled = Switch.model_validate(parse_json(body)).enabled
    except ValidationError as error:
        entries = [{**entry, "loc": ["body", *entry["loc"]]} for entry in error.errors(include_url=False)]
        raise Problem(422, entries) from None
    if not await endpoint.stores.workers.set_elastic(worker_id, enabled=enabled):
        raise Problem(404, "worker not found")
    return Json({"worker_id": worker_id, "enabled": enabled, "elastic_disabled": not enabled})


@router.post("/admin/cleanup", summary="Forget stale workers", responses=examples.answers({"ok": True}, 401, 403, 503))
async def cleanup(endpoint: Here) -> Response:
    """Remove the workers that have missed their heartbeats; each is announced as UNREGISTER."""
    removed = 0
    for worker in await endpoint.stores.workers.list():
        if worker.stale:
            ts = datetime.now(UTC).isoformat()
            message = {"type": "UNREGISTER", "worker_id": worker.worker_id, "ts": ts}
            gone = await endpoint.stores.workers.remove(
                worker.worker_id, only_stale=True, messages=[(WORKER_EVENTS, message)]
            )
            removed += gone
    return Json({"ok": True, "removed": removed})


def _shown(worker: WorkerRecord) -> dict[str, Any]:
    return worker.to_dict()
