"""One command as a child process that cannot outlive us: the owner's side of `execution.supervisor`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution import supervisor
from mloc_prefect.execution.owners import new_mark

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_KILL_SECONDS = 15.0


class CommandProcess:
    """A command between a lifeline and a log; when this process ends, however it ends, it and its descendants end.

    Args:
        argv: The command.
        env: Its whole environment.
        log: File that its output is appended to.
        run_dir: Directory of running things of this `MLOC_HOME`.
        cwd: Its working directory.
    """

    def __init__(self, argv: Sequence[str], *, env: Mapping[str, str], log: Path, run_dir: Path, cwd: Path) -> None:
        self._argv = list(argv)
        self._env = dict(env)
        self._log = log
        self._run_dir = run_dir
        self._cwd = cwd
        self._mark = ""
        self._lifeline: int | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._exited = asyncio.Event()
        self.pid: int | None = None
        self.ending = ""

    async def start(self) -> None:
        """Start the command."""
        self._mark = new_mark(self._run_dir)
        lifeline, self._lifeline = os.pipe()
        status, told = os.pipe()
        config = {
            "argv": self._argv,
            "log": str(self._log),
            "cwd": str(self._cwd),
            "lifeline": lifeline,
            "status": told,
            "owner": os.getpid(),
            "oom_score": None,
        }
        try:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", "-S", supervisor.__file__, json.dumps(config)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**self._env, supervisor.MARK: self._mark},
                pass_fds=(lifeline, told),
                start_new_session=True,  # Ctrl-C in the terminal is for us, who end the parts in their order
            )
        finally:
            os.close(lifeline)
            os.close(told)
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(status, "rb", 0)
        )
        self._watch = asyncio.create_task(self._follow(reader))

    async def exited(self) -> str:
        """Wait for the end of the command; returns how it ended, in words. What it started has ended, too."""
        await self._exited.wait()
        return self.ending

    async def stop(self, grace: float) -> None:
        """Ask the command to end with SIGTERM; after `grace` seconds end it and all that it started by force."""
        if self._watch is None:
            return
        if self.pid is not None and not self._exited.is_set() and grace > 0:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._exited.wait(), grace)
        self._cut()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._exited.wait(), _KILL_SECONDS)

    async def _follow(self, reader: asyncio.StreamReader) -> None:
        """Read what the guard says until it has cleaned up; if it was killed, clean up here."""
        assert self._guard is not None
        while line := await reader.readline():
            self._take(json.loads(line))
        code = await asyncio.to_thread(self._guard.wait)
        if code != 0:
            await asyncio.to_thread(
                supervisor.kill_family, self._mark, ancestor=self.pid, session=self.pid, seconds=_KILL_SECONDS
            )
        self._cut()
        self.ending = self.ending or "killed"
        self._exited.set()

    def _take(self, message: dict[str, Any]) -> None:
        if "pid" in message:
            self.pid = message["pid"]
        elif "failed" in message:
            self.ending = message["failed"]
        elif "exit" in message:
            how = message["exit"]
            self.ending = how["signal"] or f"exit status {how['code']}"
            if how["oom"]:
                self.ending = "killed: the machine ran out of memory"

    def _cut(self) -> None:
        lifeline, self._lifeline = self._lifeline, None
        if lifeline is not None:
            os.close(lifeline)
