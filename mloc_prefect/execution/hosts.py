"""Hosts, in one place for those who use them: the types, and the two providers.

`HostPool` owns child processes; `MemoryHosts` is its twin that runs executors in threads of this process.
"""

from __future__ import annotations

from mloc_prefect.execution.hosttypes import Host, HostExit, HostProvider, HostSpec
from mloc_prefect.execution.memory import MemoryHosts
from mloc_prefect.execution.pool import HostPool

__all__ = ["Host", "HostExit", "HostPool", "HostProvider", "HostSpec", "MemoryHosts"]
