"""The embedded Valkey as a real process: its files, its port, its owner."""

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
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import psutil
import pytest

from mloc_prefect.errors import DispatchError, StoreError
from mloc_prefect.services.valkey import EmbeddedValkey, server_program
from mloc_prefect.services.valkey_main import ValkeyOptions
from mloc_prefect.store.backends import open_stores
from mloc_prefect.store.redis import scripts
from tests.support.patience import STOP_SECONDS
from tests.support.records import submit
from tests.support.valkey import embedded_valkey, start

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mloc_prefect.services.valkey import ValkeyAddress

_OWNER = """
import asyncio, sys
from pathlib import Path
from mloc_prefect.services.valkey import EmbeddedValkey
async def main():
    server = EmbeddedValkey(Path(sys.argv[1]), 26650)
    print((await server.ready()).pid, flush=True)
    await asyncio.sleep(300)
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def taken() -> Iterator[int]:
    """A port that somebody else has."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


@pytest.fixture(scope="module")
def valkey(tmp_path_factory, taken) -> Iterator[EmbeddedValkey]:
    with embedded_valkey(tmp_path_factory.mktemp("a home"), port=taken) as server:
        yield server


@pytest.fixture
def address(valkey) -> ValkeyAddress:
    return valkey.poll()


async def test_another_port_when_the_wanted_one_is_taken(valkey, address, taken):
    assert taken < address.port < taken + 20
    stores = open_stores(valkey.url(2))
    await stores.check()
    assert (await stores.backing.redis.config_get("append*"))["appendfsync"] == "everysec"
    await stores.close()


async def test_only_who_knows_the_password_gets_in(valkey, address):
    for url in (f"redis://127.0.0.1:{address.port}", f"redis://:wrong@127.0.0.1:{address.port}"):
        stores = open_stores(url)
        with pytest.raises(StoreError, match=f"Redis at 127.0.0.1:{address.port} refuses"):
            await stores.check()
        await stores.close()


def test_secrets_are_private_and_in_no_command_line(valkey, address):
    for name in ("password", "server.json", "valkey.conf"):
        assert stat.S_IMODE((valkey.home / name).stat().st_mode) == 0o600, name
    assert stat.S_IMODE(valkey.home.stat().st_mode) == 0o700
    server = psutil.Process(address.pid)
    shown = " ".join(server.cmdline() + server.parent().cmdline())
    assert len(valkey.password()) >= 32
    assert valkey.password() not in shown
    state = json.loads((valkey.home / "server.json").read_text())
    assert (state["pid"], state["port"]) == (address.pid, address.port)


def test_only_the_loopback_hears(address):
    listening = [c for c in psutil.Process(address.pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert {c.laddr for c in listening} == {("127.0.0.1", address.port)}


async def test_data_password_and_port_survive_a_stop(tmp_path):
    server = EmbeddedValkey(tmp_path, 26640, "always")
    first = await server.ready()
    stores = open_stores(server.url())
    assert (await stores.backing.redis.config_get("append*"))["appendfsync"] == "always"
    await submit(stores.tasks, "s1", "a")
    await server.stop()
    assert not psutil.pid_exists(first.pid)
    assert not (server.home / "server.json").exists()
    assert (await server.ready()).port == first.port
    assert await stores.tasks.get("a")
    await server.stop()
    again = EmbeddedValkey(tmp_path, first.port)
    assert (await again.ready()).port == first.port
    assert await stores.tasks.get("a")
    await again.stop()
    await stores.close()


@pytest.mark.parametrize("victim", ["owner", "guard"])
def test_it_ends_with_whoever_watches_over_it(tmp_path, victim):
    owner = subprocess.Popen([sys.executable, "-c", _OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        server = psutil.Process(int(owner.stdout.readline()))
        os.kill(owner.pid if victim == "owner" else server.ppid(), signal.SIGKILL)
        server.wait(STOP_SECONDS)
        # The data are free again: nobody waits for a lock that a dead process holds.
        with embedded_valkey(tmp_path, port=26650):
            pass
    finally:
        owner.kill()
        owner.wait()


def test_two_servers_do_not_share_their_data(tmp_path, valkey):
    lifeline, held = os.pipe()
    options = ValkeyOptions(
        home=str(valkey.home),
        program=str(server_program()),
        host="127.0.0.1",
        port=26660,
        exact=False,
        fsync="everysec",
        lifeline=lifeline,
        state_file=str(tmp_path / "state"),
        password_file=str(valkey.password_file),
        patience=0.1,
    )
    command = [sys.executable, "-m", "mloc_prefect.services.valkey_main"]
    second = subprocess.run(
        [*command, json.dumps(asdict(options))], check=False, pass_fds=(lifeline,), capture_output=True, text=True
    )
    assert (second.returncode, second.stdout) == (1, f"another embedded Valkey uses {valkey.home}\n")
    # Nor does it wait for ever for an owner that has gone.
    os.close(held)
    patient = json.dumps(asdict(replace(options, patience=300)))
    assert (
        subprocess.run(
            [*command, patient], check=False, pass_fds=(lifeline,), capture_output=True, timeout=STOP_SECONDS
        ).returncode
        == 1
    )
    os.close(lifeline)


async def test_what_keeps_it_from_starting_is_said(tmp_path, taken):
    with pytest.raises(DispatchError, match=f"embedded Valkey ended .*: port {taken} of 127.0.0.1 is in use"):
        await EmbeddedValkey(tmp_path, taken, exact=True).ready()
    torn = EmbeddedValkey(tmp_path / "torn", 26670)
    (torn.home / "appendonlydir").mkdir(parents=True)
    (torn.home / "appendonlydir" / "appendonly.aof.manifest").write_text("no manifest")
    with pytest.raises(DispatchError, match="the embedded Valkey ended"):
        await torn.ready()
    assert "manifest" in torn.log.read_text()


async def test_a_server_that_died_is_reported_and_started_again(tmp_path):
    server = EmbeddedValkey(tmp_path, 26680)
    start(server)
    stores = open_stores(server.url())
    await submit(stores.tasks, "s1", "a")
    os.kill(server.poll().pid, signal.SIGKILL)
    deadline = time.monotonic() + STOP_SECONDS
    while server.running and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    with pytest.raises(DispatchError, match=r"the embedded Valkey ended \(exit status 137\)"):
        server.poll()
    await server.ready()
    assert await stores.tasks.get("a")
    await server.stop()
    await stores.close()


async def test_a_submission_is_answered_only_when_the_log_is_not_held_back(valkey, monkeypatch):
    stores = open_stores(valkey.url(3))
    await stores.backing.redis.flushdb()
    running = [1, 1, 0]  # syncs of the log, as the server would tell them one after the other
    asked = []

    async def script(text, keys, args):
        answer = await run(text, keys, args)
        if text in {scripts.SUBMIT, scripts.CANCEL}:
            return [*answer[:-1], running.pop(0)]
        asked.append(await stores.tasks.get("a") is not None)
        return running.pop(0)

    run = stores.backing.script
    monkeypatch.setattr(stores.backing, "script", script)
    await submit(stores.tasks, "s1", "a")
    assert (asked, running) == ([True, True], [])
    running += [1, 0]
    await stores.tasks.request_cancel("s1")
    assert running == []
    await stores.close()
