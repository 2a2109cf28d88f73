"""The endpoint as the client commands see it: one address, one token, errors as one line each."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlsplit

import httpx

from mloc_prefect.errors import DispatchError, MlocError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mloc_prefect.settings import MlocSettings

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 60.0
_DETAIL = 600  # characters of an answer that a message quotes


class RefusedSpecError(MlocError):
    """The endpoint does not take a spec."""

    exit_code = 2


class Endpoint:
    """Calls of one MLOC endpoint; also of the original orchestrator, as far as that has the routes.

    Args:
        url: Its address.
        token: Bearer token, or None; never shown.
        transport: For tests.
    """

    def __init__(self, url: str, token: str | None, *, transport: httpx.BaseTransport | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UsageError(
                f"MLOC_URL is not an http or https URL: {_shown(url)!r}", hint="for example http://127.0.0.1:8000"
            )
        self.url = url.rstrip("/")
        self.shown = _shown(self.url)
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS),
            transport=transport,
        )

    @classmethod
    def configured(cls, settings: MlocSettings) -> Endpoint:
        """Return the endpoint of `MLOC_URL`, else that of the `mloc up` of this `MLOC_HOME`, else the default one.

        The token is `MLOC_TOKEN`; that of a `mloc up` which made its own is found by itself.
        """
        from mloc_prefect.up.state import running

        token = settings.token.get_secret_value() if settings.token else None
        state = None if "url" in settings.model_fields_set else running(settings.home)
        if state is None:
            return cls(settings.url, token)
        if token is None and state.token_file:
            token = Path(state.token_file).read_text().strip()
        return cls(state.url, token)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **parameters: Any) -> Any:
        """Return the JSON answer to a GET; parameters that are None are left out.

        Raises:
            MlocError: No answer, or one that is an error; the class says which.
        """
        return self._json(self._send("GET", path, params=_given(parameters)))

    def page(self, path: str, **parameters: Any) -> tuple[Any, str | None]:
        """Return the JSON answer to a GET and the path of the next page, or None; see `get`."""
        answer = self._send("GET", path, params=_given(parameters))
        following = answer.links.get("next", {}).get("url")
        return self._json(answer), following

    def post(self, path: str, *, headers: Mapping[str, str] | None = None, **body: Any) -> Any:
        """Return the JSON answer to a POST; see `get`."""
        return self._json(self._send("POST", path, headers=headers, **body))

    def find(self, path: str, **parameters: Any) -> Any:
        """Return the JSON answer to a GET, or None when there is no such thing."""
        answer = self._send("GET", path, params=_given(parameters), accepted=(404,))
        return None if answer.status_code == 404 else self._json(answer)

    @contextmanager
    def stream(
        self, path: str, *, headers: Mapping[str, str] | None = None, wait: float | None = _ANSWER_SECONDS
    ) -> Iterator[httpx.Response]:
        """Yield the answer to a GET before its body is read.

        Args:
            path: What to get.
            headers: More headers.
            wait: Longest silence, seconds; None for any.

        Raises:
            MlocError: As for `get`, also while the body is read.
        """
        timeout = httpx.Timeout(wait, connect=_CONNECT_SECONDS)
        with self._guarded(), self._http.stream("GET", path, headers=headers, timeout=timeout) as answer:
            if answer.is_error:
                answer.read()
            self._check(answer)
            yield answer

    def _send(self, method: str, path: str, *, accepted: tuple[int, ...] = (), **more: Any) -> httpx.Response:
        with self._guarded():
            answer = self._http.request(method, path, **more)
        if answer.status_code not in accepted:
            self._check(answer)
        return answer

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException:
            raise DispatchError(f"the endpoint {self.shown} does not answer in time", hint=_WHERE) from None
        except httpx.TransportError as error:
            raise DispatchError(f"the endpoint {self.shown} does not answer: {error}", hint=_WHERE) from None

    def _check(self, answer: httpx.Response) -> None:
        """Raise for an answer that is an error."""
        if answer.is_success:
            return
        detail = _detail(answer)
        if answer.status_code in {401, 403}:
            raise DispatchError(
                f"the endpoint {self.shown} refuses the token: {detail}",
                hint="set MLOC_TOKEN; a `mloc up --host` keeps its token in $MLOC_HOME/secrets/token",
            )
        if answer.status_code == 404 and detail == "Not Found":
            raise DispatchError(f"{self.shown} is no MLOC endpoint, or one without this command", hint=_WHERE)
        if answer.status_code in {400, 413, 422}:
            raise RefusedSpecError(f"the endpoint refuses this: {detail}")
        if answer.status_code in {404, 409}:
            raise UsageError(detail)
        if answer.status_code == 503:
            raise DispatchError(f"the endpoint {self.shown} cannot serve now: {detail}", hint="try again in a moment")
        raise MlocError(
            f"the endpoint {self.shown} answers {answer.status_code}: {detail}", hint="see the endpoint's log"
        )

    def _json(self, answer: httpx.Response) -> Any:
        try:
            return answer.json()
        except ValueError:
            raise DispatchError(f"{self.shown} is no MLOC endpoint: its answer is not JSON", hint=_WHERE) from None


_WHERE = "start one with `mloc up`, or set MLOC_URL to where one runs"


def quoted(text: str) -> str:
    """Return `text` as one component of a path."""
    return quote(text, safe="")


def _given(parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what was given; None for nothing, as an empty mapping would cut off the query of a path."""
    return {name: value for name, value in parameters.items() if value is not None} or None


def _detail(answer: httpx.Response) -> str:
    """Return what an error answer says, in one line."""
    try:
        body = answer.json()
    except ValueError:
        body = answer.text or answer.reason_phrase
    detail = body.get("detail", body) if isinstance(body, dict) else body
    if isinstance(detail, list):
        detail = "; ".join(str(entry.get("msg", entry)) if isinstance(entry, dict) else str(entry) for entry in detail)
    return " ".join(str(detail).split())[:_DETAIL] or f"status {answer.status_code}"


def _shown(url: str) -> str:
    """Return a URL without user and password."""
    scheme, sign, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{sign}{host.rpartition('@')[2]}{slash}{path}"
