"""The embedded Prefect server as a process: `python -m mloc_prefect.prefect_ext.server.main OPTIONS-AS-JSON`.

Its owner (`prefect_ext.server.embedded`) holds the other end of the lifeline pipe; the server ends when that end
closes, however the owner ended.
"""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mloc_prefect.process.exposure import LOOPBACK, local_name
from mloc_prefect.process.free_port import listen, listen_near
from mloc_prefect.process.lock_file import LockFile
from mloc_prefect.process.state_file import StateFile

if TYPE_CHECKING:
    import socket

    from uvicorn import Server

_PORTS_TRIED = 20
_GRACE_SECONDS = 3.0
_CUT_OFF = "timeout graceful shutdown exceeded"
_PREDECESSOR_SECONDS = 8.0  # a server whose owner was killed may need its grace before it ends


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What the owner hands to the server process as its argument.

    Attributes:
        home: `PREFECT_HOME` of the server; made when it is not there.
        port: Wanted port.
        lifeline: Read end of the owner's pipe.
        state_file: Where the server writes `{"pid", "port", "started", "host"}` once it answers.
        host: Address to listen on.
        exact: Take that port or none; else another free one is taken when it is in use.
        names: Further host names under which the server is reached.
        automations: Whether it evaluates triggers and carries out their actions.
    """

    home: str
    port: int
    lifeline: int
    state_file: str
    host: str = LOOPBACK
    exact: bool = False
    names: tuple[str, ...] = ()
    automations: bool = False

    def to_argument(self) -> str:
        """Return the command-line argument."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class Private:
    """What the owner hands over on standard input, where no list of processes shows it.

    Attributes:
        auth: `user:password` that every request must carry, or None for an open API.
        messaging_url: Redis that events go through, or None for memory.
        docket_url: Redis of the server's background jobs, or None for memory.
    """

    auth: str | None = None
    messaging_url: str | None = None
    docket_url: str | None = None

    def to_input(self) -> bytes:
        """Return what to write to the server's standard input."""
        return json.dumps(asdict(self)).encode()

    def variables(self) -> dict[str, str]:
        """Return the Prefect settings that follow from these."""
        found = {}
        if self.auth:
            found["PREFECT_SERVER_API_AUTH_STRING"] = self.auth
        if self.messaging_url:
            found |= {
                "PREFECT_SERVER_EVENTS_MESSAGING_BROKER": "prefect_redis.messaging",
                "PREFECT_SERVER_EVENTS_MESSAGING_CACHE": "prefect_redis.messaging",
                "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
                "PREFECT_REDIS_MESSAGING_URL": self.messaging_url,
            }
        if self.docket_url:
            found["PREFECT_SERVER_DOCKET_URL"] = self.docket_url
        return found


def main() -> None:
    """Serve until the owner has ended or cuts the lifeline."""
    options = ServerOptions(**json.loads(sys.argv[1]))
    private = Private(**json.loads(sys.stdin.read() or "{}"))
    try:
        _claim(Path(options.home))
        sock = _listen(options)
    except OSError as error:
        sys.exit(f"cannot serve on {options.host}:{options.port}: {error.strerror}")
    port = sock.getsockname()[1]
    _configure(options, private, port)
    gc.disable()  # importing the server makes 10^6 objects that all stay
    server = _server(options, port)
    gc.collect()
    gc.freeze()
    gc.enable()
    threading.Thread(target=_follow_owner, args=(options.lifeline, server), daemon=True).start()
    server.run(sockets=[sock])


def _listen(options: ServerOptions) -> socket.socket:
    if options.exact:
        return listen(options.host, options.port)
    return listen_near(options.host, options.port, tried=_PORTS_TRIED)


def _claim(home: Path) -> None:
    """Lock the database for this process: two servers on one SQLite file would do every background job twice.

    Raises:
        OSError: Another server has it.
    """
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not LockFile(home / "server.lock").acquire(seconds=_PREDECESSOR_SECONDS):  # lasts as long as this process
        raise OSError(errno.EBUSY, f"another embedded Prefect server uses {home} (see `mloc ps`)")


def _configure(options: ServerOptions, private: Private, port: int) -> None:
    """Set this process's Prefect settings; nothing of the user's own Prefect profile applies here."""
    url = f"http://{local_name(options.host)}:{port}"
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        del os.environ[name]
    os.environ |= {
        "PREFECT_HOME": options.home,
        "PREFECT_SERVER_API_HOST": options.host,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_UI_URL": url,
        "PREFECT_UI_API_URL": "/api",  # whatever name a browser knows this server by; pages of others get no answer
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_COLORS": "false",
        "PREFECT_API_DATABASE_MIGRATE_ON_START": str(not _is_migrated(options)).lower(),
        # No pauses are made here; the other services (scheduler, late runs, event persister, task run recorder, worker
        # status, clean-up of cancelled subflows) are what deployments on this server rely on.
        # The clean-up reads three rows for every run below another, each time: with a thousand of them its default
        # interval of 20 s leaves the server no time. Our coordinators end the runs below them themselves.
        "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_LOOP_SECONDS": "300",
        "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": str(options.automations).lower(),
        "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_ENABLED": "false",
        **private.variables(),
    }
    server_files = Path(str(find_spec("prefect").origin)).parent / "server"  # type: ignore[union-attr] # a dependency
    if not os.access(server_files, os.W_OK):  # where Prefect would unpack its pages
        os.environ["PREFECT_UI_STATIC_DIRECTORY"] = str(Path(options.home) / "ui")


def _server(options: ServerOptions, port: int) -> Server:
    """Build Prefect's app on our database configuration; imports happen here, after the settings are in place."""
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

    from mloc_prefect.prefect_ext.server.login_page import serve_login_page
    from mloc_prefect.prefect_ext.server.redis_errors import answer_503_without_redis
    from mloc_prefect.prefect_ext.server.site_guard import SiteGuard
    from mloc_prefect.prefect_ext.server.sqlite import install

    class AnnouncingServer(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                _marker(options).write_text(version("prefect"))
                facts = {"pid": os.getpid(), "port": port, "started": time.time(), "host": local_name(options.host)}
                StateFile(Path(options.state_file)).write(facts)

    install(PREFECT_API_DATABASE_CONNECTION_URL.value())
    app = create_app(final=True)
    if "PREFECT_REDIS_MESSAGING_URL" in os.environ:
        answer_503_without_redis(app)
    serve_login_page(app)
    guarded = SiteGuard(app, options.host, options.names)
    config = uvicorn.Config(guarded, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=1)
    logging.getLogger("uvicorn.error").addFilter(_is_no_cut_stream)
    return AnnouncingServer(config)


def _is_no_cut_stream(record: logging.LogRecord) -> bool:
    """Filter out uvicorn's tracebacks of streams that it cuts off at the end: these have no other end."""
    error = record.exc_info[1] if record.exc_info else None
    return _CUT_OFF not in record.getMessage() and _CUT_OFF not in str(error)


def _marker(options: ServerOptions) -> Path:
    """Return the file that names the Prefect version whose migrations the database has; to migrate takes seconds."""
    return Path(options.home) / "migrated"


def _is_migrated(options: ServerOptions) -> bool:
    marker = _marker(options)
    database = Path(options.home) / "prefect.db"
    return database.is_file() and marker.is_file() and marker.read_text() == version("prefect")


def _follow_owner(lifeline: int, server: Server) -> None:
    """End the server when the owner's end of the pipe closes; by force if it does not end in time."""
    while os.read(lifeline, 1):
        pass
    server.should_exit = True
    time.sleep(_GRACE_SECONDS)
    os._exit(0)


if __name__ == "__main__":
    main()
