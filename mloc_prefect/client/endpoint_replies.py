"""Responses of an endpoint as values and as errors: every failure is one line with a hint."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx

from mloc_prefect.client.endpoint_address import PROXY_HINT
from mloc_prefect.client.errors import (
    AccessError,
    NotFoundError,
    RefusedConflictError,
    RefusedRequestError,
    RefusedSpecError,
    UnreachableError,
)
from mloc_prefect.diagnostics.diagnostic import Diagnostic
from mloc_prefect.errors import DispatchError, MlocError
from mloc_prefect.process.proxies import through

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mloc_prefect.client.endpoint_address import EndpointAddress

_DETAIL = 600  # characters of a response that an error message quotes
_HOW_TO_REACH_ONE = "start one with `mloc up`, or set MLOC_URL to the URL of one"


@contextmanager
def failures_named(address: EndpointAddress) -> Iterator[None]:
    """Raise an `UnreachableError` when a request of the block gets no response."""
    try:
        yield
    except httpx.TimeoutException:
        raise UnreachableError(
            f"the endpoint {address.shown} does not answer in time", hint=_HOW_TO_REACH_ONE
        ) from None
    except httpx.TransportError as error:
        passed = through(address.url)
        text = f"the endpoint {address.shown} does not answer{passed}: {error}"
        raise UnreachableError(text, hint=PROXY_HINT if passed else _HOW_TO_REACH_ONE) from None


def check_reply(address: EndpointAddress, answer: httpx.Response) -> None:
    """Raise the error that a response is, if it is one; its body has been read."""
    if answer.is_success:
        return
    body = _body(answer)
    detail, status, shown = _detail(body, answer), answer.status_code, address.shown
    if status in {401, 403}:
        hint = "set MLOC_TOKEN; `mloc up --host` stores its token in $MLOC_HOME/secrets/token"
        raise AccessError(f"the endpoint {shown} refuses the token: {detail}", hint=hint)
    if status == 404 and detail == "Not Found":
        raise not_an_endpoint(f"{shown} is not an MLOC endpoint, or does not support this command")
    if status in {400, 413, 422}:
        text = f"the endpoint refused the request: {detail}"
        found = _diagnostics(body)
        raise RefusedSpecError(text, found) if found else RefusedRequestError(text)
    if status == 404:
        raise NotFoundError(detail)
    if status == 409:
        raise RefusedConflictError(detail)
    if status == 503:
        raise UnreachableError(f"the endpoint {shown} is unavailable: {detail}", hint="try again in a few seconds")
    raise MlocError(f"the endpoint {shown} answered {status}: {detail}", hint="see the log of the endpoint")


def json_of(address: EndpointAddress, answer: httpx.Response) -> Any:
    """Return the JSON value of a response.

    Raises:
        DispatchError: It is not JSON, so it is not from an endpoint.
    """
    try:
        return answer.json()
    except ValueError:
        raise not_an_endpoint(f"{address.shown} is not an MLOC endpoint: its response is not JSON") from None


def not_an_endpoint(text: str) -> DispatchError:
    """Return the error for what answers, but not as an endpoint does."""
    return DispatchError(text, hint=_HOW_TO_REACH_ONE)


def _body(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return answer.text or answer.reason_phrase


def _detail(body: Any, answer: httpx.Response) -> str:
    """Return the message of an error response, in one line."""
    detail = body.get("detail", body) if isinstance(body, dict) else body
    if isinstance(detail, list):
        detail = "; ".join(str(entry.get("msg", entry)) if isinstance(entry, dict) else str(entry) for entry in detail)
    return " ".join(str(detail).split())[:_DETAIL] or f"status {answer.status_code}"


def _diagnostics(body: Any) -> tuple[Diagnostic, ...]:
    """Return the diagnostics of an error response; entries of another form, as a proxy may send them, are left out."""
    rows = body.get("diagnostics") if isinstance(body, dict) else None
    return tuple(_diagnostic(row) for row in rows if isinstance(row, dict)) if isinstance(rows, list) else ()


def _diagnostic(row: dict[str, Any]) -> Diagnostic:
    def number(name: str) -> int:
        return value if isinstance(value := row.get(name), int) else 0

    def text(name: str) -> str | None:
        return None if row.get(name) is None else str(row[name])

    return Diagnostic(
        file="<submitted>",
        line=number("line"),
        column=number("column"),
        severity="warning" if row.get("severity") == "warning" else "error",
        code=text("code") or "refused",
        message=text("message") or "",
        path=text("path") or "",
        found=text("found"),
        suggestion=text("suggestion"),
    )
