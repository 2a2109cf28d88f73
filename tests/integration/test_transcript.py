"""Conversations with the original, recorded and replayed: what a client of MLOC sees of `mloc up --no-worker`.

The fake workers of the recording are played with it. What may differ stands in tests/transcript_differences.yaml.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.replay import Replay, Site
from tests.support.server import prepare_home
from tests.support.transcript import Differences, scenarios

if TYPE_CHECKING:
    from collections.abc import Iterator

PORT, PREFECT_PORT, REDIS_PORT = 28000, 24700, 26700
OPEN_DATABASE = 5
"""Redis database of the endpoint without a token: it must be empty."""

DELAYS = {"RETRY_BASE_DELAY_SEC": "1", "RETRY_MAX_DELAY_SEC": "4"}
"""As in the recording."""


@dataclass
class Replayed:
    """All scenarios, each replayed when it is first asked for."""

    site: Site
    differences: Differences = field(default_factory=Differences.load)
    _failures: dict[str, list[str]] = field(default_factory=dict)

    def failures(self, name: str) -> list[str]:
        if name not in self._failures:
            if name == "20":
                with open_endpoint(self.site) as site:
                    self._failures[name] = asyncio.run(Replay(site, name, self.differences).run())
            else:
                self._failures[name] = asyncio.run(Replay(self.site, name, self.differences).run())
        return self._failures[name]


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replayed]:
    home = tmp_path_factory.mktemp("up")
    prepare_home(home)
    ports = {"PORT": PORT, "MLOC_SERVER_PORT": PREFECT_PORT, "MLOC_REDIS_PORT": REDIS_PORT}
    env = clean_environment(home) | {name: str(port) for name, port in ports.items()} | DELAYS
    env["ORCHESTRATOR_TOKEN"] = "dev-token"
    command = [sys.executable, "-m", "mloc_prefect.cli", "up", "--no-worker", "--host", "127.0.0.1"]
    with (home / "output.txt").open("wb") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT, cwd=home)
    try:
        yield Replayed(site_of(process, home))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def site_of(process: subprocess.Popen[bytes], home: Path) -> Site:
    """Return what to talk to, once it is ready."""
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, (home / "output.txt").read_text()
        assert time.monotonic() < deadline, (home / "output.txt").read_text()
        try:
            state = json.loads((home / "run" / "up.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            state = {"ready": False}
        if state["ready"]:
            break
        time.sleep(0.1)
    password = (home / "valkey" / "password").read_text().strip()
    place = state["redis"].split()[0].removeprefix("redis://")
    return Site(url=state["url"], redis=f"redis://:{password}@{place}", results=home / "results")


@contextmanager
def open_endpoint(site: Site) -> Iterator[Site]:
    """Run a second endpoint, without a token, on an empty database."""
    redis = f"{site.redis.rpartition('/')[0]}/{OPEN_DATABASE}"
    env = clean_environment(site.results.parent) | {"REDIS_URL": redis, "PORT": str(PORT + 1)}
    process = subprocess.Popen(
        [sys.executable, "-m", "mloc_prefect.server"], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().decode().split()[-1]
        yield Site(url=url, redis=redis, results=site.results, token=None)
    finally:
        process.terminate()
        process.wait(30)


def clean_environment(home: Path) -> dict[str, str]:
    """Return the environment without settings of the tests around."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLOC_", "PREFECT_", "REDIS_"))}
    return kept | {"MLOC_HOME": str(home), "COLUMNS": "200"}


@pytest.mark.parametrize("name", scenarios())
def test_a_client_sees_what_it_saw_with_the_original(replayed: Replayed, name: str) -> None:
    assert replayed.failures(name) == []


def test_every_listed_difference_occurs(replayed: Replayed) -> None:
    for name in scenarios():
        replayed.failures(name)
    unused = [f"{e['scenario']} {e['step']} {e['field']}" for e in replayed.differences.unused()]
    assert unused == []
