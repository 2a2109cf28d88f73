"""A lock that lasts as long as its process, and names it. Standard library only.

`filelock` is not used here, for two reasons: hosts and the local runtime import nothing but the standard library, and
the descriptor of a lock may have to outlive its process (Valkey inherits it, see `services.valkey_main`). Locks that
last for one block of code are `filelock.FileLock`.
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_RETRY_SECONDS = 0.05
_PROBE_SECONDS = 0.35
"""How long a lock may seem to be taken although it is only probed, see `holder`."""


class LockFile:
    """An exclusive lock on a file of mode 0600 that holds the process id of its owner.

    The lock is bound to an open descriptor: it ends with `release`, or when every process that has it has ended.

    Args:
        path: The file; its directory must exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.descriptor: int | None = None

    def acquire(self, *, seconds: float = _PROBE_SECONDS, given_up: Callable[[], bool] = lambda: False) -> bool:
        """Take the lock; return False when another process has had it for `seconds`, or `given_up` says so."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline or given_up():
                    os.close(descriptor)
                    return False
                time.sleep(_RETRY_SECONDS)
            else:
                break
        os.truncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        self.descriptor = descriptor
        return True

    def release(self) -> None:
        """Give the lock back; nothing happens when this object does not have it."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def holder(self) -> int | None:
        """Return the process that has the lock, None when none has."""
        try:
            with self._path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: probes do not disturb each other
        except FileNotFoundError:
            return None
        except BlockingIOError:
            return int(self._path.read_text() or 0) or None
        return None
