"""A random schedule of faults against the parts of a running `mloc up`, the same for the same seed."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from tests.support.patience import START_SECONDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.up import Up

KINDS = ("kill", "terminate", "pause")
"""`kill -9` of a part with all that it started; SIGTERM; SIGSTOP for some seconds, then SIGCONT."""


@dataclass(frozen=True, slots=True)
class FaultEvent:
    """One fault.

    Attributes:
        wait: Seconds after the one before.
        kind: One of `KINDS`.
        part: Name of the part.
        length: Seconds of a pause.
    """

    wait: float
    kind: str
    part: str
    length: float


def seed() -> int:
    """Return the seed of `MLOC_TEST_SEED`, or a new one."""
    return int(os.environ.get("MLOC_TEST_SEED") or random.SystemRandom().randrange(10**6))


def schedule(number: int, parts: Sequence[str], *, seed: int, longest: float) -> list[FaultEvent]:
    """Return `number` faults; a pause takes at most `longest` seconds."""
    dice = random.Random(seed)
    return [
        FaultEvent(dice.uniform(0.2, 2), dice.choice(KINDS), dice.choice(parts), dice.uniform(0.5, longest))
        for _ in range(number)
    ]


def apply(up: Up, event: FaultEvent) -> None:
    """Do to a part what the event says, once it runs."""
    pid = wait_running(up, event.part)
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if event.kind == "pause":
            process.suspend()
            time.sleep(event.length)
            process.resume()
        elif event.kind == "terminate":
            process.send_signal(signal.SIGTERM)
        else:
            kill_family(pid)


def kill_family(pid: int) -> None:
    """Kill a process with all that it started, as the end of its container does."""
    process = psutil.Process(pid)
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            one.kill()


def wait_running(up: Up, part: str, *, not_as: int | None = None) -> int:
    """Wait until a part runs, as another process than `not_as`; return its process."""
    deadline = time.monotonic() + START_SECONDS
    while (pid := up.state().parts[part]) is None or pid == not_as:
        assert time.monotonic() < deadline, up.log.read_text()[-2000:]
        time.sleep(0.1)
    return pid
