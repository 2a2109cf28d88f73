"""What a task asks of a machine. [protocol 2.4, 4.1]"""

from __future__ import annotations

from typing import Any

import pytest

from mloc_prefect.plan import ResourceRequest
from mloc_prefect.plan.resources import describe, parse_cpus, parse_memory, request_of
from mloc_prefect.tasks.registry import task_type

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16Gi", 16 * GIB),
        ("16GiB", 16 * GIB),
        ("16GB", 16 * GIB),
        ("16 g", 16 * GIB),
        ("16gb ", 16 * GIB),
        ("512Mi", 512 << 20),
        ("8k", 8192),
        ("1T", 1 << 40),
        ("1024", 1024),
        (2048, 2048),
        ("1.5Gi", None),
        ("10B", None),
        ("1Pi", None),
        ("lots", None),
        ("", None),
        (None, None),
        (True, None),
        (1.5, None),
        ("-1Gi", None),
    ],
)
def test_parse_memory(text: Any, size: int | None) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize(
    ("value", "cpus"),
    [("8", 8), (8, 8), ("4 cores", 4), ("4.5", 45), (4.5, 45), ("500m", 500), ("many", None), (None, None)],
)
def test_cpus_are_all_digits_joined(value: Any, cpus: int | None) -> None:
    assert parse_cpus(value) == cpus


def _spec(gpu: Any = None, **more: Any) -> dict[str, Any]:
    return {"resources": {"replicas": 1, "hardware": {"cpu": "8", "memory": "16Gi", "gpu": gpu}}, **more}


@pytest.mark.parametrize(
    ("gpu", "count", "kind", "memory"),
    [
        (None, 0, None, None),
        ({}, 0, None, None),
        ({"count": 0, "type": "any"}, 0, None, None),
        ({"count": "2", "type": "NVIDIA-A100"}, 2, "nvidia-a100", None),
        ({"count": 1, "type": "auto", "memory": "40GiB"}, 1, None, 40 * GIB),
        ({"count": 1, "type": "*"}, 1, None, None),
        ({"count": 1, "type": ""}, 1, None, None),
        ({"count": "x", "type": "any"}, 0, None, None),
    ],
)
def test_gpu(gpu: Any, count: int, kind: str | None, memory: int | None) -> None:
    request = request_of(task_type("sft"), _spec(gpu))
    assert (request.gpu_count, request.gpu_type, request.gpu_memory_bytes) == (count, kind, memory)


def test_enforce_cpu_is_for_inference_only() -> None:
    assert request_of(task_type("inference"), _spec(enforce_cpu=True)).enforce_cpu
    assert not request_of(task_type("inference"), _spec(enforce_cpu="false")).enforce_cpu
    assert not request_of(task_type("sft"), _spec(enforce_cpu=True)).enforce_cpu


@pytest.mark.parametrize(
    ("tags", "expected"),
    [(["Lab", "a100-nodes"], ("a100-nodes", "lab")), ("lab, NVMe", ("lab", "nvme")), (None, ()), ([], ()), ("", ())],
)
def test_tags_are_words_of_a_list_or_of_a_text(tags: Any, expected: tuple[str, ...]) -> None:
    assert request_of(task_type("sft"), {"resources": {"tags": tags}}).tags == expected


def test_a_card_is_shared_unless_the_spec_refuses() -> None:
    assert not request_of(task_type("sft"), _spec({"count": 1, "memory": "40Gi"})).gpu_exclusive
    request = request_of(task_type("sft"), _spec({"count": 1, "memory": "40Gi", "exclusive": "yes"}))
    assert request.gpu_exclusive
    assert describe(request).endswith("1 gpu (40 GiB each), not shared")


def test_a_spec_without_resources_asks_for_nothing() -> None:
    assert request_of(task_type("echo"), {}) == ResourceRequest()
    assert request_of(task_type("echo"), {"resources": "x"}) == ResourceRequest()


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (ResourceRequest(), "nothing in particular"),
        (ResourceRequest(cpus=8, memory_bytes=16 * GIB), "8 cpu, 16 GiB"),
        (ResourceRequest(memory_bytes=1536 << 20), "1536 MiB"),
        (ResourceRequest(memory_bytes=1000), "1000 B"),
        (ResourceRequest(gpu_count=1), "1 gpu"),
        (ResourceRequest(gpu_count=2, gpu_type="a100", gpu_memory_bytes=40 * GIB), "2 gpu (a100, 40 GiB each)"),
        (ResourceRequest(cpus=1, enforce_cpu=True), "1 cpu, no gpu used"),
    ],
)
def test_describe(request_: ResourceRequest, text: str) -> None:
    assert describe(request_) == text
    assert str(request_) == text
