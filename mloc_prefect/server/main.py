"""Serving the endpoint: `python -m mloc_prefect.server`, and what `mloc serve` runs."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from mloc_prefect.artifacts.private_files import keep_private
from mloc_prefect.diagnostics.printable_logging import log_printable
from mloc_prefect.errors import DispatchError, MissingExtraError, MlocError
from mloc_prefect.server.connections import (
    ConnectionGuard,
    ConnectionLimits,
    guarded_protocol,
    raise_file_limit,
)
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
    log_printable()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # broken forms are answered, not logged
    try:
        settings = get_settings()
        keep_private(settings)
        run(settings, on_ready=lambda url: _print_line(sys.stdout, f"mloc endpoint listening on {url}"))
    except MlocError as error:
        _print_line(sys.stderr, f"error: {error}")
        return error.exit_code
    return 0


def _print_line(stream: TextIO, text: str) -> None:
    stream.write(f"{text}\n")
    stream.flush()


def run(settings: MlocSettings, *, on_ready: Callable[[str], None] | None = None) -> None:
    """Serve in a new event loop; see `serve`."""
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
        on_ready: Called with the URL once requests are accepted.

    Raises:
        DispatchError: No Redis is configured, or the address is not available.
        MissingExtraError: The extra `server` is not installed.
    """
    if settings.redis_url is None:
        raise DispatchError(
            "the endpoint needs Redis, and none is configured",
            hint="set REDIS_URL, e.g. redis://localhost:6379/0, or start everything with `mloc up`",
        )
    try:
        from mloc_prefect.server.application import create_app
    except ImportError as error:
        raise MissingExtraError(
            f"the endpoint needs {error.name}", hint="install mloc-prefect[server,redis]"
        ) from error
    from mloc_prefect.server import bind
    from mloc_prefect.store.backends import open_stores

    host = bind.address(settings)
    guard = ConnectionGuard(ConnectionLimits.of(settings, raise_file_limit()))
    stores = open_stores(settings.redis_url)
    try:
        listener = bind.bind(host, settings.port)
        await _serve(create_app(stores, settings), listener, bind.url_of(listener), guard, on_ready)
    finally:
        await stores.close()


async def _serve(
    app: FastAPI, listener: socket.socket, url: str, guard: ConnectionGuard, on_ready: Callable[[str], None] | None
) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        """A uvicorn server that ends the streams with the first signal; otherwise it would wait for them."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(app.state.endpoint.stopping.set)
            super().handle_exit(sig, frame)

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """Handle signals without raising them again at the end, so that the process exits cleanly."""
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
            gc.freeze()  # imported modules are never freed; scanning them repeatedly would take a tenth of the time
            if on_ready is not None and self.started:
                on_ready(url)

    loop = asyncio.get_running_loop()
    config = uvicorn.Config(
        app,
        http=guarded_protocol(guard),
        ws="none",  # no route is a websocket, and an upgraded connection would leave the guard
        backlog=guard.limits.backlog,
        log_config=None,
        access_log=False,
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    sweeping = asyncio.create_task(guard.sweep_regularly())
    try:
        await Server(config).serve(sockets=[listener])
    finally:
        sweeping.cancel()
