"""The local runtime: a daemon that owns hosts and the embedded server, used as `mloc run` uses it."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from mloc_prefect.errors import DispatchError
from mloc_prefect.execution.hosts import HostSpec
from mloc_prefect.services.local_runtime import runtime_client
from mloc_prefect.services.local_runtime.runtime_client import ensure_runtime, runtime_status, stop_runtime
from mloc_prefect.services.local_runtime.runtime_wire import RuntimeFiles
from mloc_prefect.settings import MlocSettings, get_settings
from tests.support.patience import FACT_SECONDS, STOP_SECONDS
from tests.support.server import prepare_home

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ECHO = HostSpec("mloc_prefect.executors.echo:EchoExecutor", sys.executable)


@pytest.fixture
async def settings(tmp_path: Path) -> AsyncIterator[MlocSettings]:
    settings = get_settings(home=tmp_path / "home", server_port=24500)
    yield settings
    await stop_runtime(settings)


@asynccontextmanager
async def using(settings: MlocSettings, **options):
    async with await ensure_runtime(settings, **{"server": False, **options}) as runtime:
        yield runtime


def alive(pid: int) -> bool:
    """Whether a process runs; one that its parent has not collected yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def gone(pid: int, *, seconds: float = STOP_SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    return not alive(pid)


async def test_racing_starters_get_the_same_runtime(settings: MlocSettings):
    assert await runtime_status(settings) is None
    runtimes = await asyncio.gather(*(ensure_runtime(settings, server=False) for _ in range(4)))
    assert len({runtime.pid for runtime in runtimes}) == 1
    assert (await runtime_status(settings))["users"] == 4
    for runtime in runtimes:
        await runtime.aclose()


async def test_it_is_a_daemon_of_its_own(settings: MlocSettings):
    """Not a child of the run, not in its session, no terminal, and its socket is for its user only."""
    async with using(settings) as runtime:
        process = psutil.Process(runtime.pid)
        assert process.ppid() != os.getpid()
        assert os.getsid(runtime.pid) != os.getsid(0)
        assert os.getsid(runtime.pid) != runtime.pid  # not a session leader: can never get a terminal
        assert str(Path(f"/proc/{runtime.pid}/fd/0").readlink()) == "/dev/null"
        files = RuntimeFiles.below(settings.home)
        assert stat.S_IMODE(files.socket.stat().st_mode) == 0o600
        assert stat.S_IMODE(files.directory.stat().st_mode) == 0o700
        assert not [m for m in process.memory_maps() if "pydantic_core" in m.path or "torch" in m.path]


async def test_hosts_stay_warm_between_runs_and_go_with_down(settings: MlocSettings):
    async with using(settings) as first:
        host = await first.hosts.acquire(ECHO)
    async with using(settings) as second:
        again = await second.hosts.acquire(ECHO)
        assert (again.pid, again.key, second.pid) == (host.pid, host.key, first.pid)
        assert await second.hosts.exit_of("no-such-host") is None
    ended = await stop_runtime(settings)
    assert ended == [
        f"warm host of mloc_prefect.executors.echo:EchoExecutor (process {host.pid})",
        f"local runtime (process {first.pid})",
    ]
    assert not alive(host.pid)
    assert not alive(first.pid)
    assert await stop_runtime(settings) == []


async def test_a_host_sees_the_environment_of_the_user_who_asked(
    settings: MlocSettings, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_ENDPOINT", "http://first")
    async with using(settings) as runtime:
        first = await runtime.hosts.acquire(ECHO)
        monkeypatch.setenv("HF_ENDPOINT", "http://second")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
        second = await runtime.hosts.acquire(ECHO)
        assert first.key != second.key
        seen = [psutil.Process(host.pid).environ() for host in (first, second)]
        assert [env["HF_ENDPOINT"] for env in seen] == ["http://first", "http://second"]
        assert [env["CUDA_VISIBLE_DEVICES"] for env in seen] == ["", ""]  # what was leased, not what the shell says
        assert "HF_ENDPOINT" not in psutil.Process(runtime.pid).environ()
        exit_ = await runtime.hosts.discard(second.key, pid=second.pid)
        assert exit_ is not None
        assert await gone(second.pid)
        assert alive(first.pid)


async def test_ctrl_c_of_a_run_leaves_it_alone(settings: MlocSettings):
    script = (
        "import asyncio, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where tests run in the background
        "from mloc_prefect.services.local_runtime.runtime_client import ensure_runtime\n"
        "from mloc_prefect.settings import get_settings\n"
        "async def main():\n"
        "    runtime = await ensure_runtime(get_settings(), server=False)\n"
        "    print(runtime.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "MLOC_HOME": str(settings.home)},
    )
    pid = int(run.stdout.readline())
    os.killpg(run.pid, signal.SIGINT)
    run.wait(STOP_SECONDS)
    async with asyncio.timeout(STOP_SECONDS):
        while (status := await runtime_status(settings))["users"]:
            await asyncio.sleep(0.02)
    assert (status["pid"], status["users"]) == (pid, 0)


async def test_it_leaves_when_idle_but_not_while_used(settings: MlocSettings):
    settings = settings.model_copy(update={"runtime_idle_seconds": 0.5})
    async with using(settings) as runtime:
        await asyncio.sleep(1.2)
        assert alive(runtime.pid)
    assert await gone(runtime.pid)
    assert await runtime_status(settings) is None
    assert not RuntimeFiles.below(settings.home).socket.exists()


async def test_other_code_replaces_an_idle_runtime_only(settings: MlocSettings, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    async with using(settings) as old:
        monkeypatch.setattr(runtime_client, "fingerprint", lambda _config: "other code")
        async with using(settings, on_progress=said.append) as shared:
            assert shared.pid == old.pid
    async with using(settings, on_progress=said.append) as new:
        assert new.pid != old.pid
    assert said == [
        "another run uses a local runtime of other code or settings; using it too",
        "replacing the local runtime: its code or settings have changed",
    ]


async def test_other_settings_replace_an_idle_runtime(settings: MlocSettings):
    async with using(settings) as old:
        pass
    async with using(settings.model_copy(update={"host_idle_seconds": 5.0})) as new:
        assert new.pid != old.pid
    assert not alive(old.pid)


async def test_a_runtime_that_cannot_be_understood_is_refused(settings: MlocSettings, monkeypatch: pytest.MonkeyPatch):
    async with using(settings) as old:
        monkeypatch.setattr(runtime_client, "fingerprint", lambda _config: "other code")
        monkeypatch.setattr(runtime_client, "WIRE", 999)
        with pytest.raises(DispatchError, match=f"another version is in use .process {old.pid}."):
            await ensure_runtime(settings, server=False)


async def test_a_start_that_fails_says_why(settings: MlocSettings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DispatchError, match="the local runtime did not start") as caught:
        await ensure_runtime(settings, server=False)
    assert "runtime.log" in caught.value.hint


async def test_server_comes_and_goes_with_the_runtime(settings: MlocSettings):
    """Two who ask at once get one server; one that died is started again; kill -9 of the runtime ends it all."""
    prepare_home(settings.home)
    said: list[str] = []
    first, second = await asyncio.gather(
        *(ensure_runtime(settings, server=True, on_progress=said.append) for _ in range(2))
    )
    assert first.api_url == second.api_url
    assert sorted(said) == ["starting the embedded Prefect server", "waiting for the embedded Prefect server"]
    assert httpx.get(f"{first.api_url}/health", timeout=FACT_SECONDS).json() is True
    os.kill((await runtime_status(settings))["server"]["pid"], signal.SIGKILL)
    while (await runtime_status(settings))["server"]:
        await asyncio.sleep(0.02)
    async with using(settings, server=True) as third:
        assert third.pid == first.pid
        assert httpx.get(f"{third.api_url}/health", timeout=FACT_SECONDS).json() is True
    host = await first.hosts.acquire(ECHO)
    server = (await runtime_status(settings))["server"]
    waiting = asyncio.create_task(second.hosts.exit_of(host.key, pid=host.pid))
    await asyncio.sleep(0.1)
    os.kill(first.pid, signal.SIGKILL)
    with pytest.raises(DispatchError, match="the local runtime has ended"):
        await waiting
    for pid in (first.pid, server["pid"], host.pid):
        assert await gone(pid)
    assert await runtime_status(settings) is None
    for runtime in (first, second):
        await runtime.aclose()


async def test_a_runtime_that_does_not_answer_can_be_ended(settings: MlocSettings):
    async with using(settings) as runtime:
        host = await runtime.hosts.acquire(ECHO)
    os.kill(runtime.pid, signal.SIGSTOP)
    RuntimeFiles.below(settings.home).socket.unlink()
    ended = await stop_runtime(settings)
    assert ended == [f"local runtime (process {runtime.pid}, it did not answer)"]
    assert await gone(host.pid)
