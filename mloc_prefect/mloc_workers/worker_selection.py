"""Chooses the MLOC worker that gets a task, from the registry alone. [protocol 2.4]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mloc_prefect.hardware.inventory import misfit
from mloc_prefect.plan.resources import describe
from mloc_prefect.store.hardware_report import worker_inventory

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from mloc_prefect.hardware.inventory import Inventory
    from mloc_prefect.plan.resources import ResourceRequest
    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.store.records import WorkerRecord


@dataclass(frozen=True, slots=True)
class ScarcityWeights:
    """When workers count as scarce. [protocol 2.4, 6].

    Attributes:
        cpu_only: Weight of an idle worker without GPUs.
        gpu: Weight of an idle worker with GPUs.
        low: Up to this weight for each waiting task the first idle worker is taken instead of the best.
    """

    cpu_only: float = 0.6
    gpu: float = 1.0
    low: float = 0.6

    @classmethod
    def of(cls, settings: MlocSettings) -> ScarcityWeights:
        """Return the weights in the settings."""
        return cls(settings.cpu_only_weight, settings.gpu_weight, settings.low_avail_ratio)


USUAL = ScarcityWeights()


@dataclass(frozen=True, slots=True)
class WorkerChoice:
    """Workers for one task.

    Attributes:
        live: MLOC workers that are alive and may get work.
        fitting: Live workers with the hardware for it.
        ready: Fitting workers that are idle, the best one first.
        why: Why none is ready, as text; empty when one is.
    """

    live: tuple[WorkerRecord, ...]
    fitting: tuple[WorkerRecord, ...]
    ready: tuple[WorkerRecord, ...]
    why: str


def choose_worker(
    workers: Sequence[WorkerRecord],
    resources: ResourceRequest,
    *,
    demand: int = 1,
    avoid: Collection[str] = (),
    engaged: Collection[str] = (),
    weights: ScarcityWeights = USUAL,
) -> WorkerChoice:
    """Return the workers that may take a task.

    Args:
        workers: All of the registry; workers of this package are skipped.
        resources: What the task requests.
        demand: Number of waiting tasks, including this one.
        avoid: Workers where the task failed before; they come last.
        engaged: Workers that have a task, whatever their status says.
        weights: When the best worker is chosen instead of the first.
    """
    registered = [worker for worker in workers if worker.protocol == "original"]
    live = [worker for worker in registered if not (worker.stale or worker.elastic_disabled)]
    fitting = [worker for worker in live if misfit(resources, worker_inventory(worker)) is None]
    idle = [worker for worker in fitting if worker.status == "IDLE" and worker.worker_id not in engaged]
    ready = sorted(_ordered(idle, demand, weights), key=lambda worker: worker.worker_id in avoid)
    why = "" if ready else _why(registered, live, fitting, resources)
    return WorkerChoice(tuple(live), tuple(fitting), tuple(ready), why)


def _ordered(idle: Sequence[WorkerRecord], demand: int, weights: ScarcityWeights) -> list[WorkerRecord]:
    weight = sum(weights.gpu if worker_inventory(worker).gpus else weights.cpu_only for worker in idle)
    if weight / max(1, demand) <= weights.low:
        return list(idle)
    return sorted(idle, key=lambda worker: _power(worker_inventory(worker)), reverse=True)


def _power(inventory: Inventory) -> tuple[bool, int, int, int]:
    memory = sum(gpu.memory_bytes or 0 for gpu in inventory.gpus)
    return bool(inventory.gpus), memory, inventory.memory_bytes or 0, inventory.cpus


def _why(
    registered: Sequence[WorkerRecord],
    live: Sequence[WorkerRecord],
    fitting: Sequence[WorkerRecord],
    resources: ResourceRequest,
) -> str:
    need = f"needs {describe(resources)}"
    if not registered:
        return f"{need}; no MLOC worker is registered"
    if not live:
        return f"{need}; {_count(registered)} registered, none alive and switched on"
    if not fitting:
        nearest = misfit(resources, worker_inventory(live[0]))
        return f"{need}; {_count(live)} online, none fits ({live[0].worker_id}: {nearest})"
    busy = ", ".join(f"{w.worker_id} is {'taken' if w.status == 'IDLE' else w.status}" for w in fitting[:3])
    return f"{need}; {_count(fitting)} fit{'s' if len(fitting) == 1 else ''}: {busy}"


def _count(workers: Sequence[WorkerRecord]) -> str:
    return "1 MLOC worker" if len(workers) == 1 else f"{len(workers)} MLOC workers"
