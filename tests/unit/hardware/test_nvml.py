"""GPUs by NVML: what is offered, what others take, and what a faulty driver costs."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from mloc_prefect.hardware import nvml
from mloc_prefect.hardware.gpus import DeviceMemory
from mloc_prefect.hardware.host_memory import with_card_memory
from mloc_prefect.hardware.inventory import GpuDevice, read_inventory
from mloc_prefect.process.marks import MARK, new_mark
from mloc_prefect.process.run_dir import run_dir
from mloc_prefect.settings import get_settings

if TYPE_CHECKING:
    from pathlib import Path

GIB = 1 << 30


class NvmlError(Exception):
    """As `pynvml.NVMLError`."""


class NotFoundError(NvmlError):
    """As `pynvml.NVMLError_LibraryNotFound`."""


class NotSupportedError(NvmlError):
    """As `pynvml.NVMLError_NotSupported`."""


class MismatchError(Exception):
    """As `pynvml.NVMLLibraryMismatchError`, which is no `NVMLError`."""


class StandIn:
    """A module with as much of `pynvml` as is used; `cards` are (name, uuid) each."""

    NVMLError = NvmlError
    NVMLError_LibraryNotFound = NotFoundError
    NVMLError_NotSupported = NotSupportedError
    NVMLLibraryMismatchError = MismatchError

    def __init__(self, *cards: tuple[str, str]) -> None:
        self.cards = cards
        self.calls: list[str] = []
        self.mig: set[int] = set()
        self.processes: dict[int, list[tuple[int, int | None]]] = {}
        self.broken: set[int] = set()

    def nvmlInit(self) -> None:
        self.calls.append("init")

    def nvmlShutdown(self) -> None:
        self.calls.append("shutdown")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index in self.broken:
            raise NvmlError("GPU is lost")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> tuple[str, str]:
        if uuid != "MIG-1":
            raise NvmlError("not found")
        return ("NVIDIA A100 MIG 3g.40gb", uuid)

    def nvmlDeviceGetMigMode(self, handle: int) -> list[int]:
        if not self.mig:
            raise NvmlError("not supported")
        return [int(handle in self.mig), 0]

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        return SimpleNamespace(total=(40 if isinstance(handle, tuple) else 80) * GIB, used=3 * GIB)

    def nvmlDeviceGetName(self, handle: Any) -> Any:
        return handle[0] if isinstance(handle, tuple) else self.cards[handle][0].encode()

    def nvmlDeviceGetUUID(self, handle: Any) -> str:
        return handle[1] if isinstance(handle, tuple) else self.cards[handle][1]

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> list[Any]:
        found = self.processes.get(handle, []) if isinstance(handle, int) else []
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in found]

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: Any) -> list[Any]:
        return StandIn.nvmlDeviceGetComputeRunningProcesses(self, handle)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn(("NVIDIA A100", "GPU-aa11"), ("NVIDIA A100", "GPU-ab22"))
    monkeypatch.setitem(sys.modules, "pynvml", stand_in)  # type: ignore[arg-type]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return stand_in


def indices(home: Path) -> list[int]:
    return [gpu.index for gpu in nvml.nvml_gpus(home)]


def test_index_name_memory_and_uuid_are_read(two: StandIn, tmp_path: Path) -> None:
    found = read_inventory(get_settings(home=tmp_path)).gpus
    assert found == (
        GpuDevice(0, "nvidia a100", 80 * GIB, "GPU-aa11"),
        GpuDevice(1, "nvidia a100", 80 * GIB, "GPU-ab22"),
    )
    assert [g.device for g in found] == ["gpu:0", "gpu:1"]
    assert two.calls == ["init", "shutdown"]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("", []),
        ("1", [1]),
        ("1,0", [1, 0]),
        ("0,0", [0]),
        ("0,-1,1", [0]),
        ("7", []),
        ("0, 7, 1", [0]),
        ("GPU-ab22", [1]),
        ("GPU-ab", [1]),
        ("GPU-a", []),
        ("NoDevFiles", []),
    ],
)
def test_the_workers_own_visible_devices_bound_the_offer(
    two: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str, expected: list[int]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert indices(tmp_path) == expected


def test_a_partitioned_card_is_left_alone_except_for_instances_that_are_named(
    two: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two.mig = {0}
    assert indices(tmp_path) == [1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1,MIG-2")
    (part,) = nvml.nvml_gpus(tmp_path)
    assert (part.device, part.memory_bytes, part.type) == ("gpu:MIG-1", 40 * GIB, "nvidia a100 mig 3g.40gb")


def test_memory_of_others_is_taken_and_that_of_our_hosts_is_not(
    two: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, other_home = 4_000_001, 4_000_002
    marks = {ours: new_mark(run_dir(tmp_path)), other_home: new_mark(run_dir(tmp_path / "other"))}
    monkeypatch.setattr("mloc_prefect.process.marks._mark_of", lambda pid: marks.get(pid, ""))
    two.processes = {0: [(ours, 10 * GIB), (other_home, 5 * GIB), (4_000_003, 2 * GIB), (4_000_004, None)]}
    first, second = nvml.nvml_gpus(tmp_path)
    assert (first.taken_bytes, first.offered_bytes) == (7 * GIB, 73 * GIB)
    assert (second.taken_bytes, second.offered_bytes) == (0, 80 * GIB)


def test_marks_are_read_from_the_environment_of_a_process(tmp_path: Path) -> None:
    from mloc_prefect.process.marks import is_host_of

    assert not is_host_of(os.getpid(), run_dir(tmp_path))
    assert not is_host_of(2**22 + 1, run_dir(tmp_path))
    assert MARK not in os.environ


@pytest.mark.parametrize("error", [NvmlError("driver mismatch"), NotFoundError("no driver")])
def test_an_nvml_that_does_not_start_means_no_gpu(
    two: StandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture, error: NvmlError
) -> None:
    def refuse() -> None:
        raise error

    two.nvmlInit = refuse  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING):
        assert indices(tmp_path) == []
    assert bool(caplog.records) is not isinstance(error, NotFoundError)  # a machine without a driver is no news


def test_a_card_that_fails_is_not_offered_and_the_others_are(
    two: StandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    two.broken = {0}
    assert indices(tmp_path) == [1]
    assert "GPU 0 is not offered: GPU is lost" in caplog.text


@pytest.mark.parametrize("name", ["nvmlDeviceGetCount", "nvmlShutdown", "nvmlDeviceGetComputeRunningProcesses"])
def test_no_failure_of_nvml_is_one_of_ours(
    two: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(*_: Any) -> Any:
        raise NvmlError("unknown error")

    monkeypatch.setattr(two, name, fail)
    assert indices(tmp_path) == ([] if name == "nvmlDeviceGetCount" else [0, 1])


def test_a_driver_that_is_older_than_the_library_costs_only_what_others_take(
    two: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> Any:
        raise MismatchError("Unversioned function called")

    monkeypatch.setattr(two, "nvmlDeviceGetComputeRunningProcesses", fail)
    two.processes = {0: [(4_000_003, 2 * GIB)]}
    assert [gpu.taken_bytes for gpu in nvml.nvml_gpus(tmp_path)] == [2 * GIB, 0]  # as the other list has it


def test_a_card_with_the_memory_of_the_machine_has_none_of_its_own(
    two: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> Any:
        raise NotSupportedError("Not Supported")

    monkeypatch.setattr(two, "nvmlDeviceGetMemoryInfo", fail)
    assert [(gpu.index, gpu.memory_bytes) for gpu in nvml.nvml_gpus(tmp_path)] == [(0, None), (1, None)]


def test_without_the_library_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert indices(tmp_path) == []


def test_hosts_show_what_their_processes_hold_on_cards(two: StandIn) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:  # as engines have them
        two.processes = {0: [(os.getpid(), 3 * GIB), (1, 9 * GIB)], 1: [(child.pid, 4 * GIB), (os.getpid(), None)]}
        hosts = [
            {"pid": os.getpid(), "devices": ["gpu:0", "gpu:1"]},
            {"pid": os.getpid(), "devices": ["cpu"]},
            {"pid": None, "devices": ["gpu:0"]},
        ]
        assert [host["gpu_memory_bytes"] for host in with_card_memory(hosts)] == [7 * GIB, None, None]
        two.broken = {0}
        assert with_card_memory(hosts[:1])[0]["gpu_memory_bytes"] is None
        two.calls.clear()
        assert with_card_memory(hosts[1:2]) == [{**hosts[1], "gpu_memory_bytes": None}]
        assert two.calls == []
        child.communicate()


def test_memory_in_use_is_read_card_by_card(two: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nvml.card_memory_used() == {0: 3 * GIB, 1: 3 * GIB}
    two.broken = {0}
    assert nvml.card_memory_used() == {}
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml.card_memory_used() == {}


def test_the_memory_of_leased_devices_is_read_by_process(two: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    two.processes = {1: [(7, 2 * GIB), (8, None)]}
    found = nvml.device_memory(["gpu:1", "cpu", "gpu:MIG-1", "gpu:MIG-2"])
    assert found == {"gpu:1": DeviceMemory(3 * GIB, {7: 2 * GIB, 8: 0}), "gpu:MIG-1": DeviceMemory(3 * GIB, {})}
    assert found["gpu:1"].unlisted == GIB
    two.broken = {1}
    assert nvml.device_memory(["gpu:0", "gpu:1"]) == {"gpu:0": DeviceMemory(3 * GIB, {})}
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml.device_memory(["gpu:0"]) == {}
