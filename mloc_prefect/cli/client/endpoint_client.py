"""Requests to one MLOC endpoint; every failure is an error with one line and a hint."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlsplit

import httpx

from mloc_prefect.errors import DispatchError, MlocError, UsageError
from mloc_prefect.process.proxies import proxy_problem, through

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mloc_prefect.settings import MlocSettings

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 60.0
_DETAIL = 600  # characters of a response that an error message quotes


class RefusedSpecError(MlocError):
    """The endpoint refuses a spec."""

    exit_code = 2


class EndpointClient:
    """A client of one MLOC endpoint, or of the original orchestrator where it has the route.

    Args:
        url: URL of the endpoint.
        token: Bearer token, or None; never shown.
        transport: Replaces the network in tests.
    """

    def __init__(self, url: str, token: str | None, *, transport: httpx.BaseTransport | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UsageError(
                f"MLOC_URL is not an http or https URL: {_shown(url)!r}", hint="for example http://127.0.0.1:8000"
            )
        if (problem := proxy_problem(url)) is not None:
            raise DispatchError(f"the endpoint {_shown(url)} cannot be called: {problem}", hint=_PROXY_HINT)
        self.url = url.rstrip("/")
        self.shown = _shown(self.url)
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS),
            transport=transport,
        )

    @classmethod
    def configured(cls, settings: MlocSettings) -> EndpointClient:
        """Return a client of `MLOC_URL`, otherwise of the `mloc up` of this `MLOC_HOME`, otherwise of the default URL.

        The token is `MLOC_TOKEN`, or the one that this `mloc up` created.
        """
        from mloc_prefect.services.up.up_state import running

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
        """Return the JSON response to a GET; parameters that are None are left out.

        Raises:
            MlocError: There was no response, or an error response; the class says which.
        """
        return self._json(self._send("GET", path, params=_given(parameters)))

    def page(self, path: str, **parameters: Any) -> tuple[Any, str | None]:
        """Return the JSON response to a GET, and the path of the next page or None; see `get`."""
        answer = self._send("GET", path, params=_given(parameters))
        following = answer.links.get("next", {}).get("url")
        return self._json(answer), following

    def post(self, path: str, *, headers: Mapping[str, str] | None = None, **body: Any) -> Any:
        """Return the JSON response to a POST; see `get`."""
        return self._json(self._send("POST", path, headers=headers, **body))

    def find(self, path: str, **parameters: Any) -> Any:
        """Return the JSON response to a GET, or None for 404."""
        answer = self._send("GET", path, params=_given(parameters), accepted=(404,))
        return None if answer.status_code == 404 else self._json(answer)

    @contextmanager
    def stream(
        self, path: str, *, headers: Mapping[str, str] | None = None, wait: float | None = _ANSWER_SECONDS
    ) -> Iterator[httpx.Response]:
        """Yield the response to a GET before its body is read.

        Args:
            path: Path of the URL.
            headers: Additional headers.
            wait: Longest silence in seconds; None for no limit.

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
            raise DispatchError(f"the endpoint {self.shown} does not answer in time", hint=_HOW_TO_REACH_ONE) from None
        except httpx.TransportError as error:
            text = f"the endpoint {self.shown} does not answer{through(self.url)}: {error}"
            raise DispatchError(text, hint=_PROXY_HINT if through(self.url) else _HOW_TO_REACH_ONE) from None

    def _check(self, answer: httpx.Response) -> None:
        """Raise an error for an error response."""
        if answer.is_success:
            return
        detail = _detail(answer)
        if answer.status_code in {401, 403}:
            raise DispatchError(
                f"the endpoint {self.shown} refuses the token: {detail}",
                hint="set MLOC_TOKEN; `mloc up --host` stores its token in $MLOC_HOME/secrets/token",
            )
        if answer.status_code == 404 and detail == "Not Found":
            raise DispatchError(
                f"{self.shown} is not an MLOC endpoint, or does not support this command", hint=_HOW_TO_REACH_ONE
            )
        if answer.status_code in {400, 413, 422}:
            raise RefusedSpecError(f"the endpoint refused the request: {detail}")
        if answer.status_code in {404, 409}:
            raise UsageError(detail)
        if answer.status_code == 503:
            raise DispatchError(
                f"the endpoint {self.shown} is unavailable: {detail}", hint="try again in a few seconds"
            )
        raise MlocError(
            f"the endpoint {self.shown} answered {answer.status_code}: {detail}", hint="see the log of the endpoint"
        )

    def _json(self, answer: httpx.Response) -> Any:
        try:
            return answer.json()
        except ValueError:
            raise DispatchError(
                f"{self.shown} is not an MLOC endpoint: its response is not JSON", hint=_HOW_TO_REACH_ONE
            ) from None


_PROXY_HINT = "check the proxy, or add the host to NO_PROXY"
_HOW_TO_REACH_ONE = "start one with `mloc up`, or set MLOC_URL to the URL of one"


def quoted(text: str) -> str:
    """Return `text` quoted as one component of a URL path."""
    return quote(text, safe="")


def _given(parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the parameters that are not None; None if there are none, as {} would drop the query of a path."""
    return {name: value for name, value in parameters.items() if value is not None} or None


def _detail(answer: httpx.Response) -> str:
    """Return the message of an error response, in one line."""
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
