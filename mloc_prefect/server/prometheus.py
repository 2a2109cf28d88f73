"""The metrics snapshot and the answers of this process as Prometheus text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client import Metric

    from mloc_prefect.server.counters import Counters

__all__ = ["CONTENT_TYPE", "exposition"]


def exposition(snapshot: Mapping[str, Any], counters: Counters) -> bytes:
    """Return a snapshot of `metrics_snapshot` and the counted answers as Prometheus text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(snapshot, counters))
    return generate_latest(registry)


class _Snapshot(Collector):
    def __init__(self, snapshot: Mapping[str, Any], counters: Counters) -> None:
        self._snapshot = snapshot
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        for name, value in self._snapshot["counters"].items():
            yield CounterMetricFamily(f"mloc_{name}", f"{name.replace('_', ' ')}", value=value)
        tasks = GaugeMetricFamily("mloc_tasks", "task records by status", labels=["status"])
        for status, number in self._snapshot["tasks"].items():
            tasks.add_metric([status], number)
        yield tasks
        yield GaugeMetricFamily("mloc_active_workers", "workers alive", value=self._snapshot["active_workers_count"])
        yield GaugeMetricFamily(
            "mloc_journal_depth", "submissions and cancellations not yet done", value=self._snapshot["journal_depth"]
        )
        yield from self._timings()
        answers = CounterMetricFamily(
            "mloc_http_answers", "answers of this process", labels=["method", "route", "status"]
        )
        for (method, route, status), number in sorted(self._counters.answers.items()):
            answers.add_metric([method, route, str(status)], number)
        yield answers

    def _timings(self) -> Iterator[Metric]:
        for timing in ("queue", "execution", "total"):
            family = SummaryMetricFamily(
                f"mloc_task_{timing}_seconds", f"{timing} time of finished tasks", labels=["bucket"]
            )
            for bucket, found in self._snapshot["task_timings"].items():
                family.add_metric([bucket], found[f"{timing}_count"], found[f"{timing}_total_sec"])
            yield family
