"""Fields of `spec` that every task type has [protocol 4.1, 4.8, 4.9]."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from mloc_prefect.spec.diagnostics import did_you_mean
from mloc_prefect.tasks.base import Problem, SpecModel, TaskSpec
from mloc_prefect.tasks.fields import (
    Count,
    Flag,
    Free,
    ItemText,
    Positive,
    Text,
    Texts,
    block,
    is_deferred,
    item,
    number,
    rows,
    whole,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_MEMORY = re.compile(r"\s*\d+\s*([KMGT]I?B?)?\s*", re.IGNORECASE)
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_CORES = re.compile(r"\s*\d+\s*(v?cpus?|v?cores?)?\s*", re.IGNORECASE)
_DESTINATIONS = ("local", "http")
_CHECKPOINTS = ("local", "http")


class Gpu(SpecModel):
    """`resources.hardware.gpu`; an empty one means no GPU."""

    count: Annotated[int | None, whole(ge=0)] = None
    type: Text = "any"
    memory: Text | None = None
    # Ours: a task that states a part of a card's memory shares the card with others that do, unless this is set.
    exclusive: Flag = False


class Hardware(SpecModel):
    """`resources.hardware`: texts as MLOC's scheduler reads them [protocol 2.4]."""

    cpu: Text | None = None
    memory: Text | None = None
    gpu: Annotated[Gpu | None, block(falsy=True)] = None


class Resources(SpecModel):
    """`resources`."""

    replicas: Annotated[int, whole(ge=0, lenient=True)] = 1
    hardware: Annotated[Hardware, block()] = Hardware()
    estimated_load: Annotated[float | None, number(ge=0)] = Field(None, alias="estimatedLoad")
    # Ours: words that a worker must have (its inventory's tags and MLOC_WORKER_TAGS).
    tags: Texts | None = None


class Parallel(SpecModel):
    """`parallel`: data-parallel shards [protocol 2.7]."""

    enabled: Flag = False
    max_shards: Annotated[int, whole(ge=1, lenient=True)] = 8


class Destination(SpecModel):
    """`output.destination` [protocol 4.8]."""

    type: Text = "local"
    path: Text | None = None
    url: Text | None = None
    method: Text = "POST"
    headers: Annotated[dict[str, Any], block()] = Field(default_factory=dict)
    timeout_sec: Positive | None = Field(None, alias="timeoutSec")

    def problems(self, path: tuple[str, ...]) -> Iterator[Problem]:
        """Yield what is wrong with the destination that stands at `path`."""
        kind = self.type.strip().lower()
        if kind == "http" and not self.url:
            message = "spec.output.destination.url is required when type is 'http'"
            yield Problem((*path, "url"), "missing-value", message, "add the URL that takes the result")
        if kind not in _DESTINATIONS and not is_deferred(self.type):
            message = f"Destination type '{self.type}' is not known; the result is kept locally"
            near = did_you_mean(kind, _DESTINATIONS) or "use local or http"
            yield Problem((*path, "type"), "unknown-destination", message, near, "warning")
        if kind == "http" and self.url:
            yield from url_problems((*path, "url"), self.url)
        if kind != "http" and (self.path or "").strip().lower().startswith(("http://", "https://")):
            message = "A path cannot be an http address"
            yield Problem((*path, "path"), "invalid-url", message, "write type: http and url instead")


class Output(SpecModel):
    """`output`."""

    destination: Annotated[Destination, block()] = Destination()
    artifacts: Annotated[list[ItemText], rows()] = Field(default_factory=list)


class CheckpointLoad(SpecModel):
    """`checkpoint.load`: weights that training goes on from [protocol 4.9]."""

    type: Text = "local"
    path: Text | None = None
    uri: Text | None = None
    url: Text | None = None
    base_url: Text | None = Field(None, alias="baseUrl")
    task_id: Text | None = Field(None, alias="taskId")
    filename: Text | None = None
    headers: Annotated[dict[str, Any], block()] = Field(default_factory=dict)
    timeout_sec: Positive = Field(60.0, alias="timeoutSec")
    archive_format: Text = "auto"
    sha256: Text | None = None
    subdir: Text | None = None
    resume_from_path: Text | None = None

    def problems(self, path: tuple[str, ...]) -> Iterator[Problem]:
        """Yield what is wrong with the checkpoint that stands at `path`."""
        kind = self.type.strip().lower()
        anywhere = self.path or self.task_id
        if kind == "local" and not (anywhere or self.uri):
            message = "checkpoint.load.path is required for local checkpoints"
            yield Problem((*path, "path"), "missing-value", message, "add path, or type: http with a url")
        elif kind == "http" and not (anywhere or self.url):
            message = "checkpoint.load.url is required for HTTP checkpoints (set base_url or ORCHESTRATOR_BASE_URL)"
            yield Problem((*path, "url"), "missing-value", message, "add url, or task_id and filename")
        elif kind not in _CHECKPOINTS and not is_deferred(self.type):
            message = f"Unsupported checkpoint load type '{self.type}'"
            near = did_you_mean(kind, _CHECKPOINTS) or "use local or http"
            yield Problem((*path, "type"), "unsupported-checkpoint", message, near)
        if kind == "http" and self.url:
            yield from url_problems((*path, "url"), self.url)
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256.strip()) and not is_deferred(self.sha256):
            message = "sha256 is not a digest of 64 hexadecimal digits"
            yield Problem((*path, "sha256"), "invalid-type", message, "take it from sha256sum, or from manifest.json")


class Checkpoint(SpecModel):
    """`checkpoint`."""

    load: Annotated[CheckpointLoad | None, block()] = None


class ModelSource(SpecModel):
    """`model.source`. MLOC reads only the identifier; revision and trust are honoured here too."""

    type: Text | None = None
    identifier: Text | None = None
    revision: Text | None = None
    trust_remote_code: Flag = False


class VllmOptions(SpecModel):
    """`model.vllm` [protocol 4.2]; other fields are arguments of vLLM's engine."""

    passes_on: ClassVar[bool] = True

    tensor_parallel_size: Count | None = None
    gpu_memory_utilization: Annotated[float, number(gt=0, le=1)] = 0.9
    trust_remote_code: Flag = False
    max_model_len: Count | None = None
    dtype: Text | None = None
    download_dir: Text | None = None


class TransformersOptions(SpecModel):
    """`model.transformers` [protocol 4.2]."""

    device_map: Text | None = None
    dtype: Text = "auto"
    trust_remote_code: Flag = False
    low_cpu_mem_usage: Flag = True
    load_in_8bit: Flag = False
    load_in_4bit: Flag = False
    use_flash_attention_2: Flag = False


class Adapter(SpecModel):
    """One of `model.adapters`."""

    type: Text = "lora"
    name: Text | None = None
    id: Text | None = None
    adapter_id: Text | None = None
    path: Text | None = None
    url: Text | None = None
    task_id: Text | None = Field(None, alias="taskId")
    headers: Annotated[dict[str, Any], block()] = Field(default_factory=dict)
    sha256: Text | None = None
    archive_format: Text = "auto"
    scale: Annotated[float, number()] = 1.0
    apply: Text = "runtime"


class ModelBlock(SpecModel):
    """`model`."""

    source: Annotated[ModelSource, block()] = ModelSource()
    vllm: Annotated[VllmOptions, block()] = VllmOptions()
    transformers: Annotated[TransformersOptions, block()] = TransformersOptions()
    adapters: Annotated[list[Annotated[Adapter, item()]], rows()] = Field(default_factory=list)
    config: Free = Field(default_factory=dict)


class CommonSpec(TaskSpec):
    """What every `spec` may hold, whatever its task type."""

    # Written by MLOC's dispatcher, not by users; a single task keeps empty `stages` and `graph`.
    accepted: ClassVar[frozenset[str]] = frozenset(
        {"_upstreamResults", "stages", "graph", "shard", "dependsOn", "sloSeconds"}
    )

    task_type: Text | None = Field(None, alias="taskType")
    resources: Annotated[Resources, block()] = Resources()
    parallel: Annotated[Parallel, block()] = Parallel()
    enforce_cpu: Flag = False
    model: Annotated[ModelBlock, block(message="must be a mapping; the name goes into model.source.identifier")] = (
        ModelBlock()
    )
    output: Annotated[Output, block()] = Output()
    checkpoint: Annotated[Checkpoint, block()] = Checkpoint()
    timeout_sec: Positive | None = Field(None, alias="timeoutSec")
    priority: Annotated[int, whole()] = 0

    def problems(self) -> Iterator[Problem]:
        """Yield the problems that any task type can have."""
        yield from _hardware_problems(self.resources.hardware)
        yield from self.output.destination.problems(("output", "destination"))
        if self.checkpoint.load is not None:
            yield from self.checkpoint.load.problems(("checkpoint", "load"))


def url_problems(path: tuple[str, ...], url: str) -> Iterator[Problem]:
    """Yield an error when `url` is neither http nor https."""
    if not url.strip().lower().startswith(("http://", "https://")) and not is_deferred(url):
        yield Problem(path, "invalid-url", f"{path[-1]} must start with http:// or https://", "write the whole URL")


def _hardware_problems(hardware: Hardware) -> Iterator[Problem]:
    path = ("resources", "hardware")
    if hardware.cpu is not None and not any(c.isdecimal() for c in hardware.cpu) and not is_deferred(hardware.cpu):
        message = "cpu has no digits, so no number of cores is asked for"
        yield Problem((*path, "cpu"), "ignored-value", message, "write the number of cores, e.g. '4'", "warning")
    elif hardware.cpu is not None and not _CORES.fullmatch(hardware.cpu) and not is_deferred(hardware.cpu):
        digits = "".join(c for c in hardware.cpu if c.isdecimal())
        message = f"cpu is read as {digits[:9]} cores: all its digits, as in MLOC"
        yield Problem((*path, "cpu"), "joined-digits", message, "write whole cores, e.g. '4'", "warning")
    yield from _memory_problems((*path, "memory"), hardware.memory)
    if hardware.gpu is not None:
        yield from _memory_problems((*path, "gpu", "memory"), hardware.gpu.memory)
        if hardware.gpu.count is None:
            message = "Missing spec.resources.hardware.gpu.count"
            yield Problem((*path, "gpu", "count"), "missing-gpu-field", message, "add count (0 = no GPU)")


def _memory_problems(path: tuple[str, ...], text: str | None) -> Iterator[Problem]:
    if text is None or _MEMORY.fullmatch(text) or is_deferred(text):
        return
    message = "memory is not understood, so no limit holds"
    fix = "write digits and a unit: K, M, G or T with optional i and B, e.g. 16Gi (no decimals)"
    yield Problem(path, "ignored-value", message, fix, "warning")
