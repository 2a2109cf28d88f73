"""The lease book of a machine: one state file under a lock, shared by all its processes."""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mloc_prefect.errors import DispatchError
from mloc_prefect.worker.inventory import read_inventory
from mloc_prefect.worker.lease_book import Book
from mloc_prefect.worker.lease_state import State, boot_mark

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.worker.inventory import Inventory


def machine_book(settings: MlocSettings, inventory: Inventory) -> FileLeaseBook:
    """Return the book that all processes of this machine and state directory share.

    Args:
        settings: Where it lies, and its rules.
        inventory: What may be leased; when it has GPUs of NVML, what others hold of them is looked at again later.
    """
    real = bool(inventory.gpus) and not (settings.inventory or "").strip()
    return FileLeaseBook(
        settings.home,
        inventory,
        settings.engines_per_device,
        patience=settings.reserve_seconds,
        look=(lambda: read_inventory(settings)) if real else None,
    )


class FileLeaseBook(Book):
    """A book for all processes of a machine: `<home>/run/leases-<boot>.json` under a lock file beside it.

    Args:
        home: State directory. Machines that share one (on a network file system) have a book each.
        inventory: What the machine has.
        engines_per_device: Engines that may have one device whole.
        patience: Seconds after which a waiter keeps what it needs from those behind it.
        look: Reads the inventory again; None = it does not change.
    """

    def __init__(
        self,
        home: Path,
        inventory: Inventory,
        engines_per_device: int = 1,
        *,
        patience: float = 30.0,
        look: Callable[[], Inventory] | None = None,
    ) -> None:
        super().__init__(inventory, engines_per_device, patience=patience, look=look)
        self._file = home / "run" / f"leases-{boot_mark() or 'machine'}.json"
        self._lock = self._file.with_suffix(".lock")

    @contextmanager
    def _state(self) -> Iterator[State | None]:
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DispatchError(f"cannot write the lease book {self._lock}: {error.strerror}") from error
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            state = self._peek()
            before = state.to_dict()
            yield state
            if (after := state.to_dict()) != before:
                self._save(after)
        finally:
            os.close(lock)  # and with it the lock

    def _peek(self) -> State:
        try:
            return State.of(json.loads(self._file.read_bytes()))
        except FileNotFoundError:
            return State()
        except (ValueError, TypeError, AttributeError):
            return State()  # of another version or damaged: leases are short-lived, an empty book is a safe start

    def _save(self, data: dict[str, Any]) -> None:
        part = self._file.with_suffix(".part")  # one writer at a time: we hold the lock
        try:
            part.write_text(json.dumps(data))
            part.replace(self._file)
        except OSError as error:
            raise DispatchError(f"cannot write the lease book {self._file}: {error.strerror}") from error
