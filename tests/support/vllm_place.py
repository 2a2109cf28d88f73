"""A machine with warm vLLM hosts, in this process; each call is a flow run of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mloc_prefect.flow.build import build_flow
from mloc_prefect.flow.options import RunOptions
from mloc_prefect.plan import check
from tests.support.flows import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable

    from mloc_prefect.execution.protocol import ExecutionEvent
    from mloc_prefect.flow.outcome import StageOutcome
    from tests.support.flows import Killable

GREEDY = {"temperature": 0, "max_tokens": 16}
ENGINE = {"max_model_len": 512, "max_num_seqs": 32, "dtype": "float32"}


class Watch(Recorder):
    """Also keeps every event."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[ExecutionEvent] = []
        self.on_retry: Callable[[], object] = lambda: None
        self.on_tokens: Callable[[dict[str, Any]], object] = lambda _data: None

    def stage_retry(self, key: str, attempt: int, error: str, delay: float) -> None:
        super().stage_retry(key, attempt, error, delay)
        self.on_retry()

    def stage_event(self, key: str, event: ExecutionEvent) -> None:
        self.events.append(event)
        if event.kind == "progress":
            self.on_tokens(event.data)
        super().stage_event(key, event)

    def messages(self) -> list[str]:
        return [e.data["message"] for e in self.events if e.kind == "log"]


class Done:
    """One finished task."""

    def __init__(self, outcome: StageOutcome, watch: Watch, pid: int) -> None:
        self.result: dict[str, Any] = json.loads(Path(str(outcome.result_path)).read_text())
        self.dir = Path(str(outcome.result_path)).parent
        self.summary, self.watch, self.pid = outcome.summary, watch, pid

    @property
    def outputs(self) -> list[str]:
        return [item["output"] for item in self.result["items"]]


class Place:
    """A machine with warm hosts; every call is a flow run of its own."""

    def __init__(self, root: Path, python: Path, settings: Any, hosts: Killable, dispatcher: Any) -> None:
        self.root, self.python, self.settings, self.hosts, self.dispatcher = root, python, settings, hosts, dispatcher

    async def __call__(
        self,
        data: list[str] | dict[str, Any],
        *,
        model: dict[str, Any] | None = None,
        identifier: str = "smollm2",
        watch: Watch | None = None,
        more: dict[str, Any] | None = None,
        **inference: Any,
    ) -> Done:
        spec = {
            "taskType": "inference",
            "resources": {"replicas": 1, "hardware": {"cpu": "1", "memory": "1Gi"}},
            "model": {"source": {"identifier": identifier}, "vllm": ENGINE, **(model or {})},
            "data": data if isinstance(data, dict) else {"type": "list", "items": data},
            "inference": {**GREEDY, **inference},
            **(more or {}),
        }
        return (await self.run_spec(spec, watch or Watch()))[0]

    async def run_spec(self, spec: dict[str, Any], watch: Watch) -> list[Done]:
        """Run a whole `spec` and return its tasks."""
        document = {"apiVersion": "mloc/v1", "kind": "Task", "metadata": {"name": "answers"}, "spec": spec}
        plan, diagnostics = check(json.dumps(document))
        assert plan is not None, diagnostics
        options = RunOptions(settings=self.settings, dispatcher=self.dispatcher, observer=watch)
        outcome = await build_flow(plan, options=options)()
        return [Done(task, watch, self.hosts.pids[-1]) for task in outcome.tasks]
