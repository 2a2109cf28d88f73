"""Posted results: parsed, stored, and applied to the task. [protocol 1.4]."""

from __future__ import annotations

import asyncio
import json
import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field
from starlette.responses import Response, StreamingResponse

from mloc_prefect.artifacts import atomic
from mloc_prefect.artifacts.layout import RESPONSES
from mloc_prefect.artifacts.result_guard import (
    async_result_lock,
    holds_result,
    is_committed,
    is_posted,
    note_posted,
)
from mloc_prefect.diagnostics.masking import KnownSecrets
from mloc_prefect.errors import ArtifactError
from mloc_prefect.execution.wire import json_ready
from mloc_prefect.process.regular_file import open_inside
from mloc_prefect.server.files.file_response import file_pieces
from mloc_prefect.server.files.task_files import directory_of
from mloc_prefect.server.record_steps import move_record
from mloc_prefect.server.request_body import is_json, json_problem, parse_json, validated
from mloc_prefect.server.responses import FINISHED, MISSING_BODY, ErrorResponse, JsonResponse, is_text, storage_problem
from mloc_prefect.store import transitions
from mloc_prefect.store.states import Phase

if TYPE_CHECKING:
    from pathlib import Path
    from typing import IO

    from fastapi import Request

    from mloc_prefect.server.dependencies import EndpointContext
    from mloc_prefect.store.interfaces import TaskStore
    from mloc_prefect.store.records import TaskRecord

_INDENTED = 1 << 20  # bytes of a body; larger files are written without indentation, which needs a slow encoder
_INLINE = 64 * 1024  # bytes that are parsed faster than a thread is started
_PARSED = 64 << 20  # bytes of a file that is parsed to check that it is JSON
_ECHOED = 64 * 1024  # bytes of a body that an error answer repeats


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


class Envelope(BaseModel):
    """A posted result and the content of its file; unknown keys are dropped."""

    task_id: str
    worker_id: str | None = None
    metadata: dict[str, Any] | None = None
    received_at: str = Field(default_factory=_now)
    result: dict[str, Any]


async def envelope_of(request: Request, body: bytes) -> Envelope:
    """Return the result in a body.

    Raises:
        ErrorResponse: 400 or 422, as in the original.
    """
    if not body:
        raise ErrorResponse(422, MISSING_BODY)
    if not is_json(request):
        raise ErrorResponse(422, [_not_an_object(body.decode("utf-8", "replace")[:_ECHOED])])
    value = parse_json(body) if len(body) <= _INLINE else await asyncio.to_thread(parse_json, body)
    if value is None:
        raise ErrorResponse(422, MISSING_BODY)
    if not isinstance(value, dict):
        raise ErrorResponse(422, [_not_an_object(value)])
    envelope = validated(Envelope, value, show_input=len(body) <= _ECHOED)
    if not envelope.task_id.strip():
        raise ErrorResponse(400, "task_id is required")
    if not is_text(envelope.task_id):
        raise ErrorResponse(400, "task_id contains half of a surrogate pair, which is not text")
    return envelope


async def accept(endpoint: EndpointContext, envelope: Envelope, *, of_stage: bool) -> Path:
    """Store a result, complete its task, and return the path of its file.

    Args:
        endpoint: Stores and results root.
        envelope: The result.
        of_stage: It comes from our own stage runner, which completes the task itself.

    Raises:
        ErrorResponse: 409 if the task has ended with another result; 507 if the result cannot be written; 400 for one
            that could be read but is nested too deeply to be written.
        StoreError: Redis cannot be reached.
    """
    tasks, task_id = endpoint.stores.tasks, envelope.task_id.strip()
    directory = directory_of(endpoint.results, task_id)
    if not of_stage:
        await endpoint.stores.check()  # do not store a result whose task cannot be updated
        envelope = await _without_secrets(tasks, task_id, envelope)
    try:
        async with async_result_lock(directory):
            if await _is_final(tasks, directory, task_id, of_stage=of_stage):
                if not await asyncio.to_thread(holds_result, directory, envelope.result):
                    raise ErrorResponse(409, FINISHED.format(task_id))
                return directory / RESPONSES
            path = await asyncio.to_thread(_store, directory, envelope)
            if not of_stage:
                await asyncio.to_thread(note_posted, directory)
                await complete(tasks, task_id)
            return path
    except ArtifactError as error:
        if isinstance(error.__cause__, OSError):
            raise storage_problem(error.__cause__) from error
        raise


async def _without_secrets(tasks: TaskStore, task_id: str, envelope: Envelope) -> Envelope:
    """Return a result without the secrets of the spec of its task: a worker may return the spec."""
    record = await tasks.get(task_id)
    if record is None or (record.masked and record.shown_parsed is None):
        return envelope
    known = KnownSecrets.in_document(record.parsed)
    if not known.terms:
        return envelope
    masked = await asyncio.to_thread(lambda: (known.without(envelope.result), known.without(envelope.metadata)))
    return envelope.model_copy(update={"result": masked[0], "metadata": masked[1]})


async def _is_final(tasks: TaskStore, directory: Path, task_id: str, *, of_stage: bool) -> bool:
    """Return whether the stored result of a task must stay."""
    if is_committed(directory):
        return True
    if of_stage:
        return await asyncio.to_thread(is_posted, directory)
    record = await tasks.get(task_id)
    return record is not None and record.mark.phase.terminal and (directory / RESPONSES).exists()


def _store(directory: Path, envelope: Envelope) -> Path:
    path = directory / RESPONSES
    value = {**envelope.model_dump(), "task_id": envelope.task_id.strip()}
    try:
        try:
            small = len(json.dumps(value, separators=(",", ":"), allow_nan=False)) <= _INDENTED
        except ValueError:  # a number beyond all floats, such as 1e999
            value, small = json_ready(value), True
        atomic.write_json(path, value, indent=2 if small else None)
    except RecursionError as error:
        raise json_problem(error) from None
    return path


async def complete(tasks: TaskStore, task_id: str) -> None:
    """Make the task of a result DONE, unless it is unknown or has ended."""

    def done(record: TaskRecord, attempt: int, now: float) -> transitions.RecordStep:
        return transitions.of_task_alone(transitions.done(record, attempt, now))

    record = await tasks.get(task_id)
    if record is not None:
        await move_record(tasks, record, done, before=Phase.DONE)


def result_response(path: Path, task_id: str) -> Response | None:
    """Return the stored JSON unchanged, or as `raw` if it is not JSON; None if there is no file of the task itself.

    Raises:
        ErrorResponse: 500 if it cannot be read.
    """
    try:
        file = open_inside(path.parent, path)
    except OSError as error:
        raise ErrorResponse(500, f"Failed to read result: {error.strerror}") from error
    if file is None:
        if path.is_dir() and not path.is_symlink():
            raise ErrorResponse(500, "Failed to read result: Is a directory")
        return None
    size = os.fstat(file.fileno()).st_size
    if size > _PARSED:
        return StreamingResponse(file_pieces(file, 0, size), media_type="application/json")
    with file:
        data = _read_all(file)
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return JsonResponse({"task_id": task_id, "raw": data.decode("utf-8", "replace")})
    return Response(data, media_type="application/json")


def _read_all(file: IO[bytes]) -> bytes:
    try:
        return file.read()
    except OSError as error:
        raise ErrorResponse(500, f"Failed to read result: {error.strerror}") from error


def _not_an_object(value: Any) -> dict[str, Any]:
    message = "Input should be a valid dictionary or object to extract fields from"
    return {"type": "model_attributes_type", "loc": ["body"], "msg": message, "input": value}
