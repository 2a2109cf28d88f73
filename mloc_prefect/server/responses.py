"""JSON answers that can always be encoded, and error answers `{"detail": ...}`. [protocol 1]."""

from __future__ import annotations

import errno
import json
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

MISSING_BODY = [{"type": "missing", "loc": ["body"], "msg": "Field required", "input": None}]

FINISHED = "task {} has ended with another result, which is kept"
"""The detail of the 409 answer to a second result of a finished task."""


class JsonResponse(Response):
    """A JSON answer that, unlike FastAPI's, accepts NaN and lone surrogates, which specs and results may contain."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return encode(content)


class ErrorResponse(HTTPException):
    """An error answer.

    Args:
        status_code: Status of the answer.
        detail: Text or list.
        headers: Additional headers.
        more: Keys of the body in addition to `detail`.
    """

    def __init__(
        self,
        status_code: int,
        detail: Any,
        *,
        headers: dict[str, str] | None = None,
        more: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(status_code, detail, headers)
        self.more = more or {}


def error_answer(problem: HTTPException) -> JsonResponse:
    """Return the answer to a request that failed."""
    more: dict[str, Any] = problem.more if isinstance(problem, ErrorResponse) else {}
    headers = dict(problem.headers or {})
    try:
        return JsonResponse({"detail": problem.detail, **more}, problem.status_code, headers=headers)
    except RecursionError:  # the input could be read, but is nested too deeply to be repeated
        detail: Any = problem.detail
        entries = [{key: value for key, value in entry.items() if key != "input"} for entry in detail]
        return JsonResponse({"detail": entries, **more}, problem.status_code, headers=headers)


def storage_problem(error: OSError) -> ErrorResponse:
    """Return the answer when results cannot be written: a full disk, a read-only one, or another error of it."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return ErrorResponse(507, "no space is left for the results")
    return ErrorResponse(507, f"the results root cannot be written: {error.strerror or type(error).__name__}")


def encode(value: Any) -> bytes:
    r"""Return `value` as compact UTF-8 JSON; half of a surrogate pair becomes its `\ud800` escape."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def is_text(value: str) -> bool:
    """Return whether `value` can be encoded as UTF-8; JSON allows clients to send halves of surrogate pairs."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
