"""`/workers` and `/admin/cleanup`. [protocol 1.2, 1.6]."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter, Request
from pydantic import BaseModel, StrictBool
from starlette.responses import Response

from mloc_prefect.server import examples
from mloc_prefect.server.auth import Guarded
from mloc_prefect.server.dependencies import Here, NamedWorker
from mloc_prefect.server.request_body import parse_json, read_body, validated
from mloc_prefect.server.responses import MISSING_BODY, ErrorResponse, JsonResponse
from mloc_prefect.store.interfaces import WORKER_EVENTS

router = APIRouter(dependencies=[Guarded], tags=["workers"])

_LARGEST_SWITCH = 4096  # bytes


class ElasticSwitch(BaseModel):
    """Body of the elastic route."""

    enabled: StrictBool


@router.get("/workers", summary="List workers", responses=examples.answers([examples.WORKER], 401, 403, 503))
async def list_workers(endpoint: Here) -> Response:
    """List the registered workers; `stale` ones have missed their heartbeats."""
    return JsonResponse([worker.to_dict() for worker in await endpoint.stores.workers.list()])


@router.get(
    "/workers/{worker_id}",
    summary="Show a worker",
    responses=examples.answers(examples.WORKER, 401, 403, 404, 503),
)
async def get_worker(worker: NamedWorker) -> Response:
    """Return one worker."""
    return JsonResponse(worker.to_dict())


@router.post(
    "/workers/{worker_id}/elastic",
    summary="Disable or enable a worker",
    responses=examples.answers(
        {"worker_id": "lab-1-4f2a9c", "enabled": False, "elastic_disabled": True}, 400, 401, 403, 404, 422, 503
    ),
    openapi_extra=examples.body({"application/json": {"enabled": False}}),
)
async def set_elastic(worker_id: str, request: Request, endpoint: Here) -> Response:
    """Set whether a worker gets new work; running work continues."""
    body = await read_body(request, _LARGEST_SWITCH, what="the body")
    if not body:
        raise ErrorResponse(422, MISSING_BODY)
    enabled = validated(ElasticSwitch, parse_json(body)).enabled
    if not await endpoint.stores.workers.set_elastic(worker_id, enabled=enabled):
        raise ErrorResponse(404, "worker not found")
    return JsonResponse({"worker_id": worker_id, "enabled": enabled, "elastic_disabled": not enabled})


@router.post("/admin/cleanup", summary="Remove stale workers", responses=examples.answers({"ok": True}, 401, 403, 503))
async def cleanup(endpoint: Here) -> Response:
    """Remove the workers that have missed their heartbeats, and publish UNREGISTER for each."""
    removed = 0
    for worker in await endpoint.stores.workers.list():
        if worker.stale:
            ts = datetime.now(UTC).isoformat()
            message = {"type": "UNREGISTER", "worker_id": worker.worker_id, "ts": ts}
            removed += await endpoint.stores.workers.remove(
                worker.worker_id, only_stale=True, messages=[(WORKER_EVENTS, message)]
            )
    return JsonResponse({"ok": True, "removed": removed})
