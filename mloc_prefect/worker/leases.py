"""Leases: which engines run at once on the devices of this machine.

A book hands out devices (`gpu:<index>`, or `cpu`), whole or by parts of their memory (`lease_rules`), by priority and
then in order of arrival; neither small nor large requests starve (`lease_state`). `FileLeaseBook` is one state file
under a lock, shared by all processes of the machine; `MemoryLeaseBook` is its twin.
"""

from mloc_prefect.worker.lease_book import Held, Lease, LeaseBook, MemoryLeaseBook
from mloc_prefect.worker.lease_file import FileLeaseBook, machine_book
from mloc_prefect.worker.lease_rules import CPU
from mloc_prefect.worker.lease_state import start_mark

__all__ = ["CPU", "FileLeaseBook", "Held", "Lease", "LeaseBook", "MemoryLeaseBook", "machine_book", "start_mark"]
