"""Settings that keep parts, endpoint and files safe from other users and odd times, and the names of variables.

`settings.MlocSettings` has them with all others; nothing else reads this module.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings


def names(name: str, *originals: str) -> AliasChoices:
    """Return the variables of a setting; the first that is set wins: our own, MLOC's originals, Prefect's form."""
    return AliasChoices(f"MLOC_{name}", *originals, f"PREFECT_INTEGRATIONS_MLOC_{name}")


class LimitSettings(BaseSettings):
    """Limits of starts and connections, what workers run, and who may read results."""

    results_group: str | None = Field(
        default=None,
        validation_alias=names("RESULTS_GROUP"),
        description="Group that may read and write results, too; without it, they are for their owner only.",
    )
    header_seconds: float = Field(
        default=10.0,
        gt=0,
        validation_alias=names("HEADER_SECONDS"),
        description="Seconds that a client of the endpoint may take to send the header of a request.",
    )
    body_seconds: float = Field(
        default=30.0,
        gt=0,
        validation_alias=names("BODY_SECONDS"),
        description="Seconds in which a body that is being sent to the endpoint must bring at least 1 KiB.",
    )
    connections_per_peer: int = Field(
        default=1000,
        ge=8,
        validation_alias=names("CONNECTIONS_PER_PEER"),
        description="Most connections of one address to the endpoint; at most half of what `ulimit -n` allows in all.",
    )
    start_seconds: float = Field(
        default=120.0,
        gt=0,
        validation_alias=names("START_SECONDS"),
        description="Seconds that a starting part of `mloc up` may show no progress; ten times as long in all.",
    )
    gpu_free_seconds: float = Field(
        default=30.0,
        ge=0,
        validation_alias=names("GPU_FREE_SECONDS"),
        description="Seconds that a GPU stays leased after its engine failed or was ended, until its memory is free.",
    )
    shared_results: bool = Field(
        default=True,
        validation_alias=names("SHARED_RESULTS"),
        description="Take work only if the site's results root is seen; `false` where all results are sent by http.",
    )
    automations: bool = Field(
        default=True,
        validation_alias=names("AUTOMATIONS"),
        description="Let automations act on the Prefect server of `mloc up`; those of others act as they are set up.",
    )
    user_flows: bool = Field(
        default=False,
        validation_alias=names("USER_FLOWS"),
        description="Let a worker run deployments of users' own flows, not this project's only; they run any command.",
    )
    agent_configs: Path | None = Field(
        default=None,
        validation_alias=names("AGENT_CONFIGS"),
        description="Folder of agents' configurations (`configName`): instructions, tools, limits; besides our own.",
    )
    agent_base_url: str | None = Field(
        default=None,
        validation_alias=names("AGENT_BASE_URL", "UTU_LLM_BASE_URL"),
        description="OpenAI-compatible endpoint of agents whose spec and configuration name none.",
    )
    agent_model: str | None = Field(
        default=None,
        validation_alias=names("AGENT_MODEL", "UTU_LLM_MODEL"),
        description="Model that these agents ask for; its key is in `MLOC_AGENT_API_KEY` of the worker.",
    )
    agent_python: bool = Field(
        default=False,
        validation_alias=names("AGENT_PYTHON"),
        description="Let agents run Python that their model writes, in a sandbox; where none can be built, refused.",
    )
