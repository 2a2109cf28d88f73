"""What long-lived processes keep of runs that have ended: nothing that grows with their number."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.support.counts import count
from tests.support.memory import PROBE, objects, resident, run_all
from tests.support.up import running_up

if TYPE_CHECKING:
    from pathlib import Path

BATCH = count("growth", small=4, full=100)
MEMORY_RUNS = count("memory", small=0, full=2000)
_SETTLE_SECONDS = 5.0
_SLACK = {"Redis": 3, "Task": 10, "Context": 300, "FlowRun": 60, "Flow": 30, "PrefectClient": 60}
"""How many more there may be. A timer that was cancelled keeps its context, and what that holds, for up to a minute;
HTTP clients and TLS contexts, which cost the most, are in no context.
"""


@pytest.mark.counted
def test_objects_of_ended_runs_go(tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    with running_up(tmp_path / "home", 27100, PYTHONPATH=str(PROBE), MLOC_PROBE=str(notes)) as up:
        run_all(up.url, 4)  # imports, deployments, connections
        seen, memory = [], []
        for _ in range(3):
            run_all(up.url, BATCH)
            time.sleep(_SETTLE_SECONDS)
            seen.append(objects(notes))
            memory.append(resident(up))
    print(f"objects after {BATCH}, {2 * BATCH}, {3 * BATCH} runs: {seen}; MiB: {memory}")
    for part, last in seen[-1].items():
        for kind, number in last.items():
            before = seen[0][part][kind]
            assert number <= before + _SLACK.get(kind, 0), (part, kind, before, number)
    if BATCH >= 100:
        for part in ("worker", "endpoint", "bridge"):
            grown = memory[-1][part] - memory[-2][part]
            assert grown <= 0.1 * BATCH, (part, memory)


@pytest.mark.counted
@pytest.mark.skipif(not MEMORY_RUNS, reason="takes a quarter of an hour: make soak")
def test_memory_is_flat_over_many_runs(tmp_path: Path) -> None:
    with running_up(tmp_path / "home", 27130) as up:
        memory = []
        for _ in range(20):
            run_all(up.url, MEMORY_RUNS // 20)
            time.sleep(_SETTLE_SECONDS)
            memory.append(resident(up))
    print(f"MiB after each {MEMORY_RUNS // 20} runs: {[dict(row) for row in memory]}")
    for part in ("worker", "endpoint", "bridge", "prefect"):
        early, late = (max(row[part] for row in rows) for rows in (memory[3:6], memory[-3:]))
        assert late <= early * 1.15 + 10, (part, [row[part] for row in memory])
