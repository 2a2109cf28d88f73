"""The pinned `pynvml` itself, on a driver of Python functions: its names, its structures, its errors."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import pynvml
import pytest

from mloc_prefect.hardware.gpus import GpuDevice
from mloc_prefect.hardware.nvml import nvml_gpus

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GIB = 1 << 30
MEMORY = 80 * GIB
_BY_INDEX = {1: 0, 2: 1}  # value of a handle: index of its card


class Driver:
    """As much of `libnvidia-ml` as is called; every function returns a status and writes through its pointers."""

    def __init__(self) -> None:
        self.missing: set[str] = set()
        self.fails: dict[str, int] = {}
        self.processes: list[tuple[int, int]] = []
        self.calls: list[str] = []

    def function(self, name: str) -> Callable[..., int]:
        """Return a function as the library's loader finds it."""
        if name in self.missing:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            return self.fails.get(name) or int(getattr(self, name)(*arguments) or pynvml.NVML_SUCCESS)

        return call

    def nvmlInitWithFlags(self, _flags: Any) -> None: ...

    def nvmlShutdown(self) -> None: ...

    def nvmlDeviceGetCount_v2(self, count: Any) -> None:
        count._obj.value = 2

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> None:
        target = handle._obj
        address = ctypes.cast(ctypes.c_void_p(index.value + 1), type(target))
        ctypes.memmove(ctypes.byref(target), ctypes.byref(address), ctypes.sizeof(target))

    def nvmlDeviceGetMigMode(self, _handle: Any, _current: Any, _pending: Any) -> int:
        return pynvml.NVML_ERROR_NOT_SUPPORTED

    def nvmlDeviceGetMemoryInfo(self, _handle: Any, memory: Any) -> None:
        memory._obj.total, memory._obj.used = MEMORY, 3 * GIB

    def nvmlDeviceGetName(self, _handle: Any, text: Any, _size: Any) -> None:
        text.value = b"NVIDIA A100-SXM4-80GB"

    def nvmlDeviceGetUUID(self, handle: Any, text: Any, _size: Any) -> None:
        text.value = f"GPU-{_index(handle)}".encode()

    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Any, count: Any, found: Any) -> int:
        here = self.processes if _index(handle) == 0 else []
        room, count._obj.value = count._obj.value, len(here)
        if room < len(here):
            return pynvml.NVML_ERROR_INSUFFICIENT_SIZE
        for entry, (pid, size) in zip(found or (), here, strict=False):
            entry.pid, entry.usedGpuMemory = pid, size
        return pynvml.NVML_SUCCESS

    def nvmlDeviceGetGraphicsRunningProcesses_v3(self, _handle: Any, count: Any, _found: Any) -> None:
        count._obj.value = 0


def _index(handle: Any) -> int:
    return _BY_INDEX[ctypes.cast(handle, ctypes.c_void_p).value]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    monkeypatch.setattr(pynvml, "_LoadNvmlLibrary", lambda: None)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer", found.function)
    monkeypatch.setattr(pynvml, "_nvmlLib_refcount", 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return found


def test_what_the_driver_says_is_what_is_offered(driver: Driver, tmp_path: Path) -> None:
    unknown = pynvml.NVML_VALUE_NOT_AVAILABLE_ulonglong.value
    driver.processes = [(4_000_001, 5 * GIB), (4_000_002, 2 * GIB), (4_000_003, unknown)]
    kind = "nvidia a100-sxm4-80gb"
    assert nvml_gpus(tmp_path) == (GpuDevice(0, kind, MEMORY, "GPU-0", 7 * GIB), GpuDevice(1, kind, MEMORY, "GPU-1", 0))
    assert (driver.calls[0], driver.calls[-1]) == ("nvmlInitWithFlags", "nvmlShutdown")


def test_functions_that_an_old_driver_has_not_cost_no_card(driver: Driver, tmp_path: Path) -> None:
    driver.missing = {"nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetMigMode"}
    assert [gpu.memory_bytes for gpu in nvml_gpus(tmp_path)] == [MEMORY, MEMORY]


def test_a_card_that_shares_the_machines_memory_is_offered_without_a_size(driver: Driver, tmp_path: Path) -> None:
    driver.fails = {"nvmlDeviceGetMemoryInfo": pynvml.NVML_ERROR_NOT_SUPPORTED}
    assert [gpu.memory_bytes for gpu in nvml_gpus(tmp_path)] == [None, None]


@pytest.mark.parametrize("status", [pynvml.NVML_ERROR_DRIVER_NOT_LOADED, pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH])
def test_a_driver_that_does_not_start_is_no_gpu(driver: Driver, tmp_path: Path, status: int) -> None:
    driver.fails = {"nvmlInitWithFlags": status}
    assert nvml_gpus(tmp_path) == ()


def test_a_machine_without_the_driver_has_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_there() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "_LoadNvmlLibrary", not_there)
    assert nvml_gpus(tmp_path) == ()
