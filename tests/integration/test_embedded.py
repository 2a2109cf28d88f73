"""The embedded Prefect server as a real process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from mloc_prefect.errors import DispatchError
from mloc_prefect.prefect_ext.server.embedded import EmbeddedServer
from tests.support.patience import FACT_SECONDS, START_SECONDS, STOP_SECONDS
from tests.support.server import prepare_home, start

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mloc_prefect.prefect_ext.server.embedded import ServerAddress


@pytest.fixture(scope="module")
def taken() -> Iterator[socket.socket]:
    """A port that somebody else has."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("embedded")
    prepare_home(path)
    return path


@pytest.fixture(scope="module")
def address(home: Path, taken: socket.socket) -> Iterator[ServerAddress]:
    server = EmbeddedServer(home, taken.getsockname()[1])
    try:
        yield start(server)
    finally:
        server.stop_now()


def test_another_port_when_the_wanted_one_is_taken(address: ServerAddress, taken: socket.socket):
    assert address.port != taken.getsockname()[1]
    assert httpx.get(f"{address.api_url}/health", timeout=FACT_SECONDS).json() is True


def test_state_file_is_private_and_true(address: ServerAddress, home: Path):
    file = home / "prefect" / "server.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    state = json.loads(file.read_text())
    assert (state["pid"], state["port"]) == (address.pid, address.port)
    assert abs(state["started"] - time.time()) < 600


def test_pages_are_served_and_know_their_api(address: ServerAddress):
    page = httpx.get(address.ui_url, headers={"accept": "text/html"}, follow_redirects=True, timeout=FACT_SECONDS)
    assert page.status_code == 200
    assert "<div id=" in page.text
    assert httpx.get(f"{address.ui_url}/ui-settings", timeout=FACT_SECONDS).json()["api_url"] == "/api"


def test_strangers_and_pages_of_other_sites_get_no_answer(address: ServerAddress):
    own, body = f"127.0.0.1:{address.port}", {"limit": 1}
    for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}, {"origin": "null"}):
        assert (
            httpx.post(
                f"{address.api_url}/flow_runs/filter", headers=headers, json=body, timeout=FACT_SECONDS
            ).status_code
            == 403
        )
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    refused = httpx.options(f"{address.api_url}/deployments/", headers=asked, timeout=FACT_SECONDS)
    assert refused.status_code == 403
    assert "access-control-allow-origin" not in refused.headers
    own_page = httpx.post(
        f"{address.api_url}/flow_runs/filter", headers={"origin": f"http://{own}"}, json=body, timeout=FACT_SECONDS
    )
    assert own_page.status_code == 200
    for origin, status in ((f"http://{own}", 101), ("https://evil.example", 403)):
        assert upgraded(own, origin) == status


def upgraded(own: str, origin: str) -> int:
    """Return the status of a request for the websocket of events."""
    host, _, port = own.partition(":")
    with socket.create_connection((host, int(port)), timeout=FACT_SECONDS) as conn:
        lines = ["GET /api/events/out HTTP/1.1", f"Host: {own}", f"Origin: {origin}", "Upgrade: websocket"]
        lines += ["Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
        conn.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        return int(conn.recv(64).split()[1])


def test_only_the_loopback_hears(address: ServerAddress):
    listening = [c for c in psutil.Process(address.pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert {c.laddr for c in listening} == {("127.0.0.1", address.port)}


async def test_concurrent_writers_are_never_refused(address: ServerAddress):
    """Stock SQLite transactions answer 503 here; the client would sleep for seconds."""
    async with httpx.AsyncClient(base_url=address.api_url, timeout=FACT_SECONDS) as client:
        flow_id = (await client.post("/flows/", json={"name": "writers"})).json()["id"]

        async def one(number: int) -> set[int]:
            body = {"flow_id": flow_id, "name": f"run-{number}", "state": {"type": "PENDING"}}
            made = await client.post("/flow_runs/", json=body)
            path = f"/flow_runs/{made.json()['id']}/set_state"
            moved = [await client.post(path, json={"state": {"type": s}}) for s in ("RUNNING", "COMPLETED")]
            return {made.status_code, *(answer.status_code for answer in moved)}

        codes = set().union(*await asyncio.gather(*(one(number) for number in range(32))))
    assert codes == {201}


def test_no_second_server_log_noise(address: ServerAddress, home: Path):
    """A healthy server writes nothing: no banner, no telemetry, no warnings."""
    assert (home / "logs" / "prefect-server.log").read_text() == ""


def test_it_ends_with_its_owner_however_that_ends(tmp_path: Path):
    prepare_home(tmp_path)
    script = (
        "import sys, time, pathlib\n"
        "from mloc_prefect.prefect_ext.server.embedded import EmbeddedServer\n"
        "server = EmbeddedServer(pathlib.Path(sys.argv[1]), 24400)\n"
        "server.launch()\n"
        "while (address := server.poll()) is None: time.sleep(0.05)\n"
        "print(address.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    server = psutil.Process(int(owner.stdout.readline()))
    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()
    server.wait(STOP_SECONDS)
    assert not server.is_running()


async def test_a_server_that_cannot_start_says_why(tmp_path: Path):
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect" / "prefect.db").write_text("this is no database, but it is long enough to be read as one" * 9)
    server = EmbeddedServer(tmp_path, 24401)
    with pytest.raises(DispatchError, match=r"ended while it started.*") as caught:
        await server.ready(limit=START_SECONDS)
    assert "prefect-server.log" in caught.value.hint
    await server.stop()
