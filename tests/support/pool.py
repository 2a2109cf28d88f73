"""Our workers as processes with declared inventories, and specs for them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.patience import FACT_SECONDS, START_SECONDS, STOP_SECONDS
from tests.support.prefect_api import ENDS, Api, environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

# Started as by a shell's `&`: SIGINT is ignored.
_START = """
import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)
import asyncio, json, sys
from mloc_prefect.settings import get_settings
from mloc_prefect.worker.main import run_worker
asyncio.run(run_worker(get_settings(), **json.loads(sys.argv[1])))
"""
HEARTBEAT, TTL = "0.5", "30"
SHORT_TTL = "4"
"""For workers that detect stopped processes by their heartbeat; ended ones they detect at once."""


class Worker:
    """A worker process.

    Attributes:
        name: Its id.
        process: The process.
        home: Its state directory.
        log: File with its output.
    """

    def __init__(self, name: str, process: subprocess.Popen[bytes], home: Path, log: Path) -> None:
        self.name, self.process, self.home, self.log = name, process, home, log

    @property
    def leases(self) -> list[Any]:
        """The leases held in its lease book."""
        books = list((self.home / "run").glob("leases-*.json"))
        return [entry for book in books for entry in json.loads(book.read_text())["held"]]

    @property
    def holders(self) -> list[str]:
        """The holders of these leases."""
        return [entry["holder"] for entry in self.leases]

    def text(self) -> str:
        """Return its output until now."""
        return self.log.read_text()

    def stop(self, *, seconds: float = STOP_SECONDS) -> int:
        """Stop it as a service manager does; return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def kill(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()


class Pool:
    """A work pool `gpu` on one server, and its workers.

    Args:
        root: Directory of the test; contains the shared results.
        api_url: The server.
    """

    def __init__(self, root: Path, api_url: str) -> None:
        self.root, self.api_url = root, api_url
        self.api = Api(api_url)
        self.results = root / "results"
        self._stack = ExitStack()
        self._count = 0

    def close(self) -> None:
        """End all workers."""
        self._stack.close()

    def worker(self, name: str, *, gpus: Sequence[str] = (), options: Mapping[str, Any] | None = None, **more: str):
        """Start a worker and wait until it is ready; gpus as `a100:80GiB`."""
        return self._stack.enter_context(self._worker(name, gpus, dict(options or {}), more))

    def deployment(self) -> str:
        """Return the deployment of workflow runs, created by the first worker."""
        return str(self.api.get("/deployments/name/run-workflow/mloc")["id"])

    def submit(self, spec: str, **parameters: Any) -> str:
        """Start a workflow run; return its id."""
        return self.api.start(self.deployment(), spec=spec, **parameters)

    def states(self, run: str) -> list[str]:
        """Return the names of all states of a run."""
        return [state["name"] for state in self.api.get(f"/flow_run_states/?flow_run_id={run}")]

    def runs(self, root_run: str) -> dict[str, Any]:
        """Return the runs on the pool that did the work of a workflow run, by name."""
        found: dict[str, Any] = {}
        stages = [stage["id"] for stage in self.api.stages(root_run).values()]
        if stages:
            below = {"flow_runs": {"parent_flow_run_id": {"any_": stages}}}
            found = {run["name"]: run for run in self.api.post("/flow_runs/filter", below)}
        return found

    def result(self, task_id: str) -> Any:
        """Return the committed result of a task."""
        return json.loads((self.results / task_id / "responses.json").read_text())

    def task_ids(self, root_run: str) -> dict[str, str]:
        """Return the task ids of the stages of a run, by name."""
        return {name: stage["labels"]["mloc.task-id"] for name, stage in self.api.stages(root_run).items()}

    def active(self) -> list[Any]:
        """Return all runs that have not ended."""
        states = ["SCHEDULED", "PENDING", "RUNNING", "CANCELLING"]
        return self.api.post("/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": states}}}})

    def story(self, root_run: str) -> str:
        """Return the states of a run and of all runs below it, and the output of all workers; for failed tests."""
        lines = []
        for run in [self.api.run(root_run), *self.api.stages(root_run).values(), *self.runs(root_run).values()]:
            states = self.api.get(f"/flow_run_states/?flow_run_id={run['id']}")
            said = [f"  {s['timestamp'][14:23]} {s['name']} {s['message'] or ''}" for s in states]
            lines += [f"{run['name']} {run['work_queue_name']} {run['labels'].get('prefect.worker.name')}", *said]
        return "\n".join([*lines, *(f"--- {log}\n{log.read_text()}" for log in self.root.glob("*/worker.log"))])

    @contextmanager
    def _worker(
        self, name: str, gpus: Sequence[str], options: dict[str, Any], more: dict[str, str]
    ) -> Iterator[Worker]:
        self._count += 1
        home = self.root / f"{self._count}"
        home.mkdir()
        tags = more.pop("tags", "")
        cards = [dict(zip(("type", "memory"), gpu.split(":"), strict=True)) for gpu in gpus]
        inventory = {"cpus": 8, "memory": "64GiB", "gpus": cards, "tags": tags.split()}
        env = environment(home, self.api_url) | {
            "MLOC_RESULTS_DIR": str(self.results),
            "MLOC_INVENTORY": json.dumps(inventory),
            "MLOC_WORKER_ID": name,
            "MLOC_HEARTBEAT_SECONDS": HEARTBEAT,
            "MLOC_HEARTBEAT_TTL": TTL,
            "MLOC_DRAIN_SECONDS": "1",
            "MLOC_RETRY_BASE_DELAY": "0.05",
            "PREFECT_WORKER_QUERY_SECONDS": "30",
            **more,
        }
        log = home / "worker.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(options)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
            )
        worker = Worker(name, process, home, log)
        try:
            until(lambda: "started!" in worker.text() or process.poll() is not None, START_SECONDS, worker.text)
            assert process.poll() is None, worker.text()
            yield worker
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGCONT)
                try:
                    worker.stop()
                except subprocess.TimeoutExpired:
                    worker.kill()


def until(fact: Callable[[], Any], seconds: float = FACT_SECONDS, why: Callable[[], Any] = lambda: "") -> Any:
    """Wait until `fact()` is true; return it."""
    deadline = time.monotonic() + seconds
    while not (found := fact()):
        assert time.monotonic() < deadline, why()
        time.sleep(0.1)
    return found


def ended(run: Any) -> bool:
    """Return whether a run has ended."""
    return run["state"]["type"] in ENDS


def spec(name: str, *stages: Mapping[str, Any], gpu: Mapping[str, Any] | None = None, **more: Any) -> str:
    """Return a spec in JSON (which is YAML): an echo task, or several in a row.

    Args:
        name: Name of the workflow.
        stages: `spec` of each stage; none for a single task.
        gpu: `resources.hardware.gpu` of all.
        more: Further fields of the spec.
    """
    hardware: dict[str, Any] = {"cpu": "1", "memory": "64Mi"} | ({"gpu": {"type": "any", **gpu}} if gpu else {})
    body: dict[str, Any] = {"taskType": "echo", "resources": {"replicas": 1, "hardware": hardware}}
    body |= {"output": {"destination": {"type": "local"}}, **more}
    if stages:
        body["stages"] = [{"name": f"s{i}", "spec": dict(stage)} for i, stage in enumerate(stages, 1)]
    return json.dumps({"apiVersion": "mloc/v1", "kind": "EchoTask", "metadata": {"name": name}, "spec": body})


def graph(name: str, count: int, **fields: Any) -> str:
    """Return a spec of `count` independent echo tasks; `fields` as in `spec`."""
    document = json.loads(spec(name, **fields))
    document["spec"]["graph"] = {"nodes": [{"name": f"n{i}", "spec": {}} for i in range(count)]}
    return json.dumps(document)


def rows(count: int, delay: float) -> dict[str, Any]:
    """Return the fields of an echo stage that takes `delay` seconds for each of `count` rows."""
    return {"echo": {"row_delay": delay}, "data": {"type": "list", "items": [f"row {i}" for i in range(count)]}}
