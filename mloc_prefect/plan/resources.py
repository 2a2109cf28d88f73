"""Reads what a task asks of a machine, as MLOC's scheduler does. [protocol 2.4, 4.1]."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mloc_prefect.tasks.base import TaskType

_MEMORY = re.compile(r"\s*([0-9]{1,18})\s*([KMGT]?)(I?B?)\s*", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_ANY_TYPE = {"", "any", "auto", "*"}


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """What one stage asks of a machine. [protocol 2.4, 4.1].

    Attributes:
        cpus: Logical cores, or None for no limit.
        memory_bytes: RAM in bytes, or None.
        gpu_count: Number of devices; 0 means none.
        gpu_type: Lower-case substring of the device name, or None for any.
        gpu_memory_bytes: Memory that each device must have, or None.
        enforce_cpu: The engine must not use a device even where there is one.
        gpu_exclusive: Its devices are its own, even where it needs only a part of their memory.
        tags: Lower-case words that the machine must have.
    """

    cpus: int | None = None
    memory_bytes: int | None = None
    gpu_count: int = 0
    gpu_type: str | None = None
    gpu_memory_bytes: int | None = None
    enforce_cpu: bool = False
    gpu_exclusive: bool = False
    tags: tuple[str, ...] = ()

    def __str__(self) -> str:
        return describe(self)


def parse_memory(text: Any) -> int | None:
    """Return bytes for `16Gi`, `16 GiB`, `16GB` (all the same: powers of 1024) or plain digits; None for other text."""
    if isinstance(text, bool) or text is None:
        return None
    match = _MEMORY.fullmatch(str(text))
    if match is None or (match[3] and not match[2]):
        return None
    return int(match[1]) << (10 * _POWERS[match[2].upper()])


def parse_cpus(value: Any) -> int | None:
    """Return all digits of `value` joined, as MLOC does: `"4 cores"` is 4, but `"500m"` is 500; None without any."""
    digits = "".join(c for c in str(value) if c in "0123456789")[:9]
    return int(digits) if digits else None


def gpu_type(value: Any) -> str | None:
    """Return the lower-case device name wanted, or None for any."""
    name = str(value if value is not None else "").strip().lower()
    return None if name in _ANY_TYPE else name


def request_of(kind: TaskType, spec: Mapping[str, Any]) -> ResourceRequest:
    """Return the request of one task.

    Args:
        kind: The task type; some read `enforce_cpu`, the others ignore it.
        spec: The plain `spec` mapping of the effective document.
    """
    resources = mapping_of(spec.get("resources"))
    hardware = mapping_of(resources.get("hardware"))
    gpu = mapping_of(hardware.get("gpu"))
    return ResourceRequest(
        cpus=parse_cpus(hardware.get("cpu")),
        memory_bytes=parse_memory(hardware.get("memory")),
        gpu_count=number_of(gpu.get("count")),
        gpu_type=gpu_type(gpu.get("type")),
        gpu_memory_bytes=parse_memory(gpu.get("memory")),
        enforce_cpu=kind.reads_enforce_cpu and is_true(spec.get("enforce_cpu")),
        gpu_exclusive=is_true(gpu.get("exclusive")),
        tags=tags_of(resources.get("tags")),
    )


def tags_of(value: Any) -> tuple[str, ...]:
    """Return tags as sorted lower-case words; `value` is a list of texts, or one text with commas."""
    found = value if isinstance(value, (list, tuple)) else str(value if value is not None else "").split(",")
    return tuple(sorted({str(tag).strip().lower() for tag in found} - {""}))


def describe(request: ResourceRequest) -> str:
    """Return the request as text, e.g. `8 cpu, 16 GiB, 2 gpu (a100, 40 GiB each)`."""
    parts = []
    if request.cpus is not None:
        parts.append(f"{request.cpus} cpu")
    if request.memory_bytes is not None:
        parts.append(memory_text(request.memory_bytes))
    if request.gpu_count:
        memory = f"{memory_text(request.gpu_memory_bytes)} each" if request.gpu_memory_bytes else None
        detail = ", ".join(text for text in (request.gpu_type, memory) if text)
        parts.append(f"{request.gpu_count} gpu" + (f" ({detail})" if detail else ""))
        if request.gpu_exclusive and request.gpu_memory_bytes:
            parts.append("not shared")
    if request.enforce_cpu:
        parts.append("no gpu used")
    if request.tags:
        parts.append(f"tags {', '.join(request.tags)}")
    return ", ".join(parts) or "nothing in particular"


def memory_text(size: int) -> str:
    """Return bytes in the largest binary unit that divides them, e.g. `16 GiB`."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size and size % (1 << (10 * power)) == 0:
            return f"{size >> (10 * power)} {unit}"
    return f"{size} B"


def is_true(value: Any) -> bool:
    """Return whether a YAML value means yes; text is read as a person would (`"false"` is no)."""
    return value.strip().lower() in {"true", "yes", "on", "1"} if isinstance(value, str) else bool(value)


def mapping_of(value: Any) -> Mapping[str, Any]:
    """Return `value` if it is a mapping, else an empty one: a part of a spec that may have any form."""
    return value if isinstance(value, Mapping) else {}


def number_of(value: Any, default: int = 0) -> int:
    """Return a whole number that a spec writes as a number or as text, else `default`."""
    text = str(value).strip() if not isinstance(value, bool) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else default
