# ruff: noqa: PTH123, PTH202, PTH208  # pathlib would be a third of the start time of this script
"""The supervisor between an owner and one command (a host): when either ends, every descendant of the command ends.

Run by path (`python -I -S supervisor.py CONFIG`), so it imports nothing but the standard library, and not even this
package. It carries the environment meant for the host, which includes the mark `MLOC_HOST_ID`.

* Lifeline: it reads a pipe that only the owner writes to. End of file = the owner has ended, or wants the host ended.
* Second net: PR_SET_PDEATHSIG, for an owner whose pipe leaked into another process. That signal also comes when only
  the owner's spawning *thread* ends, so it counts only when the parent process has changed. The host has it, too.
* PR_SET_CHILD_SUBREAPER: orphans of the host become children of the supervisor, whatever session they are in.
* The family of a host is found by descent, by session and by the mark: any of the three may have been lost (a double
  fork; `setsid`; a process title written over the environment, as engines do).

It reports to the owner on a status pipe, one JSON object a line: `{"pid": n}`, then `{"exit": {"code": n |
null, "signal": name | null, "oom": bool}}`. The pipe closes when nothing of the host is left.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

MARK = "MLOC_HOST_ID"

LOG_LIMIT = 64 << 20
"""Bytes of a host's log above which its beginning is dropped."""

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_TICK = 1.0  # seconds between two readings of the counters of the kernel's OOM killer
_OOM_TICKS = 10  # how long the end of a victim may take: it has gigabytes to give back
_OOM_SCORE = "500"  # of 1000: when memory is short, hosts are killed before their owners


class ProcessEntry(NamedTuple):
    """One line of the process table.

    Attributes:
        pid: Number of the process.
        parent: Its parent.
        session: Its session.
        state: State letter, as `ps` shows it.
        threads: Number of its threads.
        start: When it started, in clock ticks since boot.
    """

    pid: int
    parent: int
    session: int
    state: str
    threads: int
    start: str = ""

    @property
    def alive(self) -> bool:
        """Whether it still runs.

        A zombie that is never reaped holds nothing but its number; yet the first thread of a process shows as one
        while the others still end.
        """
        return self.state not in "ZX" or self.threads > 1


def process_table() -> dict[int, ProcessEntry]:
    """Return every process that can be seen, by pid."""
    table = {}
    for name in os.listdir("/proc"):
        process = read_process(int(name)) if name.isdigit() else None
        if process is not None:
            table[process.pid] = process
    return table


def read_process(pid: int) -> ProcessEntry | None:
    """Return the process `pid`, or None when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as handle:
            text = handle.read().decode("utf-8", "replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before may hold blanks and brackets
    return ProcessEntry(
        pid=pid,
        parent=int(fields[1]),
        session=int(fields[3]),
        state=fields[0],
        threads=int(fields[17]),
        start=fields[19],
    )


def family(mark: str, *, ancestor: int | None = None, session: int | None = None) -> set[int]:
    """Return the pids that belong to a host and are alive; never the caller, nor `ancestor` itself.

    Args:
        mark: Value of `MLOC_HOST_ID` that its processes carry.
        ancestor: Process whose descendants count, too.
        session: Session whose members count, too.
    """
    table = process_table()
    skipped = {os.getpid(), ancestor}
    members = {
        process.pid
        for process in table.values()
        if (session is not None and process.session == session) or (process.alive and _marked(process.pid, mark))
    }
    if ancestor is not None:
        members.add(ancestor)
    while True:  # and whatever descends from those
        more = {p.pid for p in table.values() if p.parent in members and p.pid not in members}
        if not more - skipped:
            break
        members |= more
    return {pid for pid in members - skipped if table[pid].alive}


def kill_family(
    mark: str,
    *,
    ancestor: int | None = None,
    session: int | None = None,
    seconds: float = math.inf,
    on_round: Callable[[], None] = lambda: None,
) -> bool:
    """Kill the family of a host until nothing of it is left; return False if some is left after `seconds`.

    Args:
        mark: As in `family`.
        ancestor: As in `family`.
        session: As in `family`.
        seconds: How long to try.
        on_round: Called after each round of kills, to reap children.

    A process that took another user's identity cannot be killed and is left.
    """
    deadline = time.monotonic() + seconds
    pause = 0.001
    foreign: set[int] = set()
    while members := family(mark, ancestor=ancestor, session=session) - foreign:
        foreign |= {pid for pid in members if not _kill(pid)}
        if time.monotonic() > deadline:
            return False
        on_round()
        time.sleep(pause)
        pause = min(pause * 2, 0.1)
    return True


def trim_log(path: str, *, limit: int = LOG_LIMIT, keep: int = 1 << 20) -> None:
    """Cut a log of more than `limit` bytes to its last `keep`; its writer has it open to append, and continues."""
    try:
        if os.path.getsize(path) <= limit:
            return
        with open(path, "rb+") as log:
            log.seek(-keep, os.SEEK_END)
            tail = log.read()
            log.truncate(0)
        with open(path, "ab") as log:
            log.write(b"mloc: the lines before were dropped, the log had grown too long\n" + tail)
    except OSError:  # removed, or the disk is full: the host matters more
        return


def main() -> None:
    """Start the host described by the JSON in the first argument and stay until nothing of it is left."""
    config = json.loads(sys.argv[1])
    _Supervisor(config).run()


class _Supervisor:
    def __init__(self, config: dict[str, object]) -> None:
        self._argv: list[str] = list(config["argv"])  # type: ignore[call-overload]  # JSON
        self._log = str(config["log"])
        self._cwd = str(config["cwd"])
        self._lifeline = int(str(config["lifeline"]))
        self._status = int(str(config["status"]))
        self._owner = int(str(config["owner"]))
        self._oom_score = config.get("oom_score", _OOM_SCORE)  # null: as its owner
        self._mark = os.environ[MARK]
        self._oom_counts: deque[tuple[int, ...]] = deque(maxlen=_OOM_TICKS)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._process: subprocess.Popen[bytes] | None = None  # kept: a Popen that is collected reaps its child
        self._host = 0
        self._ended = False

    def run(self) -> None:
        """Start the host, watch, and clean up."""
        for fd in (self._lifeline, self._status):
            os.set_inheritable(fd, False)
        wake = self._catch_signals()
        self._libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGUSR2, 0, 0, 0)
        self._sample()
        if os.getppid() == self._owner and self._start():
            self._watch(wake)
            kill_family(self._mark, ancestor=os.getpid(), session=self._host, on_round=self._reap_all)
            self._reap_all()
            while not self._ended:  # its last thread has ended, but the kernel has not reported it yet
                time.sleep(0.001)
                self._reap_all()

    def _start(self) -> bool:
        try:
            with open(self._log, "ab", buffering=0) as log:
                self._process = subprocess.Popen(
                    self._argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self._cwd,
                    start_new_session=True,
                    preexec_fn=self._in_child,  # noqa: PLW1509  # single-threaded process
                )
        except OSError as error:
            self._report({"failed": f"{error.strerror}: {error.filename}"})
            return False
        self._host = self._process.pid
        self._report({"pid": self._host})
        return True

    def _in_child(self) -> None:
        self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if self._oom_score is not None:
            with open("/proc/self/oom_score_adj", "w", encoding="ascii") as handle:
                handle.write(str(self._oom_score))
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, signal.SIG_DFL)

    def _catch_signals(self) -> int:
        """Return a descriptor that becomes readable when a signal comes."""
        out, into = os.pipe()
        os.set_blocking(out, False)
        os.set_blocking(into, False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, lambda _number, _frame: None)
        signal.set_wakeup_fd(into, warn_on_full_buffer=False)
        return out

    def _watch(self, wake: int) -> None:
        """Block until the host has ended, or has to."""
        while not self._ended:
            readable, _, _ = select.select([self._lifeline, wake], [], [], _TICK)
            signals = os.read(wake, 4096) if wake in readable else b""
            if self._lifeline in readable and not os.read(self._lifeline, 4096):
                return
            if signal.SIGTERM in signals or os.getppid() != self._owner:
                return
            self._reap_all()
            if not readable:
                self._sample()
                trim_log(self._log)

    def _reap_all(self) -> None:
        while (ended := _next_ended()) is not None:
            pid, status = ended
            if pid == self._host:
                self._ended = True
                self._report({"exit": self._exit(os.waitstatus_to_exitcode(status))})

    def _exit(self, code: int) -> dict[str, object]:
        if code >= 0:
            return {"code": code, "signal": None, "oom": False}
        oom = code == -signal.SIGKILL and _oom_kills() > self._oom_counts[0]
        return {"code": None, "signal": _signal_name(-code), "oom": oom}

    def _sample(self) -> None:
        """Record the counters; a kill since the oldest kept record is taken to concern this host."""
        self._oom_counts.append(_oom_kills())

    def _report(self, message: dict[str, object]) -> None:
        try:
            os.write(self._status, json.dumps(message).encode() + b"\n")
        except OSError:  # the owner has ended; the cleaning up continues
            self._status = os.open(os.devnull, os.O_WRONLY)


def _oom_kills() -> tuple[int, ...]:
    """Return how often the kernel's OOM killer struck: in our control group, and on the machine."""
    return tuple(_counter(path) for path in (*_cgroup_files(), "/proc/vmstat"))


def _cgroup_files() -> list[str]:
    """Return the files of our control group (version 2 or 1) that count kills."""
    files = []
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as handle:
            lines = [line.rstrip("\n").split(":", 2) for line in handle]
    except OSError:
        return []
    for _, controllers, path in lines:
        if not controllers:
            files.append(f"/sys/fs/cgroup{path.rstrip('/')}/memory.events")
        elif "memory" in controllers.split(","):
            files.append(f"/sys/fs/cgroup/memory{path.rstrip('/')}/memory.oom_control")
    return files


def _counter(path: str) -> int:
    """Return the value of the line `oom_kill N` in `path`, 0 when there is none."""
    try:
        with open(path, encoding="utf-8") as handle:
            return next((int(line.split()[1]) for line in handle if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0


def _marked(pid: int, mark: str) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as handle:
            return f"{MARK}={mark}".encode() in handle.read().split(b"\0")
    except OSError:  # it has ended, or is another user's
        return False


def _kill(pid: int) -> bool:
    """Kill `pid`; return False if that is not allowed."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return True


def _next_ended() -> tuple[int, int] | None:
    """Return pid and wait status of a child that has ended, None when there is none."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


if __name__ == "__main__":
    main()
