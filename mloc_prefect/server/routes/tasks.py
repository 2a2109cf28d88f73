"""`/api/v1/tasks`: submit, check, list, look at, cancel. [protocol 1.2, 1.3, 2.1]."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse

from mloc_prefect.bridge.states import TaskStatus
from mloc_prefect.server import cancel, examples, submit
from mloc_prefect.server.auth import Guarded
from mloc_prefect.server.body import is_json, read_body, spec_in
from mloc_prefect.server.context import Endpoint, Here
from mloc_prefect.server.replies import Json, Problem, encode
from mloc_prefect.server.wording import diagnostic_row

if TYPE_CHECKING:
    from mloc_prefect.bridge.records import TaskRecord

router = APIRouter(prefix="/api/v1/tasks", dependencies=[Guarded], tags=["tasks"])

_PAGE = 200
_JSON_OVERHEAD = 6  # a text in JSON has at most six characters for one (`\u0000`)
_BODY = examples.body(
    {
        "text/yaml": examples.SPEC,
        "application/json": {"yaml": examples.SPEC, "parameters": {}},
    }
)
_KEY_HEADER: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "maxLength": 255},
    "description": "Sent again within a day it gives the first answer again instead of a second submission.",
}
Strict = Annotated[bool, Query(description="Treat warnings as errors.")]


@router.post(
    "",
    summary="Submit a spec",
    responses=examples.answers(examples.SUBMITTED, 400, 401, 403, 409, 413, 422, 503),
    openapi_extra={**_BODY, "parameters": [_KEY_HEADER]},
)
async def submit_task(request: Request, endpoint: Here, *, strict: Strict = False) -> Response:
    """Store a spec for running: YAML with any content type that is not JSON, or JSON with the YAML inside.

    The answer comes as soon as the submission is durable; it has the status of each task as known then.
    """
    order = await _order(request, endpoint, strict=strict)
    accepted = await submit.submit(endpoint, order)
    headers = {"Idempotent-Replayed": "true"} if accepted.replayed else None
    return Json(submit.answer(accepted), headers=headers)


@router.post(
    "/validate",
    summary="Check a spec",
    responses=examples.answers({"ok": True, "errors": [], "warnings": [], "plan": None}, 400, 401, 403, 413, 422),
    openapi_extra=_BODY,
)
async def validate_task(request: Request, endpoint: Here, *, strict: Strict = False) -> Response:
    """Read and plan a spec without running it: every fault with its line and column, and the plan if there is one."""
    order = await _order(request, endpoint, strict=strict)
    plan, found = await submit.examine(endpoint, order)
    rows = [diagnostic_row(diagnostic) for diagnostic in found]
    return Json(
        {
            "ok": plan is not None,
            "errors": [row for row in rows if row["severity"] == "error"],
            "warnings": [row for row in rows if row["severity"] == "warning"],
            "plan": endpoint.masker.document(plan.to_dict()) if plan is not None else None,
        }
    )


@router.get("", summary="List tasks", responses=examples.answers([examples.RECORD], 401, 403, 422, 503))
async def list_tasks(
    request: Request,
    endpoint: Here,
    *,
    status: Annotated[TaskStatus | None, Query(description="Only tasks that show this.")] = None,
    task_type: Annotated[str | None, Query(description="Only tasks with this text in `spec.taskType`.")] = None,
    submission_id: Annotated[str | None, Query(description="Only tasks of this submission.")] = None,
    name: Annotated[str | None, Query(description="Only tasks that go by this name.")] = None,
    after: Annotated[str | None, Query(description="Start behind this task id.")] = None,
    limit: Annotated[int | None, Query(ge=1, le=1000, description="Most records of one answer.")] = None,
    newest_first: Annotated[bool, Query(description="The other way round.")] = False,
) -> Response:
    """List records in order of creation: all, or those that fit.

    With `limit` a header `Link` (`rel="next"`) leads to the next page, as long as there is one.
    """
    filters: dict[str, Any] = {
        "status": status,
        "task_type": task_type,
        "submission_id": submission_id,
        "name": name,
        "newest_first": newest_first,
    }
    if limit is None:
        first = await endpoint.stores.tasks.page(**filters, after=after, limit=_PAGE)
        return StreamingResponse(_all(endpoint, filters, first), media_type="application/json")
    found = await endpoint.stores.tasks.page(**filters, after=after, limit=limit + 1)
    shown = found[:limit]
    headers = {}
    if len(found) > limit:
        following = request.url.include_query_params(after=shown[-1].task_id)
        headers["Link"] = f'<{following.path}?{following.query}>; rel="next"'
    return Json([endpoint.masker.answer(record) for record in shown], headers=headers)


@router.get(
    "/{task_id}",
    summary="Look at a task",
    responses=examples.answers(examples.RECORD, 401, 403, 404, 503),
)
async def get_task(task_id: str, endpoint: Here) -> Response:
    """Return one record, with the keys of both generations."""
    record = await endpoint.stores.tasks.get(task_id)
    if record is None:
        raise Problem(404, "task not found")
    return Json(endpoint.masker.answer(record))


@router.post(
    "/{task_id}/cancel",
    summary="Cancel a task",
    responses=examples.answers(
        {"ok": True, "submission_id": examples.SUBMISSION_ID, "cancelled": [examples.TASK_ID], "stopping": []},
        *(401, 403, 404, 409, 422, 503),
    ),
)
async def cancel_task(
    task_id: str,
    endpoint: Here,
    *,
    submission: Annotated[bool, Query(description="End all tasks that were submitted with it.")] = False,
) -> Response:
    """End a task and what depends on it: what has not started is CANCELLED at once, what runs is told to stop."""
    record = await endpoint.stores.tasks.get(task_id)
    if record is None:
        raise Problem(404, "task not found")
    return Json(await cancel.cancel(endpoint, record, whole=submission))


async def _order(request: Request, endpoint: Endpoint, *, strict: bool) -> submit.Order:
    limit = endpoint.settings.max_spec_bytes
    body = await read_body(request, limit * _JSON_OVERHEAD if is_json(request) else limit, what="a spec")
    text, parameters = spec_in(request, body)
    return submit.Order(text=text, parameters=parameters, strict=strict, key=request.headers.get("idempotency-key"))


async def _all(endpoint: Endpoint, filters: dict[str, Any], page: Any) -> AsyncIterator[bytes]:
    """Write all records page by page, so that a long list needs no memory."""
    found: list[TaskRecord] = list(page)
    yield b"["
    comma = b""
    while found:
        for record in found:
            yield comma + encode(endpoint.masker.answer(record))
            comma = b","
        found = list(await endpoint.stores.tasks.page(**filters, after=found[-1].task_id, limit=_PAGE))
    yield b"]"
