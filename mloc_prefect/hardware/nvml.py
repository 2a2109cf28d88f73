"""GPUs of this machine by NVML, as far as this process may use them.

A device that NVML cannot read is a warning and one device less, never a failure of the worker.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, TypeVar

from mloc_prefect.hardware.gpus import DeviceMemory, GpuDevice
from mloc_prefect.process.marks import is_host_of
from mloc_prefect.process.run_dir import run_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

_log = logging.getLogger(__name__)

T = TypeVar("T")


def nvml_gpus(home: Path) -> tuple[GpuDevice, ...]:
    """Return the devices that `CUDA_VISIBLE_DEVICES` leaves to this process, in its order; all when it is not set.

    A card in MIG mode is not offered: CUDA runs on its instances only. Those that `CUDA_VISIBLE_DEVICES` names by UUID
    are offered, each as a device of its own. No setting of a card is ever changed.

    Args:
        home: `MLOC_HOME`; memory of its executor hosts is ours, that of all other processes counts as taken.
    """
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        # No driver is an ordinary case; a driver that does not answer is a fault.
        level = logging.DEBUG if isinstance(error, pynvml.NVMLError_LibraryNotFound) else logging.WARNING
        _log.log(level, "no GPU is offered: NVML does not start: %s", error)
        return ()
    try:
        reader = _Reader(pynvml, home)
        return tuple(_visible(list(reader.cards()), os.environ.get("CUDA_VISIBLE_DEVICES"), reader))
    except pynvml.NVMLError as error:
        _log.warning("no GPU is offered: NVML fails: %s", error)
        return ()
    finally:
        _end(pynvml)


def process_memory() -> dict[int, int]:
    """Return the bytes that processes hold on the cards, by process id; empty where NVML does not report it."""

    def read(nvml: Any) -> dict[int, int]:
        found: dict[int, int] = {}
        for index in range(nvml.nvmlDeviceGetCount()):
            for pid, size in _used(nvml, nvml.nvmlDeviceGetHandleByIndex(index)).items():
                found[pid] = found.get(pid, 0) + size
        return found

    return _ask(read) or {}


def card_memory_used() -> dict[int, int]:
    """Return the bytes in use on each card, by its index; empty where NVML does not report them."""

    def read(nvml: Any) -> dict[int, int]:
        handles = {index: nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())}
        return {index: int(nvml.nvmlDeviceGetMemoryInfo(handle).used) for index, handle in handles.items()}

    return _ask(read) or {}


def device_memory(devices: Collection[str]) -> dict[str, DeviceMemory]:
    """Return what is in use of GPUs, by their names in leases; those that NVML cannot read are left out.

    Args:
        devices: Names such as `gpu:0`; what is no GPU is left out.
    """

    def read(nvml: Any) -> dict[str, DeviceMemory]:
        found = {}
        for device in devices:
            kind, _, name = device.partition(":")
            if kind != "gpu":
                continue
            try:
                part = not name.isdigit()  # of a partitioned card
                handle = nvml.nvmlDeviceGetHandleByUUID(name) if part else nvml.nvmlDeviceGetHandleByIndex(int(name))
                found[device] = DeviceMemory(int(nvml.nvmlDeviceGetMemoryInfo(handle).used), _used(nvml, handle))
            except nvml.NVMLError as error:
                _log.debug("NVML does not report the memory of %s: %s", device, error)
        return found

    return _ask(read) or {}


def driver_cuda() -> tuple[int, int] | None:
    """Return the newest CUDA version that the driver runs, or None without a driver."""
    version = _ask(lambda nvml: int(nvml.nvmlSystemGetCudaDriverVersion_v2()))  # 13000 is 13.0, 12080 is 12.8
    return None if version is None else (version // 1000, version % 1000 // 10)


def _ask(read: Callable[[Any], T]) -> T | None:
    """Return what `read` finds with NVML; None without a driver, or where it does not answer."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        _log.debug("NVML does not start: %s", error)
        return None
    try:
        return read(pynvml)
    except pynvml.NVMLError as error:
        _log.debug("NVML does not report it: %s", error)
        return None
    finally:
        _end(pynvml)


class _Reader:
    def __init__(self, nvml: Any, home: Path) -> None:
        self._nvml = nvml
        self._home = home

    def cards(self) -> Iterator[GpuDevice]:
        """Yield every whole card that answers."""
        for index in range(self._nvml.nvmlDeviceGetCount()):
            try:
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                if self._partitioned(handle):
                    _log.info("GPU %d is in MIG mode: only its instances in CUDA_VISIBLE_DEVICES are offered", index)
                    continue
                yield self._gpu(handle, index)
            except self._nvml.NVMLError as error:
                _log.warning("GPU %d is not offered: %s", index, error)

    def instance(self, uuid: str) -> GpuDevice | None:
        """Return the part of a partitioned card with that UUID, or None."""
        try:
            return self._gpu(self._nvml.nvmlDeviceGetHandleByUUID(uuid), 0)
        except self._nvml.NVMLError as error:
            _log.warning("%s in CUDA_VISIBLE_DEVICES is not offered: %s", uuid, error)
            return None

    def _gpu(self, handle: Any, index: int) -> GpuDevice:
        nvml = self._nvml
        memory = self._memory(handle)
        name, uuid = _text(nvml.nvmlDeviceGetName(handle)).lower(), _text(nvml.nvmlDeviceGetUUID(handle))
        return GpuDevice(index, name, memory, uuid, 0 if memory is None else min(self._taken(handle), memory))

    def _memory(self, handle: Any) -> int | None:
        """Return the bytes of a card; None where it has none of its own, but shares those of the machine."""
        try:
            return int(self._nvml.nvmlDeviceGetMemoryInfo(handle).total)
        except self._nvml.NVMLError_NotSupported:
            return None

    def _partitioned(self, handle: Any) -> bool:
        try:
            return bool(self._nvml.nvmlDeviceGetMigMode(handle)[0])
        except self._nvml.NVMLError:  # not a card that can be partitioned
            return False

    def _taken(self, handle: Any) -> int:
        """Return the bytes that other processes hold on a card."""
        used = _used(self._nvml, handle)
        return sum(size for pid, size in used.items() if not is_host_of(pid, run_dir(self._home)))


def _used(nvml: Any, handle: Any) -> dict[int, int]:
    """Return the bytes of each process on one card."""
    used: dict[int, int] = {}
    for list_processes in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
        try:
            found = list_processes(handle)
        # The second one, of a driver that is older than the library, is none of NVML's own errors.
        except (nvml.NVMLError, nvml.NVMLLibraryMismatchError) as error:
            _log.debug("NVML does not list processes: %s", error)
            continue
        for process in found:  # one that computes and draws is in both lists
            used[process.pid] = max(used.get(process.pid, 0), int(process.usedGpuMemory or 0))
    return used


def _visible(cards: list[GpuDevice], wanted: str | None, reader: _Reader) -> Iterator[GpuDevice]:
    """Yield what `CUDA_VISIBLE_DEVICES` names; as CUDA does, up to the first unknown name."""
    if wanted is None:
        yield from cards
        return
    seen: set[str] = set()
    for word in filter(None, (part.strip() for part in wanted.split(","))):
        gpu = reader.instance(word) if word.startswith("MIG-") else _named(cards, word)
        if gpu is None:
            if word != "-1":
                _log.warning(
                    "CUDA_VISIBLE_DEVICES=%s: there is no device %r; it and what follows is not used", wanted, word
                )
            return
        if gpu.device not in seen:
            seen.add(gpu.device)
            yield gpu


def _named(cards: list[GpuDevice], word: str) -> GpuDevice | None:
    if word.isdigit():
        return next((g for g in cards if g.index == int(word)), None)
    found = [g for g in cards if word.startswith("GPU-") and (g.uuid or "").startswith(word)]
    return found[0] if len(found) == 1 else None


def _end(nvml: Any) -> None:
    try:
        nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        _log.debug("NVML does not shut down: %s", error)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
