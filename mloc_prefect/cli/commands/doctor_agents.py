"""`mloc doctor` on agents: their configurations, their language model, and whether code of a model can be shut in."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mloc_prefect.cli.commands.doctor_finding import DoctorFinding
from mloc_prefect.errors import PlanError
from mloc_prefect.trust.agent_configurations import FOLDER_SETTING, PYTHON_SETTING, AgentSite

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mloc_prefect.settings import MlocSettings

_TOPIC = "agents"


def agent_findings(settings: MlocSettings) -> Iterator[DoctorFinding]:
    """Yield what concerns agents on this machine."""
    site = AgentSite.of(settings)
    yield from _configurations(site)
    if site.base_url:
        model = site.model or "no model: set MLOC_AGENT_MODEL"
        yield DoctorFinding(_TOPIC, "endpoint", "ok" if site.model else "note", f"{site.base_url}: {model}")
    else:
        text = "none set: specs and configurations name theirs"
        yield DoctorFinding(_TOPIC, "endpoint", "note", text, "MLOC_AGENT_BASE_URL sets one for all")
    yield _sandbox(site)


def _configurations(site: AgentSite) -> Iterator[DoctorFinding]:
    if site.folder is not None and not site.folder.is_dir():
        yield DoctorFinding(_TOPIC, "configurations", "bad", f"{site.folder} is not a folder", f"set {FOLDER_SETTING}")
    good = []
    for name in site.names():
        try:
            site.configuration(name)
        except PlanError as error:
            yield DoctorFinding(_TOPIC, name, "bad", error.message, error.hint)
        else:
            good.append(name)
    yield DoctorFinding(_TOPIC, "configurations", "ok", ", ".join(good), facts={"names": good})


def _sandbox(site: AgentSite) -> DoctorFinding:
    """Return whether the tool `python` can be had; without consent nothing is tried."""
    if not site.python:
        return DoctorFinding(_TOPIC, "python", "note", "off", f"set {PYTHON_SETTING}=on to let agents run code")
    from mloc_prefect.executors.agent.sandbox.code_sandbox import sandbox_fault

    if fault := asyncio.run(sandbox_fault()):
        text = f"no sandbox can be built, so tasks with this tool are refused: {fault}"
        return DoctorFinding(
            _TOPIC, "python", "bad", text, "allow user namespaces, or start workers outside a container"
        )
    return DoctorFinding(_TOPIC, "python", "ok", "on, in a sandbox without network and files of this machine")
