"""Models of the `spec` fields that every task type has [protocol 4.1, 4.8, 4.9]."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from mloc_prefect.diagnostics.diagnostic import did_you_mean
from mloc_prefect.tasks.base import SpecModel, SpecProblem, TaskSpec
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
from mloc_prefect.urls import scheme_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_MEMORY = re.compile(r"\s*\d+\s*([KMGT]I?B?)?\s*", re.IGNORECASE)
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_CORES = re.compile(r"\s*\d+\s*(v?cpus?|v?cores?)?\s*", re.IGNORECASE)
_DTYPES = ("auto", "float16", "fp16", "bfloat16", "bf16", "float32", "fp32")
_DEVICES = ("auto", "balanced", "balanced_low_0", "sequential", "cuda", "cpu")
_DEVICE = re.compile(rf"{'|'.join(_DEVICES)}|(cuda:)?\d+")
_DESTINATIONS = ("local", "http")
_METHODS = ("POST", "PUT")  # others bring nothing to where they go
_CHECKPOINTS = ("local", "http")
_APPLY = ("runtime", "merge")


class GpuRequest(SpecModel):
    """`resources.hardware.gpu`; an empty mapping means no GPU."""

    count: Annotated[int | None, whole(ge=0)] = None
    type: Text = "any"
    memory: Text | None = None
    # Not in MLOC: tasks that state how much memory of a card they need share the card, unless this is set.
    exclusive: Flag = False


class Hardware(SpecModel):
    """`resources.hardware`: text in the form that MLOC's scheduler reads [protocol 2.4]."""

    cpu: Text | None = None
    memory: Text | None = None
    gpu: Annotated[GpuRequest | None, block(falsy=True)] = None


class Resources(SpecModel):
    """`resources`."""

    replicas: Annotated[int, whole(ge=0, lenient=True)] = 1
    hardware: Annotated[Hardware, block()] = Hardware()
    estimated_load: Annotated[float | None, number(ge=0)] = Field(None, alias="estimatedLoad")
    # Not in MLOC: labels that a worker must have (tags of its inventory and MLOC_WORKER_TAGS).
    tags: Texts | None = None


class ParallelOptions(SpecModel):
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

    def problems(self, path: tuple[str, ...]) -> Iterator[SpecProblem]:
        """Yield problems of the destination at `path`."""
        kind = self.type.strip().lower()
        if kind == "http" and not self.url:
            message = "spec.output.destination.url is required when type is 'http'"
            yield SpecProblem((*path, "url"), "missing-value", message, "add the URL that receives the result")
        if kind not in _DESTINATIONS and not is_deferred(self.type):
            message = f"Destination type '{self.type}' is not known; the result is kept locally"
            near = did_you_mean(kind, _DESTINATIONS) or "use local or http"
            yield SpecProblem((*path, "type"), "unknown-destination", message, near, "warning")
        if kind == "http" and self.url:
            yield from url_problems((*path, "url"), self.url)
        if kind == "http" and self.method.strip().upper() not in _METHODS and not is_deferred(self.method):
            message = "A result is sent with POST or PUT"
            yield SpecProblem(
                (*path, "method"), "unsupported-method", message, "write POST or PUT, or leave method out"
            )
        if kind != "http" and (self.path or "").strip().lower().startswith(("http://", "https://")):
            message = "A path cannot be an http address"
            yield SpecProblem((*path, "path"), "invalid-url", message, "write type: http and url instead")
        elif kind != "http" and "://" not in (self.path or "") and (scheme := scheme_of(self.path or "")):
            message = "path is neither a URL nor a folder: a URL has two slashes after its scheme"
            yield SpecProblem((*path, "path"), "invalid-url", message, f"write {scheme}://")


class OutputOptions(SpecModel):
    """`output`."""

    destination: Annotated[Destination, block()] = Destination()
    artifacts: Annotated[list[ItemText], rows()] = Field(default_factory=list)


class CheckpointLoad(SpecModel):
    """`checkpoint.load`: weights that training starts from [protocol 4.9]."""

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

    def problems(self, path: tuple[str, ...]) -> Iterator[SpecProblem]:
        """Yield problems of the checkpoint at `path`."""
        kind = self.type.strip().lower()
        named = self.path or self.task_id
        if kind == "local" and not (named or self.uri):
            message = "checkpoint.load.path is required for local checkpoints"
            yield SpecProblem((*path, "path"), "missing-value", message, "add path, or type: http with a url")
        elif kind == "http" and not (named or self.url):
            message = "checkpoint.load.url is required for HTTP checkpoints (set base_url or ORCHESTRATOR_BASE_URL)"
            yield SpecProblem((*path, "url"), "missing-value", message, "add url, or task_id and filename")
        elif kind not in _CHECKPOINTS and not is_deferred(self.type):
            message = f"Unsupported checkpoint load type '{self.type}'"
            near = did_you_mean(kind, _CHECKPOINTS) or "use local or http"
            yield SpecProblem((*path, "type"), "unsupported-checkpoint", message, near)
        if kind == "http" and self.url:
            yield from url_problems((*path, "url"), self.url)
        if self.sha256 is not None and not _SHA256.fullmatch(self.sha256.strip()) and not is_deferred(self.sha256):
            message = "sha256 is not a digest of 64 hexadecimal digits"
            yield SpecProblem(
                (*path, "sha256"), "invalid-type", message, "take it from sha256sum, or from manifest.json"
            )


class CheckpointOptions(SpecModel):
    """`checkpoint`."""

    load: Annotated[CheckpointLoad | None, block()] = None


class ModelSource(SpecModel):
    """`model.source`. MLOC reads only the identifier; here revision and trust_remote_code apply too."""

    type: Text | None = None
    identifier: Text | None = None
    revision: Text | None = None
    trust_remote_code: Flag = False


class VllmOptions(SpecModel):
    """`model.vllm` [protocol 4.2]; other fields are engine arguments of vLLM."""

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

    def problems(self, path: tuple[str, ...]) -> Iterator[SpecProblem]:
        """Yield words of the options at `path` that the executors do not know."""
        if self.dtype.strip().lower().removeprefix("torch.") not in _DTYPES and not is_deferred(self.dtype):
            near = did_you_mean(self.dtype, _DTYPES) or f"use one of: {', '.join(_DTYPES)}"
            yield SpecProblem((*path, "dtype"), "unsupported-dtype", f"Unsupported dtype: {self.dtype}", near)
        device = (self.device_map or "").strip().lower()
        if device and not _DEVICE.fullmatch(device) and not is_deferred(self.device_map):
            near = did_you_mean(device, _DEVICES) or f"use one of: {', '.join(_DEVICES)}, cuda:0"
            yield SpecProblem((*path, "device_map"), "unsupported-device", f"Unsupported device_map: {device}", near)


class AdapterOptions(SpecModel):
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

    def problems(self, path: tuple[str | int, ...]) -> Iterator[SpecProblem]:
        """Yield problems of the adapter at `path`."""
        if self.type.strip().lower() != "lora" and not is_deferred(self.type):
            message = f"Adapters of type '{self.type}' cannot be used"
            yield SpecProblem((*path, "type"), "unsupported-lora", message, "use lora, or leave type out")
        if not (self.path or self.url or self.task_id):
            message = "The adapter names no weights"
            yield SpecProblem(path, "missing-value", message, "add path, task_id, or url")
        if self.apply.strip().lower() not in _APPLY and not is_deferred(self.apply):
            message = f"apply '{self.apply}' is not known; the adapter is used as with runtime"
            near = did_you_mean(self.apply, _APPLY) or "use runtime or merge"
            yield SpecProblem((*path, "apply"), "ignored-value", message, near, "warning")


class ModelBlock(SpecModel):
    """`model`."""

    source: Annotated[ModelSource, block()] = ModelSource()
    vllm: Annotated[VllmOptions, block()] = VllmOptions()
    transformers: Annotated[TransformersOptions, block()] = TransformersOptions()
    adapters: Annotated[list[Annotated[AdapterOptions, item()]], rows()] = Field(default_factory=list)
    config: Free = Field(default_factory=dict)


class CommonSpec(TaskSpec):
    """Fields that every `spec` may have, whatever its task type."""

    # Written by MLOC's dispatcher, not by users; single tasks keep empty `stages` and `graph`.
    accepted: ClassVar[frozenset[str]] = frozenset(
        {"_upstreamResults", "stages", "graph", "shard", "dependsOn", "sloSeconds"}
    )

    loads_model: ClassVar[bool] = False
    """Whether tasks of this type load the model that `model.source` names."""

    task_type: Text | None = Field(None, alias="taskType")
    resources: Annotated[Resources, block()] = Resources()
    parallel: Annotated[ParallelOptions, block()] = ParallelOptions()
    enforce_cpu: Flag = False
    model: Annotated[ModelBlock, block(message="must be a mapping; the name goes into model.source.identifier")] = (
        ModelBlock()
    )
    output: Annotated[OutputOptions, block()] = OutputOptions()
    checkpoint: Annotated[CheckpointOptions, block()] = CheckpointOptions()
    timeout_sec: Positive | None = Field(None, alias="timeoutSec")
    priority: Annotated[int, whole()] = 0

    def problems(self) -> Iterator[SpecProblem]:
        """Yield the problems that every task type can have."""
        yield from _hardware_problems(self.resources.hardware)
        if self.loads_model and "source" in self.model.model_fields_set and not self.model.source.identifier:
            message = "spec.model.source names no model"
            fix = "add identifier, or remove source for the default of the task type or of the worker"
            yield SpecProblem(("model", "source", "identifier"), "missing-value", message, fix)
        for index, adapter in enumerate(self.model.adapters):
            yield from adapter.problems(("model", "adapters", index))
        yield from self.output.destination.problems(("output", "destination"))
        if self.checkpoint.load is not None:
            yield from self.checkpoint.load.problems(("checkpoint", "load"))


def url_problems(path: tuple[str, ...], url: str) -> Iterator[SpecProblem]:
    """Yield an error when `url` is neither http nor https."""
    if not url.strip().lower().startswith(("http://", "https://")) and not is_deferred(url):
        yield SpecProblem(path, "invalid-url", f"{path[-1]} must start with http:// or https://", "write the whole URL")


def _hardware_problems(hardware: Hardware) -> Iterator[SpecProblem]:
    path = ("resources", "hardware")
    if hardware.cpu is not None and not any(c.isdecimal() for c in hardware.cpu) and not is_deferred(hardware.cpu):
        message = "cpu has no digits, so no number of cores is requested"
        yield SpecProblem((*path, "cpu"), "ignored-value", message, "write the number of cores, e.g. '4'", "warning")
    elif hardware.cpu is not None and not _CORES.fullmatch(hardware.cpu) and not is_deferred(hardware.cpu):
        digits = "".join(c for c in hardware.cpu if c.isdecimal())
        message = f"cpu is read as {digits[:9]} cores: all its digits, as in MLOC"
        yield SpecProblem((*path, "cpu"), "joined-digits", message, "write whole cores, e.g. '4'", "warning")
    yield from _memory_problems((*path, "memory"), hardware.memory)
    if hardware.gpu is not None:
        yield from _memory_problems((*path, "gpu", "memory"), hardware.gpu.memory)
        if hardware.gpu.count is None:
            message = "Missing spec.resources.hardware.gpu.count"
            yield SpecProblem((*path, "gpu", "count"), "missing-gpu-field", message, "add count (0 = no GPU)")


def _memory_problems(path: tuple[str, ...], text: str | None) -> Iterator[SpecProblem]:
    if text is None or _MEMORY.fullmatch(text) or is_deferred(text):
        return
    message = "memory is not understood, so no limit applies"
    fix = "write digits and a unit: K, M, G or T with optional i and B, e.g. 16Gi (no decimals)"
    yield SpecProblem(path, "ignored-value", message, fix, "warning")
