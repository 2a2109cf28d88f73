"""`/api/v1/results/{task_id}/files`: upload and download of artifacts. [protocol 1.5]."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from mloc_prefect.server import examples
from mloc_prefect.server.auth import Guarded
from mloc_prefect.server.dependencies import Here
from mloc_prefect.server.files.file_response import file_response
from mloc_prefect.server.files.multipart_upload import FIELD, receive_file
from mloc_prefect.server.files.resumable_upload import DIGEST, LENGTH, OFFSET, receive_piece
from mloc_prefect.server.files.task_files import check_name, directory_of, find_file
from mloc_prefect.server.responses import ErrorResponse, JsonResponse

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
_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_OFFSET: dict[str, Any] = {
    OFFSET: {"description": "Bytes received so far", "schema": {"type": "integer"}, "example": 4194304}
}


def _header(name: str, text: str, schema: dict[str, Any], example: Any) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": True, "description": text, "schema": schema, "example": example}


_SIZE: dict[str, Any] = {"type": "integer", "minimum": 0}
_REST: dict[str, Any] = {
    "parameters": [
        _header(OFFSET, "Bytes received so far; the body continues after them.", _SIZE, 4194304),
        _header(LENGTH, "Bytes of the whole file.", _SIZE, 8388608),
        _header(DIGEST, "SHA-256 of the whole file.", {"type": "string", "pattern": "^[0-9a-f]{64}$"}, _SHA256),
    ],
    "requestBody": {
        "required": False,
        "description": "The rest of the file, or a part of it; empty to ask how much has been received.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
}
_BYTES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file", "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}},
    206: {"description": "The range that `Range` requests"},
    304: {"description": "The file is still the one that `If-None-Match` names"},
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
    """Store one file of a task. A file of the same name is replaced when the new one is complete."""
    directory = directory_of(endpoint.results, task_id)
    path = await receive_file(request, directory, most=endpoint.settings.max_upload_bytes)
    return JsonResponse({"ok": True, "path": str(path)})


@router.head("/{filename}", include_in_schema=False)
@router.get(
    "/{filename}",
    summary="Download a file",
    response_class=StreamingResponse,  # the OpenAPI document must not promise JSON
    responses={**examples.answers("", 400, 401, 403, 404, 416), **_BYTES},
)
async def download(task_id: str, filename: str, request: Request, endpoint: Here) -> Response:
    """Return a file of a task, or a range of it; the entity tag is its SHA-256."""
    directory = directory_of(endpoint.results, task_id)
    path = await asyncio.to_thread(find_file, directory, check_name(filename))
    response = await file_response(request, directory, path) if path is not None else None
    if response is None:
        raise ErrorResponse(404, "artifact not found")
    return response


_RESUMED = examples.answers({"ok": True, "offset": 8388608}, 400, 401, 403, 409, 413, 422, 507)
_RESUMED[200]["headers"] = _OFFSET
_RESUMED[409] = {
    "description": f"The offset is wrong, `{OFFSET}` has the correct one; or another request is sending the file",
    "headers": _OFFSET,
    "content": {"application/json": {"example": {"detail": "4194304 bytes have been received"}}},
}


@router.patch("/{filename}", summary="Resume an upload", responses=_RESUMED, openapi_extra=_REST)
async def resume_upload(task_id: str, filename: str, request: Request, endpoint: Here) -> Response:
    """Receive the rest of a file whose upload was interrupted. An empty body asks how much has been received."""
    directory = directory_of(endpoint.results, task_id)
    received = await receive_piece(request, directory, check_name(filename), most=endpoint.settings.max_upload_bytes)
    return JsonResponse({"ok": True, "offset": received}, headers={OFFSET: str(received)})
