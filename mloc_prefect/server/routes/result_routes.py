"""`/api/v1/results`: results of tasks, posted and fetched. [protocol 1.4]."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mloc_prefect.artifacts.layout import RESPONSES
from mloc_prefect.artifacts.transfer.delivery import STAGE_RUN
from mloc_prefect.server import examples
from mloc_prefect.server.auth import Guarded
from mloc_prefect.server.dependencies import Here
from mloc_prefect.server.files.task_files import directory_of
from mloc_prefect.server.posted_results import accept, envelope_of, result_response
from mloc_prefect.server.request_body import read_body
from mloc_prefect.server.responses import ErrorResponse, JsonResponse

router = APIRouter(prefix="/api/v1/results", dependencies=[Guarded], tags=["results"])

_BODY = examples.body({"application/json": {key: examples.RESULT[key] for key in ("task_id", "worker_id", "result")}})
_PATH: dict[str, Any] = {"ok": True, "path": f"/results/{examples.TASK_ID}/{RESPONSES}"}


@router.post(
    "",
    summary="Post a result",
    responses=examples.answers(_PATH, 400, 401, 403, 409, 413, 422, 503, 507),
    openapi_extra=_BODY,
)
async def post_result(request: Request, endpoint: Here) -> Response:
    """Store the result of a task. If the task is known and has not ended, it becomes DONE.

    Another result of a task that has ended is refused with 409; the same one is accepted again.
    """
    body = await read_body(request, endpoint.settings.max_result_bytes, what="a result")
    envelope = await envelope_of(request, body)
    path = await accept(endpoint, envelope, of_stage=STAGE_RUN in request.headers)
    return JsonResponse({"ok": True, "path": str(path)})


@router.get(
    "/{task_id}",
    summary="Fetch a result",
    responses=examples.answers(examples.RESULT, 400, 401, 403, 404),
)
async def get_result(task_id: str, endpoint: Here) -> Response:
    """Return the stored result: the envelope that was posted, or the file of the worker."""
    directory = directory_of(endpoint.results, task_id)
    response = await asyncio.to_thread(result_response, directory / RESPONSES, task_id.strip())
    if response is None:
        raise ErrorResponse(404, "result not found")
    return response
