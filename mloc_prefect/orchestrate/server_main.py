"""The embedded Prefect server as a process: `python -m mloc_prefect.orchestrate.server_main OPTIONS-AS-JSON`.

Its owner (`orchestrate.embedded`) holds the other end of the lifeline pipe; the server ends when that end closes,
however the owner ended.
"""

from __future__ import annotations

import errno
import gc
import json
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


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What the owner tells the server process.

    Attributes:
        home: `PREFECT_HOME` of the server; made when it is not there.
        port: Wanted port.
        lifeline: Read end of the owner's pipe.
        state_file: Where the server writes `{"pid", "port", "started"}` once it answers.
    """

    home: str
    port: int
    lifeline: int
    state_file: str

    def to_argument(self) -> str:
        """Return the command-line argument."""
        return json.dumps(asdict(self))


def listen(wanted: int) -> socket.socket:
    """Return a listening socket on the loopback: the wanted port, else one of the next, else any free one.

    The socket is bound *and* listening before anybody hears of its port, so no other process can take it meanwhile.
    """
    for port in (*range(wanted, min(wanted + _PORTS_TRIED, 65536)), 0):
        # asyncio turns Nagle's delay off (TCP_NODELAY) only where the protocol is named, 0 is not enough.
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
            sock.listen(2048)
        except OSError as error:
            sock.close()
            if error.errno not in {errno.EADDRINUSE, errno.EACCES}:
                raise
        else:
            return sock
    raise OSError(errno.EADDRINUSE, "no free port on the loopback interface")


def main() -> None:
    """Serve until told to stop or the owner is gone."""
    options = ServerOptions(**json.loads(sys.argv[1]))
    sock = listen(options.port)
    port = sock.getsockname()[1]
    _configure(options, port)
    gc.disable()  # importing the server makes 10^6 objects that all stay
    server = _server(options, port)
    gc.collect()
    gc.freeze()
    gc.enable()
    threading.Thread(target=_follow_owner, args=(options.lifeline, server), daemon=True).start()
    server.run(sockets=[sock])


def _configure(options: ServerOptions, port: int) -> None:
    """Set this process's Prefect settings; nothing of the user's own Prefect profile applies here."""
    Path(options.home).mkdir(parents=True, exist_ok=True, mode=0o700)
    url = f"http://{HOST}:{port}"
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        del os.environ[name]
    os.environ |= {
        "PREFECT_HOME": options.home,
        "PREFECT_SERVER_API_HOST": HOST,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_UI_URL": url,
        "PREFECT_UI_API_URL": f"{url}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_COLORS": "false",
        "PREFECT_API_DATABASE_MIGRATE_ON_START": str(not _is_migrated(options)).lower(),
        # Nothing here makes automations or pauses; the rest (scheduler, late runs, event persister, task run recorder,
        # worker status, clean-up of cancelled subflows) is what a deployment on this server relies on.
        "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_ENABLED": "false",
    }
    server_files = Path(str(find_spec("prefect").origin)).parent / "server"  # type: ignore[union-attr] # a dependency
    if not os.access(server_files, os.W_OK):  # where Prefect would unpack its pages
        os.environ["PREFECT_UI_STATIC_DIRECTORY"] = str(Path(options.home) / "ui")


def _server(options: ServerOptions, port: int) -> Server:
    """Build Prefect's app on our database configuration; imports happen here, after the settings are in place."""
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

    from mloc_prefect.orchestrate.sqlite import install

    class AnnouncingServer(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                _marker(options).write_text(version("prefect"))
                _write_state(Path(options.state_file), port)

    install(PREFECT_API_DATABASE_CONNECTION_URL.value())
    config = uvicorn.Config(
        create_app(final=True), log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=1
    )
    return AnnouncingServer(config)


def _marker(options: ServerOptions) -> Path:
    """The file that names the Prefect version whose migrations this database has; migrating anew takes seconds."""
    return Path(options.home) / "migrated"


def _is_migrated(options: ServerOptions) -> bool:
    marker = _marker(options)
    database = Path(options.home) / "prefect.db"
    return database.is_file() and marker.is_file() and marker.read_text() == version("prefect")


def _write_state(path: Path, port: int) -> None:
    """Announce the server: written beside and renamed, so that a reader sees all of it or nothing."""
    new = path.with_suffix(f".{os.getpid()}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({"pid": os.getpid(), "port": port, "started": time.time()}, file)
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
