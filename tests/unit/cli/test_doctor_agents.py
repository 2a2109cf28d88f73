"""What `mloc doctor` says of agents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mloc_prefect.cli.commands.doctor_agents import agent_findings
from mloc_prefect.executors.agent.sandbox import code_sandbox
from mloc_prefect.settings import get_settings

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_machine_without_settings_has_notes_only() -> None:
    found = {finding.name: finding for finding in agent_findings(get_settings())}
    assert [found[name].level for name in ("configurations", "endpoint", "python")] == ["ok", "note", "note"]
    assert "default" in found["configurations"].text


def test_faults_are_named_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fault() -> str:
        return "unshare: Operation not permitted"

    monkeypatch.setattr(code_sandbox, "sandbox_fault", fault)
    (tmp_path / "broken.yaml").write_text("tools: [pyton]")
    settings = get_settings(agent_configs=tmp_path, agent_python=True, agent_base_url="http://m/v1", agent_model="big")
    found = {finding.name: finding for finding in agent_findings(settings)}
    assert found["broken"].level == "bad"
    assert found["broken"].fix == "did you mean 'python'?"
    assert "broken" not in found["configurations"].text
    assert found["endpoint"].text == "http://m/v1: big"
    assert (found["python"].level, "Operation not permitted" in found["python"].text) == ("bad", True)
    gone = agent_findings(get_settings(agent_configs=tmp_path / "none"))
    assert next(gone).text.endswith("none is not a folder")
