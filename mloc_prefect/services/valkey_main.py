"""The process between an owner and a Valkey server: `python -m mloc_prefect.services.valkey_main OPTIONS-AS-JSON`.

The owner (`services.valkey`) holds the other end of the lifeline pipe. When that end closes, however the owner ended,
the server is asked to end, and puts its log on disk first. When the server ends by itself, so does this process.
Standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mloc_prefect.process.atomic_file import write_whole
from mloc_prefect.process.free_port import is_free, ports_from
from mloc_prefect.process.lock_file import LockFile
from mloc_prefect.process.state_file import StateFile

_PORTS_TRIED = 20
_GRACE_SECONDS = 10.0
_TICK = 0.02
_PR_SET_PDEATHSIG = 1

_CONFIG = """\
# Written at each start.
bind {bind}
port {port}
requirepass {password}
dir {home}
daemonize no
logfile ""
loglevel notice
databases 16
appendonly yes
appendfsync {fsync}
save ""
maxmemory-policy noeviction
"""


@dataclass(frozen=True, slots=True)
class ValkeyOptions:
    """What the owner hands to this process.

    Attributes:
        home: Directory of the data.
        program: The server program.
        host: Address to listen on in addition to the loopback.
        port: Wanted port.
        exact: Take that port or fail.
        fsync: `everysec` or `always`.
        lifeline: Read end of the owner's pipe.
        state_file: Where `{"pid", "port", "started"}` is written once the server answers.
        password_file: File with the password.
        patience: Seconds that the server of a dead owner may need to end.
    """

    home: str
    program: str
    host: str
    port: int
    exact: bool
    fsync: str
    lifeline: int
    state_file: str
    password_file: str
    patience: float = 20.0


def main() -> int:
    """Run the server until it ends or its owner has ended; return the exit status."""
    options = ValkeyOptions(**json.loads(sys.argv[1]))
    awake = _wake_on_signals()
    try:
        lock = _claim(Path(options.home), options.lifeline, options.patience)
        server, port = _start(options, lock)
    except OSError as error:
        sys.stdout.write(f"{error.strerror or error}\n")
        return 1
    state = StateFile(Path(options.state_file))
    try:
        state.write({"pid": server.pid, "port": port, "started": time.time()})
        while server.poll() is None:
            ready, _, _ = select.select([options.lifeline, awake], [], [])
            if options.lifeline in ready or os.read(awake, 64).strip(bytes([signal.SIGCHLD])):
                break
        return _end(server)
    finally:
        state.remove()


def _claim(home: Path, lifeline: int, patience: float) -> LockFile:
    """Lock the data: two servers on one log would tear it. The server inherits the lock, and keeps it until it ends.

    Raises:
        OSError: Another server has it, or the owner has ended meanwhile.
    """
    lock = LockFile(home / "lock")
    if not lock.acquire(seconds=patience, given_up=lambda: _owner_ended(lifeline)):
        raise OSError(errno.EBUSY, f"another embedded Valkey uses {home}")
    return lock


def _start(options: ValkeyOptions, lock: LockFile) -> tuple[subprocess.Popen[bytes], int]:
    """Return the server, which answers, and its port.

    Raises:
        OSError: It did not start, or no port is free.
    """
    password = Path(options.password_file).read_text().strip()
    hosts = ["127.0.0.1"] if options.host in {"127.0.0.1", "localhost"} else ["127.0.0.1", options.host]
    if options.host in {"0.0.0.0", "::"}:  # noqa: S104  # compared, not bound; the wildcard is the loopback, too
        hosts = [options.host]
    for port in ports_from(options.port, 1 if options.exact else _PORTS_TRIED):
        if all(is_free(host, port) for host in hosts):
            server = _launch(options, lock, " ".join(hosts), port, password)
            if _answers(server, options, hosts[0], port, password):
                return server, port
            if all(is_free(host, port) for host in hosts):  # not the port: the log has the reason
                raise OSError(errno.EIO, f"the server program {options.program} ended with status {server.returncode}")
    raise OSError(errno.EADDRINUSE, f"port {options.port} of {' '.join(hosts)} is in use")


def _launch(options: ValkeyOptions, lock: LockFile, bind: str, port: int, password: str) -> subprocess.Popen[bytes]:
    config = Path(options.home) / "valkey.conf"
    quoted = json.dumps(options.home)
    text = _CONFIG.format(bind=bind, port=port, password=password, home=quoted, fsync=options.fsync)
    write_whole(config, text.encode())
    assert lock.descriptor is not None
    libc = ctypes.CDLL(None)

    def end_with_parent() -> None:
        # The second net, should this process be killed. There is one thread, so nothing can be locked here.
        if sys.platform == "linux":
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return subprocess.Popen(
        [options.program, str(config)],
        cwd=options.home,
        stdin=subprocess.DEVNULL,
        pass_fds=(lock.descriptor,),  # it stays locked until the server has ended, whatever happens to this process
        preexec_fn=end_with_parent,  # noqa: PLW1509
    )


def _answers(server: subprocess.Popen[bytes], options: ValkeyOptions, host: str, port: int, password: str) -> bool:
    """Wait until the server has loaded its log; returns False when it ended instead.

    Raises:
        OSError: The owner has ended meanwhile.
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    while server.poll() is None:
        with suppress(OSError), socket.create_connection((host, port), timeout=1.0) as client:
            # Another server on this port would not know the password; `-LOADING` comes while the log is read.
            client.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            answers = client.makefile("rb")
            if (answers.readline(), answers.readline()) == (b"+OK\r\n", b"+PONG\r\n"):
                return True
        if _owner_ended(options.lifeline):
            _end(server)
            raise OSError(errno.ECANCELED, "its owner ended while it started")
    return False


def _owner_ended(lifeline: int) -> bool:
    """Wait a moment for the end of the pipe."""
    return bool(select.select([lifeline], [], [], _TICK)[0])


def _wake_on_signals() -> int:
    """Return a pipe that gets the number of each signal: the end of the child, or a request to end."""
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write_end)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return read_end


def _end(server: subprocess.Popen[bytes]) -> int:
    """Let the server put its log on disk and end; returns its exit status, or 128 + the signal that ended it."""
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        return 0
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


if __name__ == "__main__":
    sys.exit(main())
