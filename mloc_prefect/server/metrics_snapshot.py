"""The JSON of `GET /metrics`, in the format of the later generation. [protocol 1.6]."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, get_args

from mloc_prefect.bridge.worker_metrics import COUNTERS
from mloc_prefect.store.hardware_report import inventory_of
from mloc_prefect.store.states import TaskStatus
from mloc_prefect.tasks.base import Category

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mloc_prefect.server.dependencies import EndpointContext
    from mloc_prefect.store.records import WorkerRecord

_COUNTERS = ("tasks_succeeded", "tasks_failed", "tasks_requeued", *COUNTERS.values())
_BUCKETS = ("overall", *get_args(Category))
_TIMINGS = ("queue", "execution", "total")


async def snapshot(endpoint: EndpointContext, *, ids: bool = True) -> dict[str, Any]:
    """Return the snapshot; without `ids`, the list of completed tasks, which grows without limit, is empty.

    Counters and times are sums stored with the records, so they are the same at every endpoint process. In addition to
    the later generation there are `tasks` (records by status) and `journal_depth`. Energy is not measured: null.

    Raises:
        StoreError: Redis cannot be reached.
    """
    stores = endpoint.stores
    counts, tally = await stores.tasks.counts(), await stores.tasks.tally()
    workers = await stores.workers.list()
    done = await stores.tasks.page(status=TaskStatus.DONE, brief=True) if ids else ()
    return {
        "generated_at": datetime.now(UTC).isoformat(),
        "counters": {
            "tasks_submitted": sum(counts.values()),
            **{name: int(tally.get(name, 0)) for name in _COUNTERS},
        },
        "task_timings": {bucket: _timings(bucket, tally) for bucket in _BUCKETS},
        "workers": {"totals": _totals(workers), "workers": {w.worker_id: w.to_dict() for w in workers}},
        "active_workers_count": sum(not worker.stale for worker in workers),
        "elastic_disabled_workers": sorted(w.worker_id for w in workers if w.elastic_disabled),
        "completed_tasks": sorted(record.task_id for record in done),
        "tasks": {str(status): number for status, number in counts.items()},
        "journal_depth": await stores.journal.depth(),
    }


def _timings(bucket: str, tally: Mapping[str, float]) -> dict[str, float | int | None]:
    found: dict[str, float | int | None] = {}
    for timing in _TIMINGS:
        count = int(tally.get(f"{bucket}_{timing}_count", 0))
        total = tally.get(f"{bucket}_{timing}_total_sec", 0.0)
        found[f"{timing}_avg_sec"] = total / count if count else None
        found[f"{timing}_count"] = count
        found[f"{timing}_total_sec"] = total
    return found


def _totals(workers: Sequence[WorkerRecord]) -> dict[str, float | int | None]:
    """Return sums over the live workers."""
    now = datetime.now(UTC)
    alive = [worker for worker in workers if not worker.stale]
    uptimes = {worker.worker_id: _uptime(worker, now) for worker in alive}
    costs = [w.cost_per_hour * uptimes[w.worker_id] / 3600 for w in alive if w.cost_per_hour is not None]
    gpus = [gpu.memory_bytes or 0 for worker in alive for gpu in inventory_of(worker.hardware).gpus]
    return {
        "accrued_cost_usd": sum(costs) if costs else None,
        "uptime_sec": sum(uptimes.values()),
        "estimated_energy_kwh": None,
        "cpu_energy_kwh": None,
        "gpu_energy_kwh": None,
        "workers_with_energy": 0,
        "gpu_memory_total_bytes": sum(gpus),
    }


def _uptime(worker: WorkerRecord, now: datetime) -> float:
    try:
        started = datetime.fromisoformat(worker.started_at or "")
    except ValueError:
        return 0.0
    aware = started if started.tzinfo else started.replace(tzinfo=UTC)
    return max((now - aware).total_seconds(), 0.0)
