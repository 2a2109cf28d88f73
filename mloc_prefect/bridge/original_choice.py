"""Which worker of the original protocol gets a task: pure, from what the registry says. [protocol 2.4]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mloc_prefect.bridge.hardware import worker_inventory
from mloc_prefect.plan.resources import describe
from mloc_prefect.worker.inventory import misfit

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from mloc_prefect.bridge.records import WorkerRecord
    from mloc_prefect.plan.model import ResourceRequest
    from mloc_prefect.settings import MlocSettings
    from mloc_prefect.worker.inventory import Inventory


@dataclass(frozen=True, slots=True)
class Weights:
    """How scarce workers are. [protocol 2.4, 6].

    Attributes:
        cpu_only: What an idle worker without GPUs counts.
        gpu: What an idle one with GPUs counts.
        low: Sum of these for each waiting task up to which the first worker is as good as the best one.
    """

    cpu_only: float = 0.6
    gpu: float = 1.0
    low: float = 0.6

    @classmethod
    def of(cls, settings: MlocSettings) -> Weights:
        """Return those that are set."""
        return cls(settings.cpu_only_weight, settings.gpu_weight, settings.low_avail_ratio)


USUAL = Weights()


@dataclass(frozen=True, slots=True)
class Choice:
    """Workers for one task.

    Attributes:
        live: Workers of the original protocol that are alive and may get work.
        fitting: Those with hardware for it.
        ready: Those that are idle, the best one first.
        why: Why none is ready, in words; empty when there is one.
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
    weights: Weights = USUAL,
) -> Choice:
    """Return the workers that may take a task.

    Args:
        workers: All of the registry; those of our own protocol are passed over.
        resources: What the task asks for.
        demand: Tasks that wait, this one included.
        avoid: Workers on which the task failed before: they come last, but are not left out.
        engaged: Workers that are known to have a task, whatever their status says.
        weights: When the best one is looked for.
    """
    original = [worker for worker in workers if worker.protocol == "original"]
    live = [worker for worker in original if not (worker.stale or worker.elastic_disabled)]
    fitting = [worker for worker in live if misfit(resources, worker_inventory(worker)) is None]
    idle = [worker for worker in fitting if worker.status == "IDLE" and worker.worker_id not in engaged]
    ready = sorted(_ordered(idle, demand, weights), key=lambda worker: worker.worker_id in avoid)
    why = "" if ready else _why(original, live, fitting, resources)
    return Choice(tuple(live), tuple(fitting), tuple(ready), why)


def _ordered(idle: Sequence[WorkerRecord], demand: int, weights: Weights) -> list[WorkerRecord]:
    weight = sum(weights.gpu if worker_inventory(worker).gpus else weights.cpu_only for worker in idle)
    if weight / max(1, demand) <= weights.low:
        return list(idle)
    return sorted(idle, key=lambda worker: _power(worker_inventory(worker)), reverse=True)


def _power(inventory: Inventory) -> tuple[bool, int, int, int]:
    memory = sum(gpu.memory_bytes or 0 for gpu in inventory.gpus)
    return bool(inventory.gpus), memory, inventory.memory_bytes or 0, inventory.cpus


def _why(
    original: Sequence[WorkerRecord],
    live: Sequence[WorkerRecord],
    fitting: Sequence[WorkerRecord],
    resources: ResourceRequest,
) -> str:
    need = f"needs {describe(resources)}"
    if not original:
        return f"{need}; no worker of the original protocol is registered"
    if not live:
        return f"{need}; {_count(original)} of the original protocol registered, none alive and switched on"
    if not fitting:
        nearest = misfit(resources, worker_inventory(live[0]))
        return f"{need}; {_count(live)} of the original protocol online, none fits ({live[0].worker_id}: {nearest})"
    busy = ", ".join(f"{w.worker_id} is {'taken' if w.status == 'IDLE' else w.status}" for w in fitting[:3])
    return f"{need}; {_count(fitting)} of the original protocol fit{'s' if len(fitting) == 1 else ''}: {busy}"


def _count(workers: Sequence[WorkerRecord]) -> str:
    return "1 worker" if len(workers) == 1 else f"{len(workers)} workers"
