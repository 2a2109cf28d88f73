"""Deployments name `mloc_prefect.orchestrate.stage_entry.run_stage_attempt`."""

from mloc_prefect.flow.run_stage import run_stage_attempt

__all__ = ["run_stage_attempt"]
