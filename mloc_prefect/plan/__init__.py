"""Turns a valid workflow into a plan that can run: edges, references, resources, executors.

It must not start anything, read the machine or import Prefect. Names are loaded on first use, as executors import
`plan.graph_template` in environments without our other dependencies.

Modules:

* `compiler`: `Workflow` to `WorkflowPlan`
* `edges`: which task waits for which
* `expressions`: the grammar of `${...}` placeholders
* `given_parameters`: values of `${param.NAME}` against what the spec declares
* `graph_template`: prompts made from the results of earlier stages
* `reference_sites`: where references stand in a document and in the submitted text
* `references`: checks every reference before anything runs
* `render`: a plan as a table, as Mermaid and as JSON
* `resolve`: replaces references by values before a stage runs
* `resources`: what a task asks of a machine
* `shard_ranges`: how many shards a task has, and which rows each one has
* `workflow_plan`: the plan itself
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mloc_prefect.plan.compiler import check, plan_workflow
    from mloc_prefect.plan.resources import ResourceRequest
    from mloc_prefect.plan.workflow_plan import Reference, StagePlan, WorkflowPlan

_MODULES = {
    "Reference": "workflow_plan",
    "ResourceRequest": "resources",
    "StagePlan": "workflow_plan",
    "WorkflowPlan": "workflow_plan",
    "check": "compiler",
    "plan_workflow": "compiler",
}

__all__ = ["Reference", "ResourceRequest", "StagePlan", "WorkflowPlan", "check", "plan_workflow"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
