"""Child processes and servers that end with their owner. Standard library only.

Every child of this package hangs on a lifeline: a pipe whose write end only its owner has. The child reads the other
end; when that reports the end of the file, the owner has ended, however that happened, and the child ends too. `Child`
owns one process, `ServerChild` one that is of use once it answers; `supervised_child` builds on this for commands that
know nothing of lifelines.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar
from weakref import WeakSet

from mloc_prefect.errors import DispatchError
from mloc_prefect.process.log_tail import last_line
from mloc_prefect.process.start_watch import LIMIT_SECONDS, StartWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from mloc_prefect.process.state_file import StateFile

AddressT = TypeVar("AddressT")

LOG_BYTES = 4 << 20
"""Size at which the log of a server is set aside when it starts again."""

_POLL_SECONDS = 0.03


class Lifeline:
    """The owner's end of the pipe that a child hangs on.

    Attributes:
        child_end: Descriptor for the child to inherit; the owner closes its copy with `close_child_end`.
    """

    _open: ClassVar[WeakSet[Lifeline]] = WeakSet()

    def __init__(self) -> None:
        self.child_end, self._owner_end = os.pipe()
        self._open.add(self)

    def close_child_end(self) -> None:
        """Close our copy of the child's end, once the child has its own."""
        os.close(self.child_end)

    def cut(self) -> None:
        """Let the child end; a second time nothing happens."""
        if self._owner_end >= 0:
            os.close(self._owner_end)
            self._owner_end = -1

    @classmethod
    def cut_all(cls) -> None:
        """Close this process's copies; for a forked child, which is no owner and must keep nothing alive."""
        for lifeline in list(cls._open):
            lifeline.cut()


os.register_at_fork(after_in_child=Lifeline.cut_all)


class Child:
    """A child process on a lifeline, in a session of its own.

    Args:
        grace: Seconds that it may take to end by itself before it is killed.
        log: File that its output is appended to; without one its standard output goes nowhere.
    """

    def __init__(self, *, grace: float, log: Path | None = None) -> None:
        self._grace = grace
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: Lifeline | None = None

    @property
    def running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Its process, or None before the first start and after `stop`."""
        return None if self._process is None else self._process.pid

    @property
    def ending(self) -> str:
        """How the process ended, as text; empty while it runs."""
        code = None if self._process is None else self._process.poll()
        return "" if code is None else exit_text(code)

    def spawn(
        self,
        command: Callable[[int], Sequence[str]],
        *,
        stdin: bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Start the process.

        Args:
            command: Returns its command line for the descriptor of the lifeline.
            stdin: Written to its standard input: what no list of processes may show.
            env: Its environment, instead of ours.
            cwd: Its working directory.
            pass_fds: Further descriptors that it inherits.

        Raises:
            OSError: It cannot be started.
        """
        self.cut_lifeline()
        log = self._log.open("ab") if self._log else None
        lifeline = self._lifeline = Lifeline()
        try:
            self._process = subprocess.Popen(
                command(lifeline.child_end),
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=log or subprocess.DEVNULL,
                stderr=log,
                env=env,
                cwd=cwd,
                pass_fds=(lifeline.child_end, *pass_fds),
                start_new_session=True,  # Ctrl-C in the terminal is the owner's matter, who ends children in order
            )
        except OSError:
            lifeline.cut()
            raise
        finally:
            lifeline.close_child_end()
            if log:
                log.close()
        if stdin is not None:
            assert self._process.stdin is not None
            with suppress(BrokenPipeError), self._process.stdin as pipe:  # it has ended already: its log says why
                pipe.write(stdin)

    def cut_lifeline(self) -> None:
        """Let the process end; a second time nothing happens."""
        if self._lifeline is not None:
            self._lifeline.cut()

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()

    def wait(self) -> int:
        """Wait for the end of the process, blocking; return its exit status as `subprocess` has it."""
        assert self._process is not None, "spawn() comes first"
        return self._process.wait()

    async def stop(self) -> None:
        """End the process and wait until it is gone."""
        await asyncio.to_thread(self.stop_now)

    def stop_now(self) -> None:
        """Do what `stop` does, blocking."""
        self.cut_lifeline()
        if self._process is None:
            return
        try:
            self._process.wait(self._grace)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


class ServerChild(Child, ABC, Generic[AddressT]):
    """A server that says in a state file where it answers.

    Args:
        log: Its log; one older log is kept.
        state: Where it writes its address once it answers.
        grace: Seconds that it may take to end.
    """

    title: ClassVar[str]
    """What people call it."""

    own_server: ClassVar[str]
    """The environment variable that names a server of the user instead."""

    def __init__(self, *, log: Path, state: StateFile, grace: float) -> None:
        super().__init__(grace=grace, log=log)
        self.log = log
        self._state = state
        self._answered = False

    @abstractmethod
    def launch(self) -> None:
        """Start the process; it is of use only once `poll` or `ready` gives its address."""

    @abstractmethod
    def _address(self, state: dict[str, Any]) -> AddressT:
        """Return the address in the content of the state file."""

    def poll(self) -> AddressT | None:
        """Return the address once the server answers, None before.

        Raises:
            DispatchError: The process has ended.
        """
        assert self._process is not None, "launch() comes first"
        if self.ending:
            when = "" if self._answered else " while it started"
            raise DispatchError(
                f"the {self.title} ended{when} ({self.ending}): {last_line(self.log)}",
                hint=f"its log is {self.log}; set {self.own_server} to use a server of your own",
            )
        state = self._state.read()
        self._answered = state is not None
        return None if state is None else self._address(state)

    async def ready(
        self, *, limit: float = LIMIT_SECONDS, on_progress: Callable[[str], None] | None = None
    ) -> AddressT:
        """Start the server if needed and wait until it answers.

        Args:
            limit: Seconds without progress until giving up: databases migrate, Valkey loads its log.
            on_progress: Called with what is being waited for.

        Raises:
            DispatchError: It ended, or made no progress.
        """
        if not self.running:
            if on_progress is not None:
                on_progress(f"starting the {self.title}{self._start_note()}")
            self.launch()
        report = on_progress or (lambda _text: None)
        watch = StartWatch(f"the {self.title}", lambda: self.pid, self.log, limit=limit, report=report)
        while (address := self.poll()) is None:
            try:
                watch.check()
            except DispatchError:
                await self.stop()
                raise
            await asyncio.sleep(_POLL_SECONDS)
        return address

    def stop_now(self) -> None:
        """Do what `stop` does, blocking."""
        if self._process is not None:  # else the state file is that of another owner's server
            super().stop_now()
            self._state.remove()

    def _start_note(self) -> str:
        """Return what people should know of a start that takes long."""
        return ""

    def _clear(self) -> None:
        """Remove what an earlier process left; comes before `spawn`."""
        self.log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._state.remove()
        self._answered = False
        rotate_log(self.log, above=LOG_BYTES)


def rotate_log(log: Path, *, above: int = -1) -> None:
    """Set a log of more than `above` bytes aside; one older log is kept, so that neither grows indefinitely."""
    with suppress(FileNotFoundError):
        if log.stat().st_size > above:
            log.replace(log.with_name(f"{log.name}.1"))


def exit_text(code: int) -> str:
    """Return how a process ended, from its exit status as `subprocess` has it: `exit status 1`, `SIGKILL`."""
    if code >= 0:
        return f"exit status {code}"
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"
