"""deploy/compose.yaml is what the description makes."""

from __future__ import annotations

from pathlib import Path

import yaml

from mloc_prefect.services.profile.compose_file import compose_file
from mloc_prefect.services.profile.topology import PROFILE

FILE = Path(__file__).parents[3] / "deploy" / "compose.yaml"
SERVICES = yaml.safe_load(compose_file())["services"]


def test_the_file_is_up_to_date():
    again = "run python -m mloc_prefect.services.profile.compose_file > deploy/compose.yaml"
    assert FILE.read_text(encoding="utf-8") == compose_file(), again


def test_everything_but_the_stores_runs_more_than_once_or_does_not_matter_for_a_while():
    counts = {part.name: part.count for part in PROFILE}
    once = {"redis": 1, "postgres": 1, "migrate": 1, "prefect-services": 1}
    assert counts == once | {"prefect": 2, "endpoint": 2, "bridge": 2, "coordinator": 2, "worker": 3}
    assert SERVICES["worker"]["deploy"]["replicas"] == "${WORKERS:-3}"
    assert {name for name, service in SERVICES.items() if "deploy" in service} == set(counts) - set(once)


def test_each_container_of_a_service_has_a_port_of_the_machine():
    for part in PROFILE:
        for published in SERVICES[part.name].get("ports", []):
            ports = published.rsplit(":", 2)[1]
            first, _, last = ports.partition("-")
            assert int(last or first) - int(first) + 1 == part.count


def test_a_part_waits_for_a_check_that_its_neighbour_has():
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[needed], f"{name} would never start"
            else:
                assert SERVICES[needed]["restart"] == "on-failure", f"{name} would never start"


def test_prefect_servers_share_everything_that_they_keep():
    environment = SERVICES["prefect"]["environment"]
    assert environment["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"] == "prefect_redis.lease_storage"
    assert environment["PREFECT_SERVER_EVENTS_CAUSAL_ORDERING"] == "prefect_redis.ordering"
    assert environment["PREFECT_SERVER_EVENTS_MESSAGING_BROKER"] == "prefect_redis.messaging"
    assert environment["PREFECT_API_DATABASE_MIGRATE_ON_START"] == "false"
    assert environment["PREFECT_API_BLOCKS_REGISTER_ON_START"] == "false"
    assert "--no-services" in SERVICES["prefect"]["command"]
