"""Answers: JSON that can always be written, and errors in the form `{"detail": ...}`. [protocol 1]."""

from __future__ import annotations

import json
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

MISSING_BODY = [{"type": "missing", "loc": ["body"], "msg": "Field required", "input": None}]


class Json(Response):
    """A JSON answer. Unlike the framework's own it takes NaN and lone surrogates, which specs and results may hold."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return encode(content)


class Problem(HTTPException):
    """An error answer with more beside `detail`.

    Args:
        status_code: Status of the answer.
        detail: Text or list.
        headers: Further headers.
        more: Further keys of the body.
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


def error_answer(problem: HTTPException) -> Json:
    """Return the answer to a request that failed."""
    more: dict[str, Any] = problem.more if isinstance(problem, Problem) else {}
    headers = dict(problem.headers or {})
    try:
        return Json({"detail": problem.detail, **more}, problem.status_code, headers=headers)
    except RecursionError:  # what was sent could just be read: it can be refused, but not shown again
        detail: Any = problem.detail
        entries = [{key: value for key, value in entry.items() if key != "input"} for entry in detail]
        return Json({"detail": entries, **more}, problem.status_code, headers=headers)


def encode(value: Any) -> bytes:
    r"""Return `value` as compact UTF-8 JSON; half of a surrogate pair becomes its `\ud800` escape."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def is_text(value: str) -> bool:
    """Return whether `value` can be written as UTF-8: JSON lets clients send halves of surrogate pairs."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
