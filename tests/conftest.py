"""Shared fixtures: every test has its own state directory and sees no settings of the developer's shell."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.support.counts import used

if TYPE_CHECKING:
    from pathlib import Path

_FOREIGN = ("RESULTS_DIR", "ORCHESTRATOR_", "REDIS_URL", "MLOC_", "PREFECT_API_", "PREFECT_PROFILE")
_KEPT = ("MLOC_SOAK",)

settings.register_profile("patient", deadline=None)  # a machine with other work may stall for longer than 200 ms
settings.load_profile("patient")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(_FOREIGN) and name not in _KEPT:
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLOC_HOME", str(tmp_path / "mloc-home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how often the counted tests repeated."""
    if used:
        terminalreporter.write_line("rounds: " + ", ".join(f"{name} {n}" for name, n in sorted(used.items())))
