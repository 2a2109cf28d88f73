"""From a valid workflow to a plan that can run: edges, references, resources. Pure; nothing is started here.

Names are loaded on first use: executors import `plan.graph_template` in environments without our other dependencies.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mloc_prefect.plan.compiler import check, plan_workflow
    from mloc_prefect.plan.model import Reference, ResourceRequest, StagePlan, WorkflowPlan

__all__ = ["Reference", "ResourceRequest", "StagePlan", "WorkflowPlan", "check", "plan_workflow"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "compiler" if name in {"check", "plan_workflow"} else "model"
    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
