"""Logging and shutdown by signal, for `serve`, `bridge` and `worker start`."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from typing import TYPE_CHECKING, Any

from mloc_prefect.diagnostics.printable_logging import PrintableFormatter, log_printable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from mloc_prefect.settings import MlocSettings

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_TIME = "%H:%M:%S"
_CHATTY = ("httpx", "httpcore", "asyncio", "multipart", "uvicorn")


def log_to_stderr(settings: MlocSettings) -> None:
    """Log to standard error, and to the setting `log_file` if set, from `log_level` on."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if settings.log_file is not None:
        path = settings.log_file.expanduser().absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(
            RotatingFileHandler(
                path, maxBytes=settings.log_max_bytes, backupCount=settings.log_backup_count, encoding="utf-8"
            )
        )
    log_printable()
    for handler in handlers:
        handler.setFormatter(PrintableFormatter(_FORMAT, _TIME))
        handler.setLevel(settings.log_level)  # Prefect's loggers set their own levels
    logging.basicConfig(level=settings.log_level, handlers=handlers, force=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))


def run_until_signalled(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `main()` until it ends or SIGTERM or SIGINT cancels it; a second signal kills the process.

    Installs its own handler of SIGINT, because a shell starts `command &` with that signal ignored.
    """

    async def run() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop() -> None:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL)
            task.cancel()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        with suppress(asyncio.CancelledError):
            await main()

    asyncio.run(run())
