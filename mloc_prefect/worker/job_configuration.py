"""How one run of the pool is started: Prefect's job configuration of a process, with GPUs, and its variables."""

from __future__ import annotations

from prefect.workers.process import ProcessJobConfiguration, ProcessVariables
from pydantic import Field


class MlocJobConfiguration(ProcessJobConfiguration):
    """How the process of a user's flow is started, and what it needs of the machine."""

    gpu_count: int = Field(default=0, json_schema_extra={"template": "{{ gpu_count }}"})
    gpu_type: str | None = Field(default=None, json_schema_extra={"template": "{{ gpu_type }}"})
    gpu_memory: str | None = Field(default=None, json_schema_extra={"template": "{{ gpu_memory }}"})


class MlocVariables(ProcessVariables):
    """Variables of the pool and of deployments on it."""

    gpu_count: int = Field(default=0, ge=0, title="GPUs", description="GPUs that the run needs; 0 for a coordinator.")
    gpu_type: str | None = Field(
        default=None, title="GPU type", description="Part of the device name, e.g. A100; empty for any."
    )
    gpu_memory: str | None = Field(
        default=None, title="GPU memory", description="Memory that each GPU must have, e.g. 40Gi; empty for any."
    )
