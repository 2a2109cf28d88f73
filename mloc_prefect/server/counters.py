"""Counts of the requests that this process has answered, by route."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Counters:
    """Counts of answers by method, path of the route, and status."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, str, int]] = Counter()


class CountAnswers:
    """ASGI middleware that counts answers.

    Args:
        app: The application.
        counters: The counts to update.
    """

    def __init__(self, app: ASGIApp, counters: Counters) -> None:
        self._app = app
        self._counters = counters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                # The path of the route, not of the request: there is no limit to the latter.
                path = getattr(scope.get("route"), "path", "other")
                self._counters.answers[scope["method"], path, message["status"]] += 1
            await send(message)

        await self._app(scope, receive, counted)
