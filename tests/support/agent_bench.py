"""Runs attempts of an agent task in this process, against a scripted endpoint."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.context import ExecutionContext
from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionRequest
from mloc_prefect.executors.agent import AgentExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SMALL_TOOLS = ["list_files", "read_file", "fetch", "python"]


class AgentBench:
    """One task, its directory and the operator's configurations.

    Args:
        root: A directory of its own.
        url: Base URL of the endpoint.
    """

    def __init__(self, root: Path, url: str) -> None:
        self.root = root
        self.url = url
        self.attempt = 0
        self.events: list[ExecutionEvent] = []
        self.cancelled = threading.Event()
        self.on_event: Callable[[ExecutionEvent], None] = lambda _event: None
        self.settings: dict[str, Any] = {"loopback": True, "max_retries": 0}
        self.task_dir.mkdir(parents=True)

    @property
    def task_dir(self) -> Path:
        """Directory of the task."""
        return self.root / "task"

    def configure(self, name: str = "default", **fields: Any) -> None:
        """Write a configuration of the operator; JSON is YAML."""
        path = self.root / "configurations" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(fields))

    def __call__(self, items: Sequence[str], **agent: Any) -> dict[str, Any]:
        """Run the next attempt over a list of items."""
        return self.run({"data": {"type": "list", "items": list(items)}}, **agent)

    def run(self, spec: dict[str, Any], **agent: Any) -> dict[str, Any]:
        """Run the next attempt; `agent` is added to `spec.agent`."""
        request = self.request(spec, **agent)
        self.events.clear()
        context = ExecutionContext(request, self._emit, self.cancelled)
        try:
            result = dict(AgentExecutor({}).run(request, context))
            result["items"] = list(result["items"])
        finally:
            context.close()
        return result

    def request(self, spec: dict[str, Any], **agent: Any) -> ExecutionRequest:
        """Return the request of the next attempt."""
        self.attempt += 1
        attempt_dir = self.task_dir / "attempts" / f"1-{self.attempt}"
        attempt_dir.mkdir(parents=True)
        options = {"base_url": self.url, "model": "scripted", **agent}
        return ExecutionRequest(
            task_id="task",
            name="task",
            task_type="agent",
            executor="",
            spec={"taskType": "agent", **spec, "agent": options},
            task_dir=str(self.task_dir),
            attempt_dir=str(attempt_dir),
            attempt=self.attempt,
            settings={
                "home": str(self.root / "home"),
                "base_dir": str(self.root),
                "agents": {"folder": str(self.root / "configurations"), "python": True},
                **self.settings,
            },
        )

    def logged(self) -> list[str]:
        """Return the lines that the last attempt has logged."""
        return [event.data["message"] for event in self.events if event.kind == "log"]

    def _emit(self, event: ExecutionEvent) -> None:
        self.events.append(event)
        self.on_event(event)
