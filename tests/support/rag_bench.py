"""Runs the rag executor in this process."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.context import ExecutionContext
from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionRequest
from mloc_prefect.execution.wire import json_ready
from mloc_prefect.executors.rag import RagExecutor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class RagBench:
    """Runs attempts of rag tasks.

    Attributes:
        executor: Keeps its models from one attempt to the next.
        events: Of the last attempt.
        cancelled: Ends an attempt.
        settings: Of the requests.
    """

    def __init__(self, root: Path, mirrors: Path) -> None:
        self.executor = RagExecutor({})
        self.root = root
        self.events: list[ExecutionEvent] = []
        self.cancelled = threading.Event()
        self.on_event: Callable[[ExecutionEvent], None] = lambda _event: None
        self.settings: dict[str, Any] = {
            "home": str(root / "home"),
            "base_dir": str(root),
            "mirrors": str(mirrors),
            "loopback": True,
        }
        self._attempts = 0

    def __call__(self, task: str | None = None, upstream: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
        """Run one attempt of a new task, or of `task`, and return its result as its file holds it."""
        self._attempts += 1
        name = task or f"task{self._attempts}"
        own = self.root / name / "attempts" / f"1-{self._attempts}"
        own.mkdir(parents=True)
        request = ExecutionRequest(
            task_id=name,
            name=name,
            task_type="rag",
            executor="",
            spec=spec,
            task_dir=str(self.root / name),
            attempt_dir=str(own),
            upstream=upstream or {},
            settings=self.settings,
        )
        self.events.clear()
        context = ExecutionContext(request, self._emit, self.cancelled)
        try:
            result = self.executor.run(request, context)
            return {k: json_ready(list(v) if hasattr(v, "__next__") else v) for k, v in result.items()}
        finally:
            context.close()

    def texts(self, kind: str) -> list[str]:
        """Return what the last attempt logged, or its phases."""
        return [e.data.get("message") or e.data.get("text") or "" for e in self.events if e.kind == kind]

    def _emit(self, event: ExecutionEvent) -> None:
        self.events.append(event)
        self.on_event(event)


def found(result: dict[str, Any], field: str = "source") -> list[list[Any]]:
    """Return a field of the passages of each query."""
    return [[item["payload"].get(field) for item in query["items"]] for query in result["queries"]]
