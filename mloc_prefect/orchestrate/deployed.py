"""Deployments of specs name `mloc_prefect.orchestrate.deployed.run_spec(NAMES)`: a flow with these parameters."""

from __future__ import annotations

from typing import Any

from mloc_prefect.flow.deployed.deployed_flow import flow_named


def __getattr__(name: str) -> Any:
    found = flow_named(name)
    if found is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found
