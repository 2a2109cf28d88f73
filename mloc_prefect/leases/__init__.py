"""Leases: which engines run at once on the devices of this machine.

A book hands out devices (`gpu:<index>`, or `cpu`), whole or by parts of their memory, by priority and then in order of
arrival; neither small nor large requests starve. It must not know what runs under a lease: it knows holders by a name
for people and the process that asked.

* `rules` decides which devices an entry gets, without any state.
* `state` is the content of a book: holders, waiters, and which engines were on which device.
* `book` is the protocol, what all books share, and the book of one process.
* `file_book` is the book of a machine: a state file under a lock, shared by all its processes.
* `device_return` waits until the memory of a device is free again after its engine has failed.
"""

from mloc_prefect.leases.book import HeldLease, Lease, LeaseBook, MemoryLeaseBook
from mloc_prefect.leases.device_return import DeviceReturn, device_return
from mloc_prefect.leases.file_book import FileLeaseBook, machine_book
from mloc_prefect.leases.rules import CPU

__all__ = [
    "CPU",
    "DeviceReturn",
    "FileLeaseBook",
    "HeldLease",
    "Lease",
    "LeaseBook",
    "MemoryLeaseBook",
    "device_return",
    "machine_book",
]
