"""Where an endpoint is, and with which token it is called; neither the token nor a password of the URL is shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from mloc_prefect.client.errors import UnreachableError
from mloc_prefect.errors import UsageError
from mloc_prefect.process.proxies import proxy_problem

if TYPE_CHECKING:
    from mloc_prefect.settings import MlocSettings

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 60.0
UPLOAD_SECONDS = 600.0  # the endpoint syncs a large file to disk before it answers
PROXY_HINT = "check the proxy, or add the host to NO_PROXY"


@dataclass(frozen=True, slots=True)
class EndpointAddress:
    """The address of an endpoint.

    Attributes:
        url: Its URL; may contain user and password.
        token: Bearer token, or None.
    """

    url: str = field(repr=False)
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check the URL.

        Raises:
            UsageError: It is none.
            UnreachableError: It would be called through a proxy that cannot be used.
        """
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UsageError(
                f"MLOC_URL is not an http or https URL: {self.shown!r}", hint="for example http://127.0.0.1:8000"
            )
        if (problem := proxy_problem(self.url)) is not None:
            raise UnreachableError(f"the endpoint {self.shown} cannot be called: {problem}", hint=PROXY_HINT)

    @classmethod
    def configured(cls, settings: MlocSettings | None = None) -> EndpointAddress:
        """Return that of `MLOC_URL`, otherwise of the `mloc up` of this `MLOC_HOME`, otherwise of the default URL.

        The token is `MLOC_TOKEN`, or the one that this `mloc up` created.
        """
        from mloc_prefect.services.up.up_state import running
        from mloc_prefect.settings import get_settings

        settings = settings or get_settings()
        token = settings.token.get_secret_value() if settings.token else None
        state = None if "url" in settings.model_fields_set else running(settings.home)
        if state is None:
            return cls(settings.url, token)
        if token is None and state.token_file:
            token = Path(state.token_file).read_text().strip()
        return cls(state.url, token)

    @property
    def shown(self) -> str:
        """The URL without user and password."""
        scheme, sign, rest = self.url.rstrip("/").partition("://")
        host, slash, path = rest.partition("/")
        return f"{scheme}{sign}{host.rpartition('@')[2]}{slash}{path}"

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `httpx.Client` and `httpx.AsyncClient`."""
        return {
            "base_url": self.url.rstrip("/"),
            "headers": {"Authorization": f"Bearer {self.token}"} if self.token else {},
            "timeout": patience(ANSWER_SECONDS),
        }


def patience(seconds: float) -> httpx.Timeout:
    """Return the timeouts of a request whose longest silence is `seconds`."""
    return httpx.Timeout(seconds, connect=CONNECT_SECONDS)
