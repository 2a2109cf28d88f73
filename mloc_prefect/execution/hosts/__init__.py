"""Hosts as their owner sees them: started on demand, warm until idle, ended with all that they started.

`HostPool` owns child processes; `MemoryHosts` is its twin that runs executors in threads of this process. Both know
executors only as a string path, and neither knows what a task means, or Prefect. The types are re-exported here for
those who use hosts.

Modules:

* `host_pool`: hosts of this process, one for each key
* `supervised_host`: one host process, its socket and its end
* `attempt_client`: runs one attempt on a host, with time limits and cancellation
* `host_control`: questions to hosts: sleep, stop, leave a device
* `host_environment`: the environment variables of a host
* `memory_hosts`: the twin of the pool for tests
"""

from __future__ import annotations

from mloc_prefect.execution.host_types import Host, HostExit, HostProvider, HostSpec
from mloc_prefect.execution.hosts.host_pool import HostPool
from mloc_prefect.execution.hosts.memory_hosts import MemoryHosts

__all__ = ["Host", "HostExit", "HostPool", "HostProvider", "HostSpec", "MemoryHosts"]
