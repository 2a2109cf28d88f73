"""`/healthz`, `/readyz`, `/metrics`."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from mloc_prefect.errors import DispatchError
from mloc_prefect.server import examples
from mloc_prefect.server.auth import Guarded
from mloc_prefect.server.dependencies import Here
from mloc_prefect.server.metrics_snapshot import snapshot
from mloc_prefect.server.prometheus import CONTENT_TYPE, exposition
from mloc_prefect.server.responses import JsonResponse

router = APIRouter(tags=["state"])


_ANSWERS = examples.answers({"generated_at": "2026-01-01T10:00:00+00:00", "counters": {}}, 401, 403, 503)
_ANSWERS[200]["content"]["text/plain"] = {"schema": {"type": "string"}, "example": "mloc_tasks_submitted_total 3.0\n"}


@router.get("/healthz", summary="Is the process alive?", responses=examples.answers({"ok": True}))
async def healthz() -> Response:
    """Answer as long as the process is alive; needs no token and no store."""
    return JsonResponse({"ok": True})


@router.get("/readyz", summary="Is the endpoint ready?", responses=examples.answers({"ok": True}, 503))
async def readyz(endpoint: Here) -> Response:
    """Answer 200 if the store is reachable; needs no token and therefore shows no address."""
    try:
        await endpoint.stores.check()
    except DispatchError:
        return JsonResponse({"ok": False, "detail": "Redis cannot be reached"}, 503)
    return JsonResponse({"ok": True})


@router.get(
    "/metrics",
    summary="Counts and times",
    dependencies=[Guarded],
    responses=_ANSWERS,
)
async def metrics(request: Request, endpoint: Here) -> Response:
    """Return JSON in the format of the later generation, or Prometheus text if `Accept` asks for text."""
    accept = request.headers.get("accept", "")
    as_text = "text/plain" in accept or "openmetrics" in accept
    found = await snapshot(endpoint, ids=not as_text)
    if as_text:
        return Response(exposition(found, endpoint.counters), media_type=CONTENT_TYPE)
    return JsonResponse(found)
