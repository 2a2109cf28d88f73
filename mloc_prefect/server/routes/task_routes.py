"""`/api/v1/tasks`: submit, check, list, show and cancel. [protocol 1.2, 1.3, 2.1]."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse

from mloc_prefect.server import cancellation, examples, submission
from mloc_prefect.server.auth import Guarded
from mloc_prefect.server.dependencies import EndpointContext, Here, NamedTask
from mloc_prefect.server.request_body import is_json, read_body, spec_in
from mloc_prefect.server.responses import JsonResponse, encode
from mloc_prefect.server.spec_errors import diagnostic_row
from mloc_prefect.spec.secrets import mask_document
from mloc_prefect.store.record_views import list_answer, viewed, whole_answer
from mloc_prefect.store.records import TaskRecord
from mloc_prefect.store.states import TaskStatus

router = APIRouter(prefix="/api/v1/tasks", dependencies=[Guarded], tags=["tasks"])

_PAGE = 100
_INLINE = 64 * 1024  # characters of a spec that are encoded faster than a thread is started
_JSON_OVERHEAD = 6  # JSON needs at most six characters for one (`\u0000`)
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
    "description": "A second request with this key within a day returns the first submission.",
}
Strict = Annotated[bool, Query(description="Treat warnings as errors.")]


@router.post(
    "",
    summary="Submit a spec",
    responses=examples.answers(examples.SUBMITTED, 400, 401, 403, 409, 413, 422, 503),
    openapi_extra={**_BODY, "parameters": [_KEY_HEADER]},
)
async def submit_task(request: Request, endpoint: Here, *, strict: Strict = False) -> Response:
    """Submit a spec: YAML with any content type except JSON, or JSON that contains the YAML.

    The answer is sent as soon as the submission is durable, with the current status of each task.
    """
    order = await _order(request, endpoint, strict=strict)
    accepted = await submission.submit(endpoint, order)
    headers = {"Idempotent-Replayed": "true"} if accepted.replayed else None
    return JsonResponse(submission.answer(accepted), headers=headers)


@router.post(
    "/validate",
    summary="Check a spec",
    responses=examples.answers({"ok": True, "errors": [], "warnings": [], "plan": None}, 400, 401, 403, 413, 422),
    openapi_extra=_BODY,
)
async def validate_task(request: Request, endpoint: Here, *, strict: Strict = False) -> Response:
    """Check a spec without running it: returns all errors with line and column, and the plan if there is one."""
    order = await _order(request, endpoint, strict=strict)
    plan, found = await submission.examine(endpoint, order)
    rows = [diagnostic_row(diagnostic) for diagnostic in found]

    def answer() -> Response:
        return JsonResponse(
            {
                "ok": plan is not None,
                "errors": [row for row in rows if row["severity"] == "error"],
                "warnings": [row for row in rows if row["severity"] == "warning"],
                "plan": mask_document(plan.to_dict()) if plan is not None else None,
            }
        )

    return await asyncio.to_thread(answer)


@router.get("", summary="List tasks", responses=examples.answers([examples.RECORD], 401, 403, 422, 503))
async def list_tasks(
    request: Request,
    endpoint: Here,
    *,
    status: Annotated[TaskStatus | None, Query(description="Only tasks with this status.")] = None,
    task_type: Annotated[str | None, Query(description="Only tasks with this `spec.taskType`.")] = None,
    submission_id: Annotated[str | None, Query(description="Only tasks of this submission.")] = None,
    name: Annotated[str | None, Query(description="Only tasks with this name.")] = None,
    after: Annotated[str | None, Query(description="Start after this task id.")] = None,
    limit: Annotated[int | None, Query(ge=1, le=1000, description="Maximum number of records.")] = None,
    newest_first: Annotated[bool, Query(description="Reverse the order.")] = False,
) -> Response:
    """List all records, or those that match the filters, in order of creation.

    Of a spec of more than 4096 characters, `parsed` has kind, name and task type only, and `raw_yaml` is null. With
    `limit`, a header `Link` (`rel="next"`) leads to the next page if there is one.
    """
    filters: dict[str, Any] = {
        "status": status,
        "task_type": task_type,
        "submission_id": submission_id,
        "name": name,
        "newest_first": newest_first,
        "outlines": True,
    }
    if limit is None:
        first = await endpoint.stores.tasks.page(**filters, after=after, limit=_PAGE)
        return StreamingResponse(_encoded(_all(endpoint, filters, first)), media_type="application/json")
    found = await endpoint.stores.tasks.page(**filters, after=after, limit=limit + 1)
    shown = found[:limit]
    headers = {}
    if len(found) > limit:
        following = request.url.include_query_params(after=shown[-1].task_id)
        headers["Link"] = f'<{following.path}?{following.query}>; rel="next"'
    return StreamingResponse(_encoded(_parts(shown)), media_type="application/json", headers=headers)


@router.get(
    "/{task_id}",
    summary="Show a task",
    responses=examples.answers(examples.RECORD, 401, 403, 404, 503),
)
async def get_task(record: NamedTask) -> Response:
    """Return one record, with the keys of both generations."""
    (shown,) = await viewed([record])
    if len(record.raw_yaml) < _INLINE:
        return JsonResponse(whole_answer(shown))
    return await asyncio.to_thread(lambda: JsonResponse(whole_answer(shown)))


@router.post(
    "/{task_id}/cancel",
    summary="Cancel a task",
    responses=examples.answers(
        {"ok": True, "submission_id": examples.SUBMISSION_ID, "cancelled": [examples.TASK_ID], "stopping": []},
        *(401, 403, 404, 409, 422, 503),
    ),
)
async def cancel_task(
    record: NamedTask,
    endpoint: Here,
    *,
    submission: Annotated[bool, Query(description="Cancel all tasks that were submitted with it.")] = False,
) -> Response:
    """Cancel a task and the tasks that depend on it. Tasks that have not started are CANCELLED at once."""
    return JsonResponse(await cancellation.cancel(endpoint, record, whole=submission))


async def _order(request: Request, endpoint: EndpointContext, *, strict: bool) -> submission.SubmissionRequest:
    limit = endpoint.settings.max_spec_bytes
    body = await read_body(request, limit * _JSON_OVERHEAD if is_json(request) else limit, what="a spec")
    text, parameters = spec_in(request, body)
    return submission.SubmissionRequest(
        text=text, parameters=parameters, strict=strict, key=request.headers.get("idempotency-key")
    )


async def _all(endpoint: EndpointContext, filters: dict[str, Any], page: Any) -> AsyncIterator[Sequence[TaskRecord]]:
    """Yield all records page by page, so that a long list needs little memory."""
    found: Sequence[TaskRecord] = page
    while found:
        yield found
        found = await endpoint.stores.tasks.page(**filters, after=found[-1].task_id, limit=_PAGE)


async def _parts(records: Sequence[TaskRecord]) -> AsyncIterator[Sequence[TaskRecord]]:
    for start in range(0, len(records), _PAGE):
        yield records[start : start + _PAGE]


async def _encoded(pages: AsyncIterator[Sequence[TaskRecord]]) -> AsyncIterator[bytes]:
    """Encode records as a JSON list; other requests are answered between two pieces."""
    yield b"["
    comma = b""
    async for page in pages:
        for record in await viewed(page):
            yield comma + encode(list_answer(record))
            comma = b","
    yield b"]"
