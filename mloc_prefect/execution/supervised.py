"""The owner's side of one host: its supervisor, the lifeline to it, and the news from it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from weakref import WeakSet

from mloc_prefect.errors import DispatchError
from mloc_prefect.execution import supervisor
from mloc_prefect.execution.childenv import child_environment
from mloc_prefect.execution.host import CONFIG
from mloc_prefect.execution.hosttypes import Host, HostExit, HostSpec, loaded_mark, log_tail
from mloc_prefect.execution.owners import new_mark

logger = logging.getLogger(__name__)

END_SECONDS = 15.0
"""How long the end of a host may take before its supervisor is taken to be stuck."""

_CODE = "from mloc_prefect.execution.host import main; main()"

_lifelines: WeakSet[SupervisedHost] = WeakSet()


class SupervisedHost:
    """One host process and its supervisor. Bound to the event loop that starts it.

    Args:
        spec: What to run.
        key: Name of the host; unique among those alive.
        run_dir: Directory for its socket and log.
        idle_seconds: Idle time after which it leaves; 0 = after its first task.

    Attributes:
        started: Monotonic time of the start.
        last_used: Monotonic time of the last acquisition.
        asleep: It has given back the memory of its device, and takes it again with its next task.
    """

    def __init__(self, spec: HostSpec, key: str, run_dir: Path, *, idle_seconds: float) -> None:
        self.spec = spec
        self.key = key
        self.last_used = time.monotonic()
        self.asleep = False
        self._run_dir = run_dir
        self._idle_seconds = idle_seconds
        self._socket = run_dir / f"{secrets.token_hex(4)}.sock"  # short: 107 bytes is all that a path may have
        self._log = run_dir / f"{key}.log"
        self._mark = new_mark(run_dir)
        self._lifeline: int | None = None
        self._status: int | None = None
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._pid: int | None = None
        self._ending = False
        self._failed: str | None = None
        self._exit: HostExit | None = None
        self._exited = asyncio.Event()
        self._gone = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Process of the host, once known."""
        return self._pid

    @property
    def socket(self) -> str | None:
        """Its socket, once it listens."""
        return str(self._socket) if self._socket.exists() else None

    @property
    def loaded(self) -> bool:
        """Whether it says that its model is loaded; false while it loads one, and after that failed."""
        return loaded_mark(self._socket).exists()

    @property
    def usable(self) -> bool:
        """Whether it has not ended and is not about to; a host that leaves removes its socket first."""
        return self._exit is None and not self._ending and self._socket.exists()

    async def start(self, seconds: float) -> Host:
        """Start the host and return it when it listens.

        Raises:
            DispatchError: It ended, or did not listen within `seconds`; nothing of it is left then.
        """
        try:
            self._spawn()
            await self._listening(seconds)
        except BaseException:
            await self.end()
            raise
        assert self._pid is not None
        return Host(key=self.key, socket=str(self._socket), pid=self._pid, log=str(self._log))

    async def end(self) -> HostExit:
        """End the host now, with all its descendants."""
        self._ending = True
        self._cut_lifeline()
        if self._status is not None or self._closing is not None:
            try:
                await asyncio.wait_for(self._gone.wait(), END_SECONDS)
            except TimeoutError:
                logger.warning("the supervisor of host %s does not end, killing it", self.key)
                assert self._supervisor is not None
                self._supervisor.kill()
                await self._gone.wait()
        return self._exit or HostExit(None, "SIGKILL", log_tail=log_tail(self._log))

    async def exited(self) -> HostExit:
        """Wait until the host process has ended; its descendants may take a moment longer."""
        await self._exited.wait()
        assert self._exit is not None
        return self._exit

    async def wait_gone(self) -> None:
        """Wait until nothing of the host is left."""
        await self._gone.wait()

    def _spawn(self) -> None:
        if not (Path(self.spec.python).is_file() and os.access(self.spec.python, os.X_OK)):
            hint = "check MLOC_PYTHON, or make the environment again"
            raise DispatchError(f"there is no Python interpreter at {self.spec.python}", hint=hint)
        if self._log.exists():
            self._log.replace(self._log.with_suffix(".log.1"))
        environment = self._environment()
        lifeline, self._lifeline = os.pipe()
        self._status, status = os.pipe()
        os.set_blocking(self._status, False)
        _lifelines.add(self)
        try:
            self._supervisor = self._popen(lifeline, status, environment)
        except OSError as error:
            os.close(self._status)
            self._status = None
            raise DispatchError(f"no process could be started: {error.strerror}") from error
        finally:
            os.close(lifeline)
            os.close(status)
        asyncio.get_running_loop().add_reader(self._status, self._news)

    def _popen(self, lifeline: int, status: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        config = {
            "argv": [self.spec.python, "-P", "-c", _CODE, "mloc-host", self.spec.executor],
            "log": str(self._log),
            "cwd": str(self._run_dir),
            "lifeline": lifeline,
            "status": status,
            "owner": os.getpid(),
        }
        return subprocess.Popen(
            [sys.executable, "-I", "-S", supervisor.__file__, json.dumps(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=environment,
            cwd=self._run_dir,
            pass_fds=(lifeline, status),
            start_new_session=True,  # Ctrl-C in the owner's terminal is the owner's matter
        )

    def _environment(self) -> dict[str, str]:
        config = {
            "socket": str(self._socket),
            "executor": self.spec.executor,
            "options": self.spec.options,
            "idle_seconds": self._idle_seconds,
        }
        return {
            **child_environment(self.spec, self._run_dir),
            supervisor.MARK: self._mark,
            CONFIG: json.dumps(config),
        }

    async def _listening(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        pause = 0.004
        while self._pid is None or not self._socket.exists():
            if self._exited.is_set() or self._gone.is_set():
                raise DispatchError(self._why_not(), hint=f"its output is in {self._log}")
            if time.monotonic() > deadline:
                message = f"the executor process did not listen within {seconds:g} s"
                raise DispatchError(message, hint="raise MLOC_HOST_START_SECONDS if this machine is just slow")
            await asyncio.sleep(pause)
            pause = min(pause * 1.2, 0.1)

    def _why_not(self) -> str:
        if self._failed:
            return f"the executor process did not start: {self._failed}"
        last = log_tail(self._log, lines=1)
        return f"the executor process ended before it listened: {last or 'no output'}"

    def _news(self) -> None:
        """Read what the supervisor says; end of file means that it has ended."""
        assert self._status is not None
        try:
            data = os.read(self._status, 65536)
        except BlockingIOError:
            return
        if not data:
            asyncio.get_running_loop().remove_reader(self._status)
            os.close(self._status)
            self._status = None
            self._closing = asyncio.create_task(self._close())
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        if "pid" in message:
            self._pid = message["pid"]
        if "failed" in message:
            self._failed = message["failed"]
        if "exit" in message:
            how = message["exit"]
            self._ended(HostExit(how["code"], how["signal"], how["oom"], log_tail(self._log)))

    def _ended(self, how: HostExit) -> None:
        self._exit = how
        self._exited.set()

    async def _close(self) -> None:
        """Clean up after the supervisor; if it was killed, its work is done here."""
        assert self._supervisor is not None
        code = await asyncio.to_thread(self._supervisor.wait)
        if self._exit is None:
            self._ended(HostExit(None, "SIGKILL", log_tail=log_tail(self._log)))
        if code != 0:
            logger.warning("the supervisor of host %s was killed (%s), ending what it left", self.key, code)
            killed = await asyncio.to_thread(supervisor.kill_family, self._mark, session=self._pid, seconds=END_SECONDS)
            if not killed:
                logger.error("processes of host %s cannot be killed; their mark is %s", self.key, self._mark)
        self._cut_lifeline()
        self._socket.unlink(missing_ok=True)
        loaded_mark(self._socket).unlink(missing_ok=True)
        self._socket.with_name(self._socket.name + ".new").unlink(missing_ok=True)
        self._gone.set()

    def _cut_lifeline(self) -> None:
        lifeline, self._lifeline = self._lifeline, None
        if lifeline is not None:
            os.close(lifeline)

    def forget_lifeline(self) -> None:
        """Close this process's copy of the lifeline; for a forked child, which is no owner."""
        self._cut_lifeline()


def _close_in_forked_child() -> None:
    for host in list(_lifelines):
        host.forget_lifeline()


os.register_at_fork(after_in_child=_close_in_forked_child)
