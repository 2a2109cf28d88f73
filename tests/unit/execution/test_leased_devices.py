"""What a host process learns of its lease."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from mloc_prefect.execution.host_types import HostSpec
from mloc_prefect.execution.hosts.host_environment import child_environment
from mloc_prefect.execution.leased_devices import leased_gpus, leased_share
from mloc_prefect.executors.common.gpu_memory import limit_memory

if TYPE_CHECKING:
    from pathlib import Path


def test_devices_and_share_stand_in_the_environment_of_the_host_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    env = child_environment(HostSpec("x:Y", "python", devices=("gpu:1", "gpu:MIG-7"), share=0.5), tmp_path)
    assert (env["CUDA_VISIBLE_DEVICES"], env["CUDA_DEVICE_ORDER"]) == ("1,MIG-7", "PCI_BUS_ID")
    assert leased_gpus() == ["0", "1", "2", "3"]
    monkeypatch.setenv("MLOC_GPU_SHARE", env["MLOC_GPU_SHARE"])
    assert leased_share() == 0.5


@pytest.mark.parametrize("text", ["", "x", "0", "-1", "1.5", "nan"])
def test_a_share_that_cannot_be_one_is_the_whole(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("MLOC_GPU_SHARE", text)
    assert leased_share() == 1.0


def test_hosts_with_another_share_are_other_hosts() -> None:
    assert HostSpec("x:Y", "p", share=0.5).key != HostSpec("x:Y", "p").key
    assert HostSpec.from_wire(HostSpec("x:Y", "p", share=0.5).to_wire()).share == 0.5


@pytest.mark.parametrize(("share", "expected"), [("0.25", [(0.25, 0), (0.25, 1)]), ("1.0", [])])
def test_torch_keeps_to_the_share_on_every_gpu(
    monkeypatch: pytest.MonkeyPatch, share: str, expected: list[tuple[float, int]]
) -> None:
    calls: list[tuple[float, int]] = []
    cuda = SimpleNamespace(
        device_count=lambda: 2, set_per_process_memory_fraction=lambda s, device: calls.append((s, device))
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))  # type: ignore[arg-type]
    monkeypatch.setenv("MLOC_GPU_SHARE", share)
    limit_memory()
    assert calls == expected
    limit_memory(1)
    assert calls[len(expected) :] == expected[1:]
