"""`mloc up --profile ha`: parts are killed under load, the database restarts; nothing is lost or done twice."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from mloc_prefect.services.profile.native_commands import STORES, names_of
from mloc_prefect.services.profile.topology import PROFILE
from tests.support.counts import count
from tests.support.fault_load import FaultLoad
from tests.support.fault_schedule import kill_family, wait_running
from tests.support.patience import FACT_SECONDS, START_SECONDS
from tests.support.postgres import Postgres, running_postgres
from tests.support.up import Up
from tests.support.up import kill as kill_up
from tests.support.up_client import subscriber

if TYPE_CHECKING:
    from collections.abc import Iterator

PORT = 27700
LOAD = count("profile-load", 0, 500)
ROUNDS = count("profile-kills", 1, 2)
AWAY_SECONDS = 4
PATIENCE = 8.0
VICTIMS = ("prefect-1", "endpoint-1", "bridge-1", "worker-1", "coordinator-1")
FULL_VICTIMS = ("prefect-2", "prefect-services", "endpoint-2", "bridge-2", "worker-2", "coordinator-2")
IS_SOAK = count("profile-victims", len(VICTIMS), len(VICTIMS + FULL_VICTIMS)) > len(VICTIMS)

pytestmark = [
    pytest.mark.alone,
    pytest.mark.counted,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not LOAD, reason="fourteen processes: `make soak`, or MLOC_TEST_COUNTS=profile-load=12"),
]


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres(PORT + 90) as server:
        yield server


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, postgres: Postgres) -> Iterator[Up]:
    home = tmp_path_factory.mktemp("profile") / "home"
    variables = {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": postgres.url,
        "MLOC_HEARTBEAT_SECONDS": "2",
        "MLOC_HEARTBEAT_TTL": str(PATIENCE),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
    }
    found = Up(home, PORT, **variables)
    found.start_seconds = 3 * START_SECONDS  # fourteen processes
    try:
        found.start("--profile", "ha")
        yield found
    finally:
        kill_up(found)


@pytest.fixture(scope="module")
def endpoints(up: Up) -> list[str]:
    ports = json.loads((up.home / "ports.json").read_text())
    return [up.url, f"http://127.0.0.1:{ports['endpoint-2']}"]


def test_what_is_described_runs(up: Up) -> None:
    parts = up.state().parts
    described = {name for part in PROFILE if not part.once and part.name not in STORES for name in names_of(part)}
    assert set(parts) == described | {"redis"}
    assert [name for name, pid in parts.items() if pid is None] == []


def test_parts_are_killed_and_the_database_restarts_under_load(
    up: Up, endpoints: list[str], postgres: Postgres
) -> None:
    victims = VICTIMS + FULL_VICTIMS if IS_SOAK else VICTIMS
    with subscriber(up) as heard, FaultLoad(up, endpoints, LOAD, pause=0.3) as load:
        for name in victims * ROUNDS:
            time.sleep(1)
            pid = wait_running(up, name)
            kill_family(pid)
            if IS_SOAK:
                wait_running(up, name, not_as=pid)
        postgres.stop()
        time.sleep(AWAY_SECONDS)
        postgres.start()
        load.check(2 * FACT_SECONDS + LOAD, heard)
    assert [name for name, pid in up.state().parts.items() if pid is None] == []


@pytest.mark.skipif(not IS_SOAK, reason="takes minutes: `make soak` runs it")
def test_the_database_is_away_for_a_minute(up: Up, endpoints: list[str], postgres: Postgres) -> None:
    with subscriber(up) as heard, FaultLoad(up, endpoints, LOAD) as load:
        time.sleep(5)
        postgres.stop()
        time.sleep(60)
        postgres.start()
        load.check(2 * FACT_SECONDS + LOAD, heard)


@pytest.mark.skipif(not IS_SOAK, reason="takes minutes: `make soak` runs it")
def test_redis_is_killed(up: Up, endpoints: list[str]) -> None:
    with FaultLoad(up, endpoints, LOAD) as load:
        for _ in range(2):
            time.sleep(5)
            kill_family(wait_running(up, "redis"))
        load.check(2 * FACT_SECONDS + LOAD)


@pytest.mark.skipif(not IS_SOAK, reason="takes minutes: `make soak` runs it")
@pytest.mark.parametrize("name", VICTIMS)
def test_a_part_is_paused_for_longer_than_the_others_wait_for_it(up: Up, endpoints: list[str], name: str) -> None:
    with subscriber(up) as heard, FaultLoad(up, endpoints, LOAD // 5) as load:
        time.sleep(3)
        pid = up.state().parts[name]
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        time.sleep(2 * PATIENCE)
        os.kill(pid, signal.SIGCONT)
        load.check(2 * FACT_SECONDS + LOAD, heard)
