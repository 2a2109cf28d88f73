"""Runs the transformers executor in this process."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.context import ExecutionContext
from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionRequest
from mloc_prefect.executors.transformers.transformers_executor import TransformersExecutor

if TYPE_CHECKING:
    from collections.abc import Callable


class Bench:
    """Runs attempts of one task in this process."""

    def __init__(self, root: Path, model: Path | str) -> None:
        self.executor = TransformersExecutor({})
        self.root = root
        self.model = model
        self.attempt = 0
        self.events: list[ExecutionEvent] = []
        self.cancelled = threading.Event()
        self.on_event: Callable[[ExecutionEvent], None] = lambda _event: None

    def __call__(
        self,
        items: list[str] | dict[str, Any],
        *,
        task: str = "task",
        model: Path | str | None = None,
        **inference: Any,
    ) -> dict[str, Any]:
        """Run one attempt; `items` are prompts, or the whole `spec.data`."""
        data = items if isinstance(items, dict) else {"type": "list", "items": items}
        source = {"source": {"identifier": str(model or self.model)}}
        return self.run({"model": source, "data": data, "inference": inference}, task)

    def run(self, spec: dict[str, Any], task: str = "task", settings: dict[str, Any] | None = None) -> dict[str, Any]:
        self.attempt += 1
        request = ExecutionRequest(
            task_id=task,
            name=task,
            task_type="inference",
            executor="",
            spec=spec,
            task_dir=str(self.root / task),
            attempt_dir=str(self.own_dir(task)),
            attempt=self.attempt,
            settings={"home": str(self.root / "home"), "base_dir": str(self.root), **(settings or {})},
        )
        self.own_dir(task).mkdir(parents=True)
        self.events.clear()
        context = ExecutionContext(request, self._emit, self.cancelled)
        result = dict(self.executor.run(request, context))
        result["items"] = list(result["items"])
        return result

    def own_dir(self, task: str = "task") -> Path:
        return self.root / task / "attempts" / f"1-{self.attempt}"

    def journal(self, task: str = "task") -> list[dict[str, Any]]:
        """Return the rows of the last attempt in the order in which they ended."""
        file = self.own_dir(task) / "items.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def texts(self, kind: str) -> list[str]:
        return [e.data.get("message") or e.data.get("text") or "" for e in self.events if e.kind == kind]

    def _emit(self, event: ExecutionEvent) -> None:
        self.events.append(event)
        self.on_event(event)


def outputs(result: dict[str, Any]) -> list[str]:
    return [item["output"] for item in result["items"]]
