"""Request bodies: read with a size limit, parsed and validated. [protocol 1.3]."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from mloc_prefect.server.responses import MISSING_BODY, ErrorResponse, is_text

if TYPE_CHECKING:
    from fastapi import Request

ModelT = TypeVar("ModelT", bound=BaseModel)
_CURL = "with curl, use --data-binary @FILE"


async def read_body(request: Request, limit: int, *, what: str) -> bytes:
    """Return the body of a request.

    Args:
        request: The request.
        limit: Maximum size in bytes; 0 = no limit.
        what: What the body is, for the error.

    Raises:
        ErrorResponse: 413 for a larger body; 400 if the client disconnected before its end.
    """
    parts: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if limit and size > limit:
                raise ErrorResponse(413, f"{what} may have {limit} bytes at most")
            parts.append(chunk)
    except ClientDisconnect:
        raise ErrorResponse(400, "the request ended before its body was complete") from None
    return b"".join(parts)


def is_json(request: Request) -> bool:
    """Return whether the body counts as JSON: by its content type, or without one."""
    content_type = request.headers.get("content-type")
    if content_type is None:
        return True
    main, _, sub = content_type.partition(";")[0].strip().lower().partition("/")
    return main == "application" and (sub == "json" or sub.endswith("+json"))


def parse_json(body: bytes) -> Any:
    """Return the JSON value of a body that is not empty; `NaN` and infinities, which JSON does not know, are null.

    Raises:
        ErrorResponse: 422 in the format of the original's framework; 400 for errors without a position.
    """
    try:
        return json.loads(body, parse_constant=lambda _name: None)
    except (ValueError, RecursionError) as error:
        raise json_problem(error) from None


def validated(model: type[ModelT], value: Any, *, show_input: bool = True) -> ModelT:
    """Return a JSON value as a model.

    Args:
        model: The model.
        value: The value.
        show_input: Whether the error answer repeats the input.

    Raises:
        ErrorResponse: 422 in the format of the original's framework.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        entries = error.errors(include_url=False, include_context=False, include_input=show_input)
        raise ErrorResponse(422, [{**entry, "loc": ["body", *entry["loc"]]} for entry in entries]) from None


def spec_in(request: Request, body: bytes) -> tuple[str | bytes, dict[str, str]]:
    """Return the spec in `body`, by the table of protocol 1.3, and the parameters of the run.

    The spec is bytes if its encoding is unknown. Parameters are an addition of this project:
    `{"yaml": "...", "parameters": {"topic": "x"}}`.

    Raises:
        ErrorResponse: 400 or 422, with the original's texts.
    """
    if not body:
        raise ErrorResponse(422, MISSING_BODY)
    if not is_json(request):
        _check_sent_by_curl(request, body)
        return body, {}
    value = parse_json(body)
    if value is None:
        raise ErrorResponse(422, MISSING_BODY)
    if isinstance(value, str):
        return value, {}
    if not isinstance(value, dict):
        raise ErrorResponse(422, _neither_text_nor_object(value))
    if "yaml" not in value:
        raise ErrorResponse(400, 'Expected YAML string or {"yaml":"..."}')
    return str(value["yaml"]), _parameters(value.get("parameters"))


def json_problem(error: ValueError | RecursionError) -> ErrorResponse:
    """Return the answer to a body that is not JSON."""
    if isinstance(error, json.JSONDecodeError):
        entry = {
            "type": "json_invalid",
            "loc": ["body", error.pos],
            "msg": "JSON decode error",
            "input": {},
            "ctx": {"error": error.msg},
        }
        return ErrorResponse(422, [entry])
    reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
    return ErrorResponse(400, f"There was an error parsing the body: {reason}")


def _check_sent_by_curl(request: Request, body: bytes) -> None:
    """Refuse the two bodies that options of curl make of a spec, and name the option that sends it unchanged.

    Raises:
        ErrorResponse: 400; as YAML, neither has a field that it should have.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        raise ErrorResponse(400, f"The body is a form, not a spec ({_CURL})")
    start = body.lstrip()
    if kind == "application/x-www-form-urlencoded" and start.startswith(b"apiVersion:") and b"\n" not in start.strip():
        raise ErrorResponse(400, f"The spec has lost its line breaks, as `curl -d @FILE` sends it ({_CURL})")


def _parameters(given: Any) -> dict[str, str]:
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(text, str) for text in given.values()):
        raise ErrorResponse(400, "parameters must be an object whose values are texts")
    for name, text in given.items():
        if not (is_text(name) and is_text(text)):  # Prefect could not store it
            raise ErrorResponse(400, f"parameters: {name!a} contains half of a surrogate pair, which is not text")
        if "\0" in name + text:
            raise ErrorResponse(400, f"parameters: {name!a} contains a NUL character, which cannot be stored")
    return given


def _neither_text_nor_object(value: Any) -> list[dict[str, Any]]:
    wanted = (("string_type", "str", "string"), ("dict_type", "dict[str,any]", "dictionary"))
    return [
        {"type": kind, "loc": ["body", where], "msg": f"Input should be a valid {noun}", "input": value}
        for kind, where, noun in wanted
    ]
