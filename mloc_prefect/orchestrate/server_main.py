"""The embedded Prefect server as a process: `python -m mloc_prefect.orchestrate.server_main OPTIONS-AS-JSON`.

Its owner (`orchestrate.embedded`) holds the other end of the lifeline pipe; the server ends when that end closes,
however the owner ended.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import logging
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uvicorn import Server

HOST = "127.0.0.1"
_PORTS_TRIED = 20
_GRACE_SECONDS = 3.0
_CUT_OFF = "timeout graceful shutdown exceeded"
_PREDECESSOR_SECONDS = 8.0  # a server whose owner was killed may need its grace before it lets go


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What the owner tells the server process.

    Attributes:
        home: `PREFECT_HOME` of the server; made when it is not there.
        port: Wanted port.
        lifeline: Read end of the owner's pipe.
        state_file: Where the server writes `{"pid", "port", "started", "host"}` once it answers.
        host: Address to listen on.
        exact: Take that port or none; else another free one is taken when it is in use.
    """

    home: str
    port: int
    lifeline: int
    state_file: str
    host: str = HOST
    exact: bool = False

    def to_argument(self) -> str:
        """Return the command-line argument."""
        return json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class Private:
    """What the owner tells on standard input, where no list of processes shows it.

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
        """Return the Prefect settings that these make."""
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


def listen(wanted: int, host: str = HOST, *, exact: bool = False) -> socket.socket:
    """Return a listening socket: the wanted port, else (unless `exact`) one of the next, else any free one.

    The socket is bound *and* listening before anybody hears of its port, so no other process can take it meanwhile.

    Raises:
        OSError: No such port is free, or `host` is no address of this machine.
    """
    following = () if exact else (*range(wanted + 1, min(wanted + _PORTS_TRIED, 65536)), 0)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in (wanted, *following):
        # asyncio turns Nagle's delay off (TCP_NODELAY) only where the protocol is named, 0 is not enough.
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
            sock.listen(2048)
        except OSError as error:
            sock.close()
            if exact or error.errno not in {errno.EADDRINUSE, errno.EACCES}:
                raise
        else:
            return sock
    raise OSError(errno.EADDRINUSE, f"no free port on {host}")


def local_address(host: str) -> str:
    """Return where a client on this machine finds what listens on `host`, in the form that URLs want."""
    if host in {"0.0.0.0", "::", ""}:  # noqa: S104  # compared, not bound
        return HOST
    return f"[{host}]" if ":" in host else host


def main() -> None:
    """Serve until told to stop or the owner is gone."""
    options = ServerOptions(**json.loads(sys.argv[1]))
    private = Private(**json.loads(sys.stdin.read() or "{}"))
    try:
        _claim(Path(options.home))
        sock = listen(options.port, options.host, exact=options.exact)
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


def _claim(home: Path) -> None:
    """Lock the database for this process: two servers on one SQLite file would do every background job twice.

    Raises:
        OSError: Another server has it.
    """
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(home / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)  # never closed: it lasts as long as we do
    deadline = time.monotonic() + _PREDECESSOR_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                message = f"another embedded Prefect server uses {home} (see `mloc ps`)"
                raise OSError(errno.EBUSY, message) from None
            time.sleep(0.05)
        else:
            return


def _configure(options: ServerOptions, private: Private, port: int) -> None:
    """Set this process's Prefect settings; nothing of the user's own Prefect profile applies here."""
    url = f"http://{local_address(options.host)}:{port}"
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        del os.environ[name]
    os.environ |= {
        "PREFECT_HOME": options.home,
        "PREFECT_SERVER_API_HOST": options.host,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_UI_URL": url,
        # a browser on another machine knows this server by another name than we do
        "PREFECT_UI_API_URL": f"{url}/api" if options.host == HOST else "/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_COLORS": "false",
        "PREFECT_API_DATABASE_MIGRATE_ON_START": str(not _is_migrated(options)).lower(),
        # Nothing here makes automations or pauses; the rest (scheduler, late runs, event persister, task run recorder,
        # worker status, clean-up of cancelled subflows) is what a deployment on this server relies on.
        # It reads three rows for every run that waits or runs below another, each time: with a thousand of them its
        # default of 20 s leaves the server no time. Our coordinators end what is below them themselves.
        "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_LOOP_SECONDS": "300",
        "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
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

    from mloc_prefect.orchestrate.server_redis import answer_503_without_redis
    from mloc_prefect.orchestrate.sqlite import install

    class AnnouncingServer(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                _marker(options).write_text(version("prefect"))
                _write_state(Path(options.state_file), port, local_address(options.host))

    install(PREFECT_API_DATABASE_CONNECTION_URL.value())
    app = create_app(final=True)
    if "PREFECT_REDIS_MESSAGING_URL" in os.environ:
        answer_503_without_redis(app)
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=1)
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    return AnnouncingServer(config)


def _is_news(record: logging.LogRecord) -> bool:
    """Leave out what uvicorn says, with a traceback each, of streams that it cuts off: these have no other end."""
    error = record.exc_info[1] if record.exc_info else None
    return _CUT_OFF not in record.getMessage() and _CUT_OFF not in str(error)


def _marker(options: ServerOptions) -> Path:
    """The file that names the Prefect version whose migrations this database has; migrating anew takes seconds."""
    return Path(options.home) / "migrated"


def _is_migrated(options: ServerOptions) -> bool:
    marker = _marker(options)
    database = Path(options.home) / "prefect.db"
    return database.is_file() and marker.is_file() and marker.read_text() == version("prefect")


def _write_state(path: Path, port: int, host: str) -> None:
    """Announce the server: written beside and renamed, so that a reader sees all of it or nothing."""
    new = path.with_suffix(f".{os.getpid()}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({"pid": os.getpid(), "port": port, "started": time.time(), "host": host}, file)
    new.replace(path)


def _follow_owner(lifeline: int, server: Server) -> None:
    """End the server when the owner's end of the pipe closes; by force if it does not end in time."""
    while os.read(lifeline, 1):
        pass
    server.should_exit = True
    time.sleep(_GRACE_SECONDS)
    os._exit(0)


if __name__ == "__main__":
    main()
