"""`DeviceReturn`: waits until the memory of leased GPUs is free again after an engine has failed or was ended.

The driver frees the memory of a killed process a moment later, and a process that an engine started may outlive it. The
next engine would find too little memory and fail for no fault of its own.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from mloc_prefect.hardware.gpus import DeviceMemory
from mloc_prefect.hardware.nvml import device_memory
from mloc_prefect.process.marks import processes_of_live_hosts
from mloc_prefect.process.run_dir import run_dir

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping

    from mloc_prefect.settings import MlocSettings

MemoryByDevice = dict[str, DeviceMemory]

_SLACK = 256 << 20  # bytes that may stay in use: the driver keeps some, and desktops come and go
_POLL = 0.2


def device_return(settings: MlocSettings) -> DeviceReturn | None:
    """Return what the settings ask for; None where devices are declared (`MLOC_INVENTORY`) or no wait is wanted."""
    if not settings.gpu_free_seconds or (settings.inventory or "").strip():
        return None
    directory = run_dir(settings.home)
    return DeviceReturn(settings.gpu_free_seconds, hosts=lambda: processes_of_live_hosts(directory))


class DeviceReturn:
    """Compares the memory of devices before and after an engine.

    What running hosts hold does not count: those of other tasks on the same card, and an engine that stays warm. It is
    in no baseline either: once such a host has died, its memory is waited for like that of an engine of its own.

    Not covered: where the driver lists no process (in some containers), memory of a host that was warm before is part
    of what is unlisted. If that host dies, the device counts as free before the driver has freed it.

    Args:
        seconds: Longest wait.
        hosts: Returns the processes of the hosts that run.
        read: Returns what is in use of devices.
        poll: Seconds between two looks.
    """

    def __init__(
        self,
        seconds: float,
        *,
        hosts: Callable[[], Collection[int]],
        read: Callable[[Collection[str]], MemoryByDevice] = device_memory,
        poll: float = _POLL,
    ) -> None:
        self._seconds = seconds
        self._hosts = hosts
        self._read = read
        self._poll = poll

    async def baseline(self, devices: Collection[str]) -> MemoryByDevice:
        """Return what others use before the engine starts; empty where NVML does not report it, and for the CPU."""
        gpus = [device for device in devices if device.startswith("gpu:")]
        return await asyncio.to_thread(self._used_by_others, gpus) if gpus else {}

    def _used_by_others(self, gpus: Collection[str]) -> MemoryByDevice:
        memory = self._read(gpus)
        hosts = set(self._hosts()) if memory else set[int]()
        return {device: _without(found, hosts) for device, found in memory.items()}

    async def watch(
        self, devices: Collection[str], report: Callable[[str], None]
    ) -> Callable[[], Awaitable[None]] | None:
        """Return a function that waits until devices are as free as they are now; None where that is not known.

        Args:
            devices: Names as in leases.
            report: See `wait_free`.
        """
        before = await self.baseline(devices)
        return (lambda: self.wait_free(before, report)) if before else None

    async def wait_free(self, before: MemoryByDevice, report: Callable[[str], None]) -> None:
        """Return when devices are as free as they were in `before`, or the time is up.

        Args:
            before: From `baseline`.
            report: Gets one line that names the holders if the time is up.
        """
        if not before:
            return
        loop = asyncio.get_running_loop()
        end = loop.time() + self._seconds
        while held := await asyncio.to_thread(self._held, before):
            if loop.time() >= end:
                report(f"{self._seconds:g} s after the end of its engine, {'; '.join(held)}")
                return
            await asyncio.sleep(self._poll)

    def _held(self, before: MemoryByDevice) -> list[str]:
        """Return what is still held of each device, as text."""
        now = self._read(list(before))
        hosts = set(self._hosts()) if now else set[int]()
        texts = []
        for device, memory in now.items():
            holders = _holders(before[device], memory, hosts)
            if sum(holders.values()) > _SLACK:
                named = ", ".join(_name(pid, size) for pid, size in sorted(holders.items(), key=lambda one: -one[1]))
                texts.append(f"{device} is still in use by {named}")
        return texts


def _without(memory: DeviceMemory, hosts: Collection[int]) -> DeviceMemory:
    """Return the memory without what listed processes of hosts hold; what is unlisted stays the same."""
    others = {pid: size for pid, size in memory.processes.items() if pid not in hosts}
    return DeviceMemory(memory.used - sum(memory.processes.values()) + sum(others.values()), others)


def _holders(before: DeviceMemory, now: DeviceMemory, hosts: Collection[int]) -> Mapping[int, int]:
    """Return the bytes that were not in use before, by process; those of running hosts are left out (0 = unlisted)."""
    grown = {pid: size - before.processes.get(pid, 0) for pid, size in now.processes.items() if pid not in hosts}
    found = {pid: size for pid, size in grown.items() if size > 0}
    # In a container the driver may list no process: what is unlisted may then belong to a host that runs.
    if not hosts or any(pid in hosts for pid in now.processes):
        unlisted = now.unlisted - before.unlisted
        found |= {0: unlisted} if unlisted > 0 else {}
    return found


def _name(pid: int, size: int) -> str:
    mib = f"{size / (1 << 20):.0f} MiB"
    if not pid:
        return f"processes that the driver does not list ({mib})"
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").split()
    except OSError:
        words = []
    title = " ".join(words)[:60]
    return f"process {pid} ({mib}{f', {title}' if title else ', it has ended'})"
