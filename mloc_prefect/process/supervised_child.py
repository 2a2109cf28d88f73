"""The owner's side of a command that runs below a supervisor. Standard library only.

The supervisor (`process.supervisor`) stands between the owner and the command, and ends the whole family of the command
when either of them ends. It reports on a status pipe what happens; this module reads that, and takes over when the
supervisor itself was killed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_prefect.errors import DispatchError
from mloc_prefect.process import supervisor
from mloc_prefect.process.child import Child
from mloc_prefect.process.marks import new_mark

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

END_SECONDS = 15.0
"""How long the end of a command and its family may take before its supervisor is taken to be stuck."""


@dataclass(frozen=True, slots=True)
class CommandExit:
    """How a command ended.

    Attributes:
        code: Exit status, or None when a signal ended it.
        signal: Name of that signal, or None.
        oom: Whether the kernel's OOM killer struck at that time.
    """

    code: int | None
    signal: str | None
    oom: bool = False

    def __str__(self) -> str:
        if self.oom:
            return "killed: the machine ran out of memory"
        return self.signal or f"exit status {self.code}"


class SupervisedChild:
    """A command between a lifeline and a log; when this process ends, however it ends, the command's family ends too.

    Bound to the event loop that starts it.

    Args:
        argv: The command.
        title: What messages call it.
        env: Its whole environment.
        log: File that its output is appended to.
        run_dir: Directory of running things of this `MLOC_HOME`.
        cwd: Its working directory.
        supervision: Further configuration of the supervisor, see there.
        end_seconds: How long its end may take before its supervisor is killed.
        on_exit: Called when the command itself has ended; its descendants may take a moment longer.
        on_gone: Called when nothing of it is left.

    Attributes:
        pid: Process of the command, once known.
        failure: Why the command could not be started, or None.
        how: How the command ended, or None.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        title: str,
        env: Mapping[str, str],
        log: Path,
        run_dir: Path,
        cwd: Path,
        supervision: Mapping[str, Any] | None = None,
        end_seconds: float = END_SECONDS,
        on_exit: Callable[[CommandExit], None] = lambda _how: None,
        on_gone: Callable[[], None] = lambda: None,
    ) -> None:
        self.pid: int | None = None
        self.failure: str | None = None
        self.how: CommandExit | None = None
        self._title = title
        self._config = {"argv": list(argv), "log": str(log), "cwd": str(cwd), **(supervision or {})}
        self._mark = new_mark(run_dir)
        self._env = {**env, supervisor.MARK: self._mark}
        self._cwd = cwd
        self._end_seconds = end_seconds
        self._on_exit = on_exit
        self._on_gone = on_gone
        self._supervisor = Child(grace=end_seconds)
        self._status: int | None = None
        self._buffer = b""
        self._exited = asyncio.Event()
        self._gone = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None

    @property
    def ending(self) -> str:
        """How it ended, as text; empty while it runs."""
        return self.failure or (str(self.how) if self.how else "")

    @property
    def is_over(self) -> bool:
        """Whether the command has ended or was never started."""
        return self._exited.is_set() or self._gone.is_set()

    def start(self) -> None:
        """Start the supervisor and, through it, the command; `pid` follows.

        Raises:
            DispatchError: No process can be started.
        """
        self._status, status = os.pipe()
        os.set_blocking(self._status, False)
        config = {**self._config, "status": status, "owner": os.getpid()}

        def command(lifeline: int) -> list[str]:
            return [sys.executable, "-I", "-S", supervisor.__file__, json.dumps({**config, "lifeline": lifeline})]

        try:
            self._supervisor.spawn(command, env=self._env, cwd=self._cwd, pass_fds=(status,))
        except OSError as error:
            os.close(self._status)
            self._status = None
            raise DispatchError(f"no process could be started: {error.strerror}") from error
        finally:
            os.close(status)
        asyncio.get_running_loop().add_reader(self._status, self._read_status)

    async def exited(self) -> CommandExit:
        """Wait until the command has ended; its descendants may take a moment longer."""
        await self._exited.wait()
        assert self.how is not None
        return self.how

    async def wait_gone(self) -> None:
        """Wait until nothing of the command is left."""
        await self._gone.wait()

    async def stop(self, grace: float) -> None:
        """Ask the command to end with SIGTERM; after `grace` seconds end it and all that it started by force."""
        if self.pid is not None and not self.is_over and grace > 0:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), grace)
        await self.end()

    async def end(self) -> None:
        """End the command now, with all its descendants, and wait until nothing is left."""
        self._supervisor.cut_lifeline()
        if self._status is None and self._closing is None:
            return  # it was never started
        try:
            await asyncio.wait_for(self._gone.wait(), self._end_seconds)
        except TimeoutError:
            logger.warning("the supervisor of %s does not end, killing it", self._title)
            self._supervisor.kill()
            await self._gone.wait()

    def _read_status(self) -> None:
        """Read what the supervisor reports; the end of the file means that it has ended."""
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
            self._take_report(json.loads(line))

    def _take_report(self, report: dict[str, Any]) -> None:
        if "pid" in report:
            self.pid = report["pid"]
        if "failed" in report:
            self.failure = report["failed"]
        if "exit" in report:
            self._note_exit(CommandExit(**report["exit"]))

    def _note_exit(self, how: CommandExit) -> None:
        self.how = how
        self._on_exit(how)
        self._exited.set()

    async def _close(self) -> None:
        """Clean up after the supervisor; if it was killed, its work is done here."""
        code = await asyncio.to_thread(self._supervisor.wait)
        if self.how is None:
            self._note_exit(CommandExit(None, "SIGKILL"))
        if code != 0:
            logger.warning("the supervisor of %s was killed (%s), ending what it left", self._title, code)
            done = await asyncio.to_thread(
                supervisor.kill_family, self._mark, session=self.pid, seconds=self._end_seconds
            )
            if not done:
                logger.error("processes of %s cannot be killed; their mark is %s", self._title, self._mark)
        self._supervisor.cut_lifeline()
        try:
            self._on_gone()
        finally:
            self._gone.set()
