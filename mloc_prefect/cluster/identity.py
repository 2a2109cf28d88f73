"""Identity of a worker: its id, the same in Prefect, in the registry and in messages; and which process it is."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mloc_prefect.errors import MlocError
from mloc_prefect.process.proc import boot_mark, pid_namespace, start_mark

if TYPE_CHECKING:
    from mloc_prefect.settings import MlocSettings

_BANNED = set("/%&><\"'")  # Prefect's for names
_NAME_BYTES = 200


def worker_id(settings: MlocSettings) -> str:
    """Return `MLOC_WORKER_ID`, or the host name and a random part, new at each call.

    Raises:
        MlocError: The configured id cannot be a name in Prefect.
    """
    chosen = (settings.worker_id or "").strip()
    if not chosen:
        return f"{socket.gethostname().split('.')[0]}-{secrets.token_hex(3)}"
    bad = sorted(set(chosen) & _BANNED) or ([] if len(chosen) <= _NAME_BYTES else [f"{len(chosen)} characters"])
    if bad:
        raise MlocError(f"setting MLOC_WORKER_ID: {chosen[:40]!r} cannot name a worker: it has {bad[0]}")
    return chosen


def slug(name: str) -> str:
    """Return `name` in the letters that a Prefect Variable may have in its name; different names stay different."""
    plain = re.sub(r"[^a-z0-9_]+", "_", name.lower())
    return plain if plain == name else f"{plain[:80]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """A process of some machine.

    Attributes:
        where: Boot and pid namespace: two processes with the same one can see each other.
        pid: Its number there.
        mark: Distinguishes it from a later process with that number.
    """

    where: str
    pid: int
    mark: str

    @classmethod
    def own(cls) -> WorkerProcess:
        """Return this process."""
        pid = os.getpid()
        return cls(_where(), pid, start_mark(pid) or "")

    def seen_dead(self) -> bool:
        """Return whether it can be seen from here that it has ended; False also when it cannot be seen at all."""
        return self.where == _where() and start_mark(self.pid) != self.mark


def _where() -> str:
    try:
        return f"{boot_mark()}.{pid_namespace()}"
    except OSError:
        return f"{socket.gethostname()}.{os.getpid()}"  # no such files: no other process counts as near
