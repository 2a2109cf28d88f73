"""Shared fixtures: every test has its own state directory and sees no settings of the developer's shell."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from tests.support.counts import used

if TYPE_CHECKING:
    from collections.abc import Iterator
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


@pytest.fixture(autouse=True)
def _own_umask() -> Iterator[None]:
    """Give the umask back: commands that run in the process of the tests change it."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


def pytest_collection_finish() -> None:
    """Keep the garbage collector from walking through all imported modules again and again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the counts of a worker process to the one that prints the summary."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["rounds"] = used


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the counts of a worker process; it has none when it crashed."""
    used.update(getattr(node, "workeroutput", {}).get("rounds", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how often the counted tests repeated."""
    if used:
        terminalreporter.write_line("rounds: " + ", ".join(f"{name} {n}" for name, n in sorted(used.items())))
