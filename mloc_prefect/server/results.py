"""Posted results: their form, their file, and what they do to the task. [protocol 1.4]."""

from __future__ import annotations

import asyncio
import errno
import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError
from starlette.responses import Response, StreamingResponse

from mloc_prefect.artifacts import atomic
from mloc_prefect.artifacts.layout import RESPONSES
from mloc_prefect.bridge import mapping
from mloc_prefect.errors import ArtifactError
from mloc_prefect.server.body import is_json, json_problem, parse_json
from mloc_prefect.server.replies import MISSING_BODY, Json, Problem, is_text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import IO

    from fastapi import Request

    from mloc_prefect.bridge.ports import TaskStore

_INDENTED = 1 << 20  # bytes of a body; larger files are written without indentation, which takes a slow encoder
_INLINE = 64 * 1024  # bytes that are parsed in less time than a thread costs
_JUDGED = 64 << 20  # bytes of a file that is parsed to see whether it is JSON
_ECHOED = 64 * 1024  # bytes of a body that an error answer shows again
_CHUNK = 1 << 20


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


class Envelope(BaseModel):
    """A posted result, and its file; unknown keys are dropped."""

    task_id: str
    worker_id: str | None = None
    metadata: dict[str, Any] | None = None
    received_at: str = Field(default_factory=_now)
    result: dict[str, Any]


async def envelope_of(request: Request, body: bytes) -> Envelope:
    """Return the result in a body.

    Raises:
        Problem: 400 and 422 as the original has them.
    """
    if not body:
        raise Problem(422, MISSING_BODY)
    if not is_json(request):
        raise Problem(422, [_no_object(body.decode("utf-8", "replace")[:_ECHOED])])
    value = parse_json(body) if len(body) <= _INLINE else await asyncio.to_thread(parse_json, body)
    if value is None:
        raise Problem(422, MISSING_BODY)
    if not isinstance(value, dict):
        raise Problem(422, [_no_object(value)])
    try:
        envelope = Envelope.model_validate(value)
    except ValidationError as error:
        shown = len(body) <= _ECHOED
        entries = error.errors(include_url=False, include_context=False, include_input=shown)
        raise Problem(422, [{**entry, "loc": ["body", *entry["loc"]]} for entry in entries]) from None
    if not envelope.task_id.strip():
        raise Problem(400, "task_id is required")
    if not is_text(envelope.task_id):
        raise Problem(400, "task_id holds half of a surrogate pair, which is no text")
    return envelope


def store(directory: Path, envelope: Envelope) -> Path:
    """Write the file of a result and return its path.

    Raises:
        Problem: 507 for a full disk; 400 for a result that could just be read, but nests too deep to be written.
        ArtifactError: It cannot be written.
    """
    path = directory / RESPONSES
    value = {**envelope.model_dump(), "task_id": envelope.task_id.strip()}
    try:
        small = len(json.dumps(value, separators=(",", ":"))) <= _INDENTED
        atomic.write_json(path, value, indent=2 if small else None)
    except RecursionError as error:
        raise json_problem(error) from None
    except ArtifactError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise Problem(507, "no space is left for the results") from error
        raise
    return path


async def complete(tasks: TaskStore, envelope: Envelope) -> None:
    """Make the task of a result DONE, unless it is unknown or has ended."""
    task_id = envelope.task_id.strip()
    record = await tasks.get(task_id)
    while record is not None and not record.mark.phase.terminal:
        step = mapping.of_task_alone(mapping.done(record, record.mark.attempt, time.time()))
        if await tasks.transition(task_id, step.mark, step.changes, step.messages, add=step.add):
            return
        record = await tasks.get(task_id)  # it moved meanwhile


def result_response(path: Path, task_id: str) -> Response | None:
    """Return the stored JSON as it is, or as `raw` when it is none; None when there is no file.

    Raises:
        Problem: 500 when it cannot be read.
    """
    try:
        file = path.open("rb", buffering=0)
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Problem(500, f"Failed to read result: {error.strerror}") from error
    if size > _JUDGED:
        return StreamingResponse(_chunks(file), media_type="application/json")
    with file:
        data = _whole(file)
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return Json({"task_id": task_id, "raw": data.decode("utf-8", "replace")})
    return Response(data, media_type="application/json")


def _whole(file: IO[bytes]) -> bytes:
    try:
        return file.read()
    except OSError as error:
        raise Problem(500, f"Failed to read result: {error.strerror}") from error


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _no_object(value: Any) -> dict[str, Any]:
    message = "Input should be a valid dictionary or object to extract fields from"
    return {"type": "model_attributes_type", "loc": ["body"], "msg": message, "input": value}
