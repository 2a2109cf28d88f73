"""MLOC specs: YAML text in, `Workflow` out, with a place for everything that is wrong.

Names are loaded on first use: `tasks/` uses parts of this package, and the loader uses `tasks/`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mloc_prefect.spec.diagnostics import Diagnostic
    from mloc_prefect.spec.loader import load, load_workflow, read
    from mloc_prefect.spec.model import Source, TaskNode, Workflow
    from mloc_prefect.spec.schema import json_schema

_HOMES = {
    "Diagnostic": "diagnostics",
    "Source": "model",
    "TaskNode": "model",
    "Workflow": "model",
    "json_schema": "schema",
    "load": "loader",
    "load_workflow": "loader",
    "read": "loader",
}

__all__ = ["Diagnostic", "Source", "TaskNode", "Workflow", "json_schema", "load", "load_workflow", "read"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
