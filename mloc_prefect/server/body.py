"""Request bodies: read with a limit, and turned into the text of a spec. [protocol 1.3]."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect

from mloc_prefect.server.replies import MISSING_BODY, Problem, is_text

if TYPE_CHECKING:
    from fastapi import Request


async def read_body(request: Request, limit: int, *, what: str) -> bytes:
    """Return the body.

    Args:
        request: Whose body.
        limit: Most bytes that are read; 0 = no limit.
        what: What the body is, for the error.

    Raises:
        Problem: 413 for a larger one; 400 when the client went away in the middle.
    """
    parts: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if limit and size > limit:
                raise Problem(413, f"{what} may have {limit} bytes at most")
            parts.append(chunk)
    except ClientDisconnect:
        raise Problem(400, "the request ended before its body was complete") from None
    return b"".join(parts)


def is_json(request: Request) -> bool:
    """Return whether the body counts as JSON: it says so, or says nothing."""
    content_type = request.headers.get("content-type")
    if content_type is None:
        return True
    main, _, sub = content_type.partition(";")[0].strip().lower().partition("/")
    return main == "application" and (sub == "json" or sub.endswith("+json"))


def parse_json(body: bytes) -> Any:
    """Return the JSON value of a body that is not empty.

    Raises:
        Problem: 422 in the form of the original's framework; 400 for what that cannot place.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise json_problem(error) from None


def spec_in(request: Request, body: bytes) -> tuple[str | bytes, dict[str, str]]:
    """Return the spec in `body`, as the table of protocol 1.3 has it, and the run's parameters.

    Bytes are UTF-8 as far as the client knows. Parameters are ours: `{"yaml": "...", "parameters": {"topic": "x"}}`.

    Raises:
        Problem: 400 or 422, with the original's texts.
    """
    if not body:
        raise Problem(422, MISSING_BODY)
    if not is_json(request):
        return body, {}
    value = parse_json(body)
    if value is None:
        raise Problem(422, MISSING_BODY)
    if isinstance(value, str):
        return value, {}
    if not isinstance(value, dict):
        raise Problem(422, _neither_text_nor_object(value))
    if "yaml" not in value:
        raise Problem(400, 'Expected YAML string or {"yaml":"..."}')
    return str(value["yaml"]), _parameters(value.get("parameters"))


def json_problem(error: ValueError | RecursionError) -> Problem:
    """Return the answer to a body that is no JSON."""
    if isinstance(error, json.JSONDecodeError):
        entry = {
            "type": "json_invalid",
            "loc": ["body", error.pos],
            "msg": "JSON decode error",
            "input": {},
            "ctx": {"error": error.msg},
        }
        return Problem(422, [entry])
    reason = "it nests too deep" if isinstance(error, RecursionError) else str(error)
    return Problem(400, f"There was an error parsing the body: {reason}")


def _parameters(given: Any) -> dict[str, str]:
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(text, str) for text in given.values()):
        raise Problem(400, "parameters must be an object of texts")
    for name, text in given.items():
        if not (is_text(name) and is_text(text)):  # Prefect could not be told of it
            raise Problem(400, f"parameters: {name!a} holds half of a surrogate pair, which is no text")
    return given


def _neither_text_nor_object(value: Any) -> list[dict[str, Any]]:
    wanted = (("string_type", "str", "string"), ("dict_type", "dict[str,any]", "dictionary"))
    return [
        {"type": kind, "loc": ["body", where], "msg": f"Input should be a valid {noun}", "input": value}
        for kind, where, noun in wanted
    ]
