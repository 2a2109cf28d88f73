"""One host process of this owner: the supervised child that runs it, its socket, and when it can be used."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from pathlib import Path

from mloc_prefect.errors import DispatchError
from mloc_prefect.execution.host_types import HOST_CONFIG, Host, HostExit, HostSpec, loaded_mark
from mloc_prefect.execution.hosts.host_environment import child_environment
from mloc_prefect.process.backoff import Backoff
from mloc_prefect.process.child import rotate_log
from mloc_prefect.process.log_tail import last_words, log_tail
from mloc_prefect.process.marks import HOST_TITLE
from mloc_prefect.process.supervised_child import END_SECONDS, CommandExit, SupervisedChild

_CODE = "from mloc_prefect.execution.host.main import main; main()"
_LISTENING = Backoff(first=0.004, most=0.1, factor=1.2)


class SupervisedHost:
    """One host process and its supervisor. Bound to the event loop that starts it.

    Args:
        spec: What to run.
        key: Name of the host; unique among those alive.
        run_dir: Directory for its socket and log.
        idle_seconds: Idle time after which it leaves; 0 = after its first task.
        end_seconds: How long its end may take before its supervisor is killed.

    Attributes:
        last_used: Monotonic time of the last acquisition.
        asleep: It has given back the memory of its device, and takes it again with its next task.
    """

    def __init__(
        self, spec: HostSpec, key: str, run_dir: Path, *, idle_seconds: float, end_seconds: float = END_SECONDS
    ) -> None:
        self.spec = spec
        self.key = key
        self.last_used = time.monotonic()
        self.asleep = False
        self._run_dir = run_dir
        self._idle_seconds = idle_seconds
        self._end_seconds = end_seconds
        self._socket = run_dir / f"{secrets.token_hex(4)}.sock"  # short: 107 bytes is all that a path may have
        self._log = run_dir / f"{key}.log"
        self._child: SupervisedChild | None = None
        self._ending = False
        self._exit: HostExit | None = None

    @property
    def pid(self) -> int | None:
        """Process of the host, once known."""
        return self._child.pid if self._child else None

    @property
    def socket(self) -> str | None:
        """Its socket, once it listens."""
        return str(self._socket) if self._socket.exists() else None

    @property
    def loaded(self) -> bool:
        """Whether it reports that its model is loaded; false while it loads one, and after that failed."""
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
            child = self._spawn()
            pid = await self._listening(child, seconds)
        except BaseException:
            await self.end()
            raise
        return Host(key=self.key, socket=str(self._socket), pid=pid, log=str(self._log))

    async def end(self) -> HostExit:
        """End the host now, with all its descendants."""
        self._ending = True
        if self._child is not None:
            await self._child.end()
        return self._exit or HostExit(None, "SIGKILL", log_tail=log_tail(self._log))

    async def exited(self) -> HostExit:
        """Wait until the host process has ended; its descendants may take a moment longer."""
        assert self._child is not None, "start() comes first"
        await self._child.exited()
        assert self._exit is not None
        return self._exit

    async def wait_gone(self) -> None:
        """Wait until nothing of the host is left."""
        assert self._child is not None, "start() comes first"
        await self._child.wait_gone()

    def _spawn(self) -> SupervisedChild:
        if not (Path(self.spec.python).is_file() and os.access(self.spec.python, os.X_OK)):
            hint = "check MLOC_PYTHON, or make the environment again"
            raise DispatchError(f"there is no Python interpreter at {self.spec.python}", hint=hint)
        rotate_log(self._log)
        child = SupervisedChild(
            [self.spec.python, "-P", "-c", _CODE, HOST_TITLE, self.spec.executor],
            title=f"host {self.key}",
            env=self._environment(),
            log=self._log,
            run_dir=self._run_dir,
            cwd=self._run_dir,
            end_seconds=self._end_seconds,
            on_exit=self._note_exit,
            on_gone=self._remove_files,
        )
        child.start()
        self._child = child
        return child

    def _environment(self) -> dict[str, str]:
        config = {
            "socket": str(self._socket),
            "executor": self.spec.executor,
            "options": self.spec.options,
            "idle_seconds": self._idle_seconds,
        }
        return {**child_environment(self.spec, self._run_dir), HOST_CONFIG: json.dumps(config)}

    async def _listening(self, child: SupervisedChild, seconds: float) -> int:
        """Wait until the host listens; return its process."""
        deadline = time.monotonic() + seconds
        for pause in _LISTENING:
            if child.pid is not None and self._socket.exists():
                return child.pid
            if child.is_over:
                raise DispatchError(self._failure_text(child), hint=f"its output is in {self._log}")
            if time.monotonic() > deadline:
                message = f"the executor process did not listen within {seconds:g} s"
                raise DispatchError(message, hint="raise MLOC_HOST_START_SECONDS if this machine is just slow")
            await asyncio.sleep(pause)
        raise AssertionError("the waits have no end")

    def _failure_text(self, child: SupervisedChild) -> str:
        if child.failure:
            return f"the executor process did not start: {child.failure}"
        last = last_words(self._log)
        return f"the executor process ended before it listened: {last[0] if last else 'no output'}"

    def _note_exit(self, how: CommandExit) -> None:
        self._exit = HostExit(how.code, how.signal, how.oom, log_tail(self._log))

    def _remove_files(self) -> None:
        self._socket.unlink(missing_ok=True)
        loaded_mark(self._socket).unlink(missing_ok=True)
        self._socket.with_name(self._socket.name + ".new").unlink(missing_ok=True)
