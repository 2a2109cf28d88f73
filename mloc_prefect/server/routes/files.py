"""`/api/v1/results/{task_id}/files`: artifacts up and down. [protocol 1.5]."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from mloc_prefect.server import examples
from mloc_prefect.server.auth import Guarded
from mloc_prefect.server.context import Here
from mloc_prefect.server.download import file_response
from mloc_prefect.server.pieces import OFFSET, receive_piece
from mloc_prefect.server.places import check_name, directory_of, find_file
from mloc_prefect.server.replies import Json, Problem
from mloc_prefect.server.upload import FIELD, receive_file

router = APIRouter(prefix="/api/v1/results/{task_id}/files", dependencies=[Guarded], tags=["results"])

_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {FIELD: {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}
_BYTES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file", "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}},
    206: {"description": "The part that `Range` asks for"},
    304: {"description": "It still is the file that `If-None-Match` names"},
}


@router.post(
    "",
    summary="Upload a file",
    responses=examples.answers(
        {"ok": True, "path": f"/results/{examples.TASK_ID}/model.zip"}, 400, 401, 403, 413, 422, 507
    ),
    openapi_extra=_FORM,
)
async def upload(task_id: str, request: Request, endpoint: Here) -> Response:
    """Store one file of a task; one of the same name is replaced when all of the new one is there."""
    directory = directory_of(endpoint.results, task_id)
    path = await receive_file(request, directory, most=endpoint.settings.max_upload_bytes)
    return Json({"ok": True, "path": str(path)})


@router.head("/{filename}", include_in_schema=False)
@router.get(
    "/{filename}",
    summary="Download a file",
    response_class=StreamingResponse,  # no JSON, in the OpenAPI document
    responses={**examples.answers("", 400, 401, 403, 404, 416), **_BYTES},
)
async def download(task_id: str, filename: str, request: Request, endpoint: Here) -> Response:
    """Return a file of a task, or a range of it; the entity tag is its SHA-256."""
    directory = directory_of(endpoint.results, task_id)
    path = await asyncio.to_thread(find_file, directory, check_name(filename))
    response = await file_response(request, directory, path) if path is not None else None
    if response is None:
        raise Problem(404, "artifact not found")
    return response


@router.patch("/{filename}", include_in_schema=False)
async def go_on(task_id: str, filename: str, request: Request, endpoint: Here) -> Response:
    """Take in the rest of a file whose upload broke off; with an empty body: tell how much of it is there."""
    directory = directory_of(endpoint.results, task_id)
    there = await receive_piece(request, directory, check_name(filename), most=endpoint.settings.max_upload_bytes)
    return Json({"ok": True, "offset": there}, headers={OFFSET: str(there)})
