"""Runs trainings in this process, and the data that they learn from."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.execution.context import ExecutionContext
from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionRequest
from mloc_prefect.executors.training import TrainingExecutor

if TYPE_CHECKING:
    from collections.abc import Callable

SUMS = [{"question": f"{a}+{b}=", "answer": f"{a + b}"} for a in range(8) for b in range(8)]
PAIRS = [{"prompt": f"{n}?", "chosen": f" {n} yes!", "rejected": f" {n} no."} for n in range(48)]


class TrainingBench:
    """Runs attempts of trainings in this process.

    Args:
        root: Where tasks lie.
        model: Folder of the model that is trained.
    """

    def __init__(self, root: Path, model: Path) -> None:
        self.executor = TrainingExecutor({})
        self.root = root
        self.model = model
        self.attempts: dict[str, int] = {}
        self.events: list[ExecutionEvent] = []
        self.cancelled = threading.Event()
        self.on_event: Callable[[ExecutionEvent], None] = lambda _event: None
        self.settings: dict[str, Any] = {}

    def __call__(self, kind: str, data: Any, *, task: str = "task", **spec: Any) -> dict[str, Any]:
        """Run one attempt of a training of `kind`; without `model` it is that of the bench."""
        model = {"source": {"identifier": str(self.model)}}
        return self.run(kind, {"model": model, "data": data, **spec}, task)

    def run(self, kind: str, spec: dict[str, Any], task: str = "task") -> dict[str, Any]:
        request = self.request(kind, spec, task)
        Path(request.attempt_dir).mkdir(parents=True)
        self.events.clear()
        context = ExecutionContext(request, self._emit, self.cancelled)
        return json.loads(json.dumps(dict(self.executor.run(request, context))))

    def request(self, kind: str, spec: dict[str, Any], task: str = "task") -> ExecutionRequest:
        self.attempts[task] = self.attempts.get(task, 0) + 1
        directory = self.root / task
        return ExecutionRequest(
            task_id=task,
            name=task,
            task_type=kind,
            executor="mloc_prefect.executors.training:TrainingExecutor",
            spec={"taskType": kind, **spec},
            task_dir=str(directory),
            attempt_dir=str(directory / "attempts" / f"1-{self.attempts[task]}"),
            attempt=self.attempts[task],
            settings={"home": str(self.root / "home"), "base_dir": str(self.root), **self.settings},
        )

    def texts(self, kind: str) -> list[str]:
        return [e.data.get("message") or e.data.get("text") or "" for e in self.events if e.kind == kind]

    def _emit(self, event: ExecutionEvent) -> None:
        self.events.append(event)
        self.on_event(event)


def losses(result: dict[str, Any], key: str = "loss") -> list[float]:
    """Return a curve of a finished training."""
    rows = [json.loads(line) for line in Path(result["metrics_path"]).read_text().splitlines()]
    return [row[key] for row in rows if key in row]
