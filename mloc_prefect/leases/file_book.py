"""The lease book of a machine: one state file under a lock, shared by all its processes."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from mloc_prefect.errors import DispatchError
from mloc_prefect.hardware.inventory import read_inventory
from mloc_prefect.leases.book import Book
from mloc_prefect.leases.state import LeaseState
from mloc_prefect.process.atomic_file import write_whole
from mloc_prefect.process.proc import boot_mark

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mloc_prefect.hardware.inventory import Inventory
    from mloc_prefect.settings import MlocSettings


def machine_book(settings: MlocSettings, inventory: Inventory) -> FileLeaseBook:
    """Return the book that all processes of this machine and state directory share.

    Args:
        settings: Where it lies, and its rules.
        inventory: Hardware that may be leased; memory use of GPUs that NVML reports is read again later.
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
        self._lock = FileLock(self._file.with_suffix(".lock"), mode=0o600)

    @contextmanager
    def _state(self) -> Iterator[LeaseState | None]:
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
        except Timeout:
            yield None
            return
        except OSError as error:
            raise DispatchError(f"cannot write the lease book {self._file}: {error.strerror}") from error
        try:
            state = self._peek()
            before = state.to_dict()
            yield state
            if (after := state.to_dict()) != before:
                self._save(after)
        finally:
            self._lock.release()

    def _peek(self) -> LeaseState:
        try:
            return LeaseState.of(json.loads(self._file.read_bytes()))
        except FileNotFoundError:
            return LeaseState()
        except (ValueError, TypeError, AttributeError):
            return LeaseState()  # of another version or damaged: leases are short, so an empty book is a safe start

    def _save(self, data: dict[str, Any]) -> None:
        try:
            write_whole(self._file, json.dumps(data).encode(), mode=0o666)
        except OSError as error:
            raise DispatchError(f"cannot write the lease book {self._file}: {error.strerror}") from error
