"""Inventory: declared and real hardware, and why a request does not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mloc_prefect.errors import MlocError
from mloc_prefect.hardware.inventory import GpuDevice, Inventory, misfit, parse_inventory, read_inventory
from mloc_prefect.plan.resources import ResourceRequest
from mloc_prefect.settings import get_settings

if TYPE_CHECKING:
    from pathlib import Path

GIB = 1 << 30
TWO = Inventory(8, 64 * GIB, (GpuDevice(0, "nvidia a100-sxm4-80gb", 80 * GIB), GpuDevice(1, "nvidia l4", 24 * GIB)))
DECLARED = (
    '{"cpus": 8, "memory": "64GiB", "tags": ["lab"], "gpus": [{"type": "A100", "memory": "80GiB"}, {"type": "l4"}]}'
)


def test_a_declared_inventory_is_read_from_json_or_a_file(tmp_path: Path) -> None:
    expected = Inventory(8, 64 * GIB, (GpuDevice(0, "a100", 80 * GIB), GpuDevice(1, "l4")), ("lab",))
    (tmp_path / "inventory.json").write_text(DECLARED)
    assert read_inventory(get_settings(inventory=DECLARED)) == expected
    assert read_inventory(get_settings(inventory=str(tmp_path / "inventory.json"))) == expected
    assert str(expected) == "8 cpu, 64 GiB, 1x a100 80 GiB, 1x l4"


def test_what_a_declaration_leaves_out_is_taken_from_the_machine_except_gpus() -> None:
    found = parse_inventory("{}")
    assert found.cpus >= 1
    assert found.memory_bytes
    assert found.gpus == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "must be an object, found list"),
        ('{"gpu": []}', "unknown field 'gpu'"),
        ('{"cpus": "8"}', "cpus must be a whole number from 1, found '8'"),
        ('{"cpus": true}', "cpus must be"),
        ('{"memory": "lots"}', "memory must be a size like 64GiB, found 'lots'"),
        ('{"gpus": {"type": "x"}}', "gpus must be a list"),
        ('{"gpus": [{"memory": "1G"}]}', r"gpus\[0\] must be an object with a type"),
        ('{"gpus": [{"type": "x", "memory": 0}]}', r"gpus\[0\]\.memory must be a size"),
    ],
)
def test_a_bad_declaration_says_what_is_wrong_and_shows_the_form(text: str, message: str) -> None:
    with pytest.raises(MlocError, match=message) as caught:
        parse_inventory(text)
    assert '"gpus": [{"type": "a100"' in (caught.value.hint or "")


def test_a_missing_inventory_file_is_named() -> None:
    with pytest.raises(MlocError, match="neither JSON nor a readable file: '/nowhere/x'"):
        read_inventory(get_settings(inventory="/nowhere/x"))


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (ResourceRequest(), None),
        (ResourceRequest(cpus=8, memory_bytes=64 * GIB, gpu_count=2), None),
        (ResourceRequest(gpu_count=1, gpu_type="a100", gpu_memory_bytes=80 * GIB), None),
        (ResourceRequest(gpu_count=9, enforce_cpu=True), None),
        (ResourceRequest(cpus=9), "needs 9 cpu, this machine has 8 cpu"),
        (ResourceRequest(memory_bytes=65 * GIB), "needs 65 GiB of memory, this machine has 64 GiB of memory"),
        (
            ResourceRequest(gpu_count=2, gpu_type="a100", gpu_memory_bytes=80 * GIB),
            "needs 2x a100 with 80 GiB, this machine has 1x nvidia a100-sxm4-80gb 80 GiB, 1x nvidia l4 24 GiB",
        ),
        (
            ResourceRequest(cpus=9, gpu_count=3),
            "needs 9 cpu and 3x gpu, this machine has 8 cpu and 1x nvidia a100-sxm4-80gb 80 GiB, 1x nvidia l4 24 GiB",
        ),
    ],
)
def test_misfits_are_said_in_words(request_: ResourceRequest, expected: str | None) -> None:
    assert misfit(request_, TWO) == expected


def test_unknown_device_memory_fits() -> None:
    request = ResourceRequest(gpu_count=1, gpu_memory_bytes=GIB)
    assert misfit(request, Inventory(1, None, (GpuDevice(0, "l4"),))) is None
    assert misfit(request, Inventory(1)) == "needs 1x gpu with 1 GiB, this machine has no gpu"


def test_tags_must_all_be_there_in_any_case() -> None:
    lab = Inventory(8, None, (), ("Lab", "nvme"))
    assert misfit(ResourceRequest(tags=("lab",)), lab) is None
    assert misfit(ResourceRequest(tags=("lab", "a")), lab) == "needs the tag a, this machine has the tags Lab, nvme"
    assert misfit(ResourceRequest(tags=("a", "b")), Inventory(8)) == "needs the tags a, b, this machine has no tags"


def test_worker_tags_are_added_to_those_of_the_inventory() -> None:
    settings = get_settings(inventory='{"tags": ["Lab"]}', worker_tags="lab, nvme,")
    assert read_inventory(settings).tags == ("Lab", "nvme")
