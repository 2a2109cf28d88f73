"""Deployments made by earlier versions name `mloc_prefect.orchestrate.entrypoint.run_workflow`; new ones still do."""

from mloc_prefect.flow.run_workflow import run_stage_attempt, run_workflow

__all__ = ["run_stage_attempt", "run_workflow"]
