"""MLOC on Prefect: MLOC task YAML compiled to Prefect flows that run on warm GPU executors.

    from mloc_prefect import workflow_flow

    flow = workflow_flow("task.yaml")

Public names are loaded on first use, so that a plain import stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mloc_prefect.version import __version__

if TYPE_CHECKING:
    from mloc_prefect.artifacts.task_result import TaskResult
    from mloc_prefect.blocks import MlocArtifactStore
    from mloc_prefect.client.async_client import AsyncMlocClient
    from mloc_prefect.client.errors import RefusedSpecError
    from mloc_prefect.client.sync_client import MlocClient
    from mloc_prefect.errors import (
        ArtifactError,
        DispatchError,
        ExecutionError,
        MissingExtraError,
        MlocError,
        PlanError,
        SpecError,
    )
    from mloc_prefect.flow.build import WorkflowFailedError, build_flow, workflow_flow
    from mloc_prefect.flow.options import RunOptions
    from mloc_prefect.flow.outcome import StageOutcome, WorkflowOutcome
    from mloc_prefect.flow.run_workflow import run_workflow
    from mloc_prefect.plan import WorkflowPlan, plan_workflow
    from mloc_prefect.spec.loader import load_workflow
    from mloc_prefect.spec.workflow import Workflow

_PUBLIC = {
    "ArtifactError": "mloc_prefect.errors",
    "AsyncMlocClient": "mloc_prefect.client.async_client",
    "DispatchError": "mloc_prefect.errors",
    "ExecutionError": "mloc_prefect.errors",
    "MissingExtraError": "mloc_prefect.errors",
    "MlocArtifactStore": "mloc_prefect.blocks",
    "MlocClient": "mloc_prefect.client.sync_client",
    "MlocError": "mloc_prefect.errors",
    "PlanError": "mloc_prefect.errors",
    "RefusedSpecError": "mloc_prefect.client.errors",
    "RunOptions": "mloc_prefect.flow.options",
    "SpecError": "mloc_prefect.errors",
    "StageOutcome": "mloc_prefect.flow.outcome",
    "TaskResult": "mloc_prefect.artifacts.task_result",
    "Workflow": "mloc_prefect.spec.workflow",
    "WorkflowFailedError": "mloc_prefect.flow.build",
    "WorkflowOutcome": "mloc_prefect.flow.outcome",
    "WorkflowPlan": "mloc_prefect.plan",
    "build_flow": "mloc_prefect.flow.build",
    "load_workflow": "mloc_prefect.spec.loader",
    "plan_workflow": "mloc_prefect.plan",
    "run_workflow": "mloc_prefect.flow.run_workflow",
    "workflow_flow": "mloc_prefect.flow.build",
}

__all__ = [
    "ArtifactError",
    "AsyncMlocClient",
    "DispatchError",
    "ExecutionError",
    "MissingExtraError",
    "MlocArtifactStore",
    "MlocClient",
    "MlocError",
    "PlanError",
    "RefusedSpecError",
    "RunOptions",
    "SpecError",
    "StageOutcome",
    "TaskResult",
    "Workflow",
    "WorkflowFailedError",
    "WorkflowOutcome",
    "WorkflowPlan",
    "__version__",
    "build_flow",
    "load_workflow",
    "plan_workflow",
    "run_workflow",
    "workflow_flow",
]


def __getattr__(name: str) -> Any:
    module = _PUBLIC.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
