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


def encode(value: Any) -> bytes:
    """Return `value` as compact UTF-8 JSON."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half of a surrogate pair can be written as an escape only
        return json.dumps(value, separators=(",", ":")).encode()
