"""`python -m mloc_prefect.server`: the endpoint as a process of its own. `mloc serve` and `mloc up` start it, too."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from mloc_prefect.errors import DispatchError, MissingExtraError, MlocError
from mloc_prefect.settings import get_settings

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from types import FrameType

    from fastapi import FastAPI

    from mloc_prefect.settings import MlocSettings

_log = logging.getLogger(__name__)
_SHUTDOWN_SECONDS = 5  # for requests that are being answered


def main() -> int:
    """Serve until SIGTERM or SIGINT; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # broken forms are answered, not logged
    try:
        settings = get_settings()
        run(settings, on_ready=lambda url: _tell(sys.stdout, f"mloc endpoint listening on {url}"))
    except MlocError as error:
        _tell(sys.stderr, f"error: {error}")
        return error.exit_code
    return 0


def _tell(stream: TextIO, text: str) -> None:
    stream.write(f"{text}\n")
    stream.flush()


def run(settings: MlocSettings, *, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve in an event loop of its own; see `serve`."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(settings, on_ready=on_ready))
    else:
        uvloop.run(serve(settings, on_ready=on_ready))


async def serve(settings: MlocSettings, *, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, which also end the streams.

    Args:
        settings: Redis, token, address, results root.
        on_ready: Called with the URL once requests are taken.

    Raises:
        DispatchError: No Redis is named, or the address cannot be had.
        MissingExtraError: The extra `server` is not installed.
    """
    if settings.redis_url is None:
        raise DispatchError(
            "the endpoint needs Redis, and none is named",
            hint="set REDIS_URL, e.g. redis://localhost:6379/0, or start everything with `mloc up`",
        )
    try:
        from mloc_prefect.server.app import create_app
    except ImportError as error:
        raise MissingExtraError(
            f"the endpoint needs {error.name}", hint="install mloc-prefect[server,redis]"
        ) from error
    from mloc_prefect.bridge.stores import open_stores
    from mloc_prefect.server import listen

    host = listen.address(settings)
    stores = open_stores(settings.redis_url)
    try:
        listener = listen.bind(host, settings.port)
        await _serve(create_app(stores, settings), listener, listen.url_of(listener), on_ready)
    finally:
        await stores.close()


async def _serve(app: FastAPI, listener: socket.socket, url: str, on_ready: Callable[[str], None] | None) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        """Ends the streams with the first signal: the server waits for them otherwise."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(app.state.endpoint.stopping.set)
            super().handle_exit(sig, frame)

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Take signals without raising them again at the end: this process ends cleanly then."""
            signals = (signal.SIGINT, signal.SIGTERM)
            before = {number: signal.signal(number, self.handle_exit) for number in signals}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            gc.collect()
            gc.freeze()  # what was imported stays; looking through it again and again would take a tenth of the time
            if on_ready is not None and self.started:
                on_ready(url)

    loop = asyncio.get_running_loop()
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    await Server(config).serve(sockets=[listener])
