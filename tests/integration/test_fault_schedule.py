"""Faults of all kinds in a random order, under load: no task is lost, done twice or stuck."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support import fault_schedule
from tests.support.counts import count
from tests.support.fault_load import FaultLoad
from tests.support.fault_schedule import schedule
from tests.support.patience import FACT_SECONDS
from tests.support.up import Up, running_up
from tests.support.up_client import subscriber

if TYPE_CHECKING:
    from collections.abc import Iterator

PORT = 27850
EVENTS = count("fault-events", 0, 300)
TASKS = count("fault-tasks", 30, 1000)
PATIENCE = 8.0

pytestmark = [pytest.mark.alone, pytest.mark.counted, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    variables = {"MLOC_HEARTBEAT_SECONDS": "2", "MLOC_HEARTBEAT_TTL": str(PATIENCE), "MLOC_MAX_RETRIES": "100"}
    with running_up(tmp_path_factory.mktemp("schedule") / "home", PORT, **variables) as found:
        yield found


@pytest.mark.skipif(not EVENTS, reason="takes minutes: `make soak`, or MLOC_TEST_COUNTS=fault-events=10")
def test_nothing_is_lost_done_twice_or_stuck(up: Up) -> None:
    seed = fault_schedule.seed()
    print(f"again with MLOC_TEST_SEED={seed}")
    parts = sorted(set(up.state().parts) - {"redis"})  # it keeps no message for those who listen later
    events = schedule(EVENTS, parts, seed=seed, longest=1.5 * PATIENCE)
    with subscriber(up) as heard, FaultLoad(up, [up.url], TASKS, pause=0.2) as load:
        for event in events:
            fault_schedule.apply(up, event)
        load.check(2 * FACT_SECONDS + TASKS, heard)


def test_a_schedule_is_the_same_for_its_seed() -> None:
    parts = ["a", "b"]
    assert schedule(9, parts, seed=1, longest=1) == schedule(9, parts, seed=1, longest=1)
    assert schedule(9, parts, seed=1, longest=1) != schedule(9, parts, seed=2, longest=1)
