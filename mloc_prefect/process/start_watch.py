"""Follows a process that starts: it may take its time as long as it moves. Standard library only.

A machine that is busy or slow makes a start long, not wrong. So what counts is not how long it takes but whether the
process, with its descendants, still computes or writes to its log.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from mloc_prefect.errors import DispatchError
from mloc_prefect.process.log_tail import last_words

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT_SECONDS = 120.0
"""How long a starting process may show no sign of progress, where no setting says it."""

_MOST = 10  # limits after which a start that still moves is given up
_LOOK_SECONDS = 2.0
_REPORT_SECONDS = 15.0
_TICKS = os.sysconf("SC_CLK_TCK")


class StartWatch:
    """One start; call `check` often.

    Args:
        title: What messages call the process.
        pid: Its process, or None while that is not known.
        log: Its log.
        limit: Seconds without progress after which it is given up; `_MOST` times as long in all.
        report: Called now and then with what is waited for.
        clock: Seconds, monotonic.
        cpu: Returns the seconds of CPU that a process and its descendants have used.
    """

    def __init__(
        self,
        title: str,
        pid: Callable[[], int | None],
        log: Path,
        *,
        limit: float = LIMIT_SECONDS,
        report: Callable[[str], None] = lambda _text: None,
        clock: Callable[[], float] = time.monotonic,
        cpu: Callable[[int], float] | None = None,
    ) -> None:
        self._title, self._pid, self._log, self._limit = title, pid, log, limit
        self._report, self._clock, self._cpu = report, clock, cpu or family_cpu_seconds
        self._began = self._moved = self._reported = clock()
        self._looked = self._began - _LOOK_SECONDS
        self._seen: tuple[float, int] = (0.0, _size(log))

    def check(self) -> None:
        """Note progress, and report the wait now and then.

        Raises:
            DispatchError: The process has made no progress for too long, or moved for too long without being ready.
        """
        now = self._clock()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        pid = self._pid()
        seen = (self._cpu(pid) if pid else 0.0, _size(self._log))
        if seen[0] > self._seen[0] or seen[1] != self._seen[1]:
            self._moved = now
        self._seen = max(seen[0], self._seen[0]), seen[1]
        if now - self._moved >= self._limit:
            raise self._failure(f"shows no progress for {self._limit:g} s", now)
        if now - self._began >= _MOST * self._limit:
            raise self._failure(f"is still not ready after {_MOST * self._limit:g} s", now)
        if now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            self._report(f"waiting for {self._title}, which is starting: {self._facts(now)}")

    def _facts(self, now: float) -> str:
        last = last_words(self._log)
        wrote = f"its log ends with: {last[0]}" if last else "its log is empty"
        return f"{now - self._began:.0f} s so far, {self._seen[0]:.1f} s of CPU used; {wrote}"

    def _failure(self, what: str, now: float) -> DispatchError:
        hint = f"its log is {self._log}; on a slow or busy machine raise MLOC_START_SECONDS"
        return DispatchError(f"{self._title} {what} while it starts ({self._facts(now)})", hint=hint)


def family_cpu_seconds(pid: int) -> float:
    """Return the seconds of CPU that a process and its descendants have used."""
    children: dict[int, list[int]] = defaultdict(list)
    used: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text(errors="replace").rpartition(") ")[2].split()
        except OSError:  # it has just ended
            continue
        number = int(entry.name)
        children[int(fields[1])].append(number)
        used[number] = sum(int(field) for field in fields[11:15])  # utime, stime, cutime, cstime
    family, pending = 0, [pid]
    while pending:
        found = pending.pop()
        family += used.get(found, 0)
        pending += children[found]
    return family / _TICKS


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
