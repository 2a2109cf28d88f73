"""Whatever ends a host, its owner or its supervisor: nothing that the host started remains."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from mloc_prefect.errors import ExecutionError
from mloc_prefect.execution.hosts import HostPool
from tests.support.counts import count
from tests.support.hosts import (
    TROUBLE,
    Runner,
    host_spec,
    is_alive,
    read_pids,
    run_dir_of,
    trouble_request,
    until,
    until_dead,
)

ROOT = Path(__file__).parents[2]
ROUNDS = range(count("descendants", 1, 10))

pytestmark = pytest.mark.counted


async def begin(pool: HostPool, root: Path, *more: list) -> tuple[asyncio.Task, int, int, list[int]]:
    """Return a task that hangs, its host, the supervisor, and the grandchildren."""
    steps = [["note_pid", str(root / "host")], ["start_grandchildren", str(root / "grandchildren")], *more, ["hang"]]
    task = asyncio.create_task(Runner(pool, root)(trouble_request(root, *steps), host_spec(TROUBLE)))
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # retrieved, whatever the test does
    await until(lambda: (root / "grandchildren").exists() or task.done())
    host, supervisor = read_pids(root / "host")
    grandchildren = read_pids(root / "grandchildren")
    assert len(grandchildren) == 7
    assert all(is_alive(pid) for pid in [host, supervisor, *grandchildren])
    assert len({os.getsid(pid) for pid in grandchildren}) >= 3  # sessions of their own
    return task, host, supervisor, grandchildren


@pytest.mark.parametrize("_round", ROUNDS)
async def test_discard(tmp_path: Path, _round: int) -> None:
    async with HostPool(run_dir_of(tmp_path), idle_seconds=60, start_seconds=30) as pool:
        stranger = tmp_path / "stranger"
        task, host, supervisor, grandchildren = await begin(pool, tmp_path, ["start_unmarked_stranger", str(stranger)])
        await until(stranger.exists)
        how = await pool.discard(host_spec(TROUBLE).key)
        assert how.signal == "SIGKILL"
        assert not [pid for pid in [host, *grandchildren, *read_pids(stranger)] if is_alive(pid)]
        await until_dead([supervisor])
        with pytest.raises(ExecutionError, match="killed by SIGKILL"):
            await task


@pytest.mark.parametrize("_round", ROUNDS)
async def test_host_killed(tmp_path: Path, _round: int) -> None:
    async with HostPool(run_dir_of(tmp_path), idle_seconds=60, start_seconds=30) as pool:
        stranger = tmp_path / "stranger"
        task, host, supervisor, grandchildren = await begin(pool, tmp_path, ["start_unmarked_stranger", str(stranger)])
        await until(stranger.exists)
        os.kill(host, signal.SIGKILL)
        with pytest.raises(ExecutionError) as caught:
            await task
        assert caught.value.failure.signal == "SIGKILL"
        await until_dead([supervisor, *grandchildren, *read_pids(stranger)])


@pytest.mark.parametrize("_round", ROUNDS)
async def test_supervisor_killed(tmp_path: Path, _round: int) -> None:
    async with HostPool(run_dir_of(tmp_path), idle_seconds=60, start_seconds=30) as pool:
        task, host, supervisor, grandchildren = await begin(pool, tmp_path)
        os.kill(supervisor, signal.SIGKILL)
        with pytest.raises(ExecutionError, match="killed by SIGKILL"):
            await task
        await until_dead([host, *grandchildren])
        again = await pool.acquire(host_spec(TROUBLE))
        assert is_alive(again.pid)


async def test_supervisor_that_does_not_move(tmp_path: Path) -> None:
    async with HostPool(run_dir_of(tmp_path), idle_seconds=60, start_seconds=30, end_seconds=0.3) as pool:
        _, host, supervisor, grandchildren = await begin(pool, tmp_path)
        os.kill(supervisor, signal.SIGSTOP)
        await pool.discard(host_spec(TROUBLE).key)
        await until_dead([host, supervisor, *grandchildren])


@pytest.mark.parametrize("_round", ROUNDS)
async def test_pool_closed(tmp_path: Path, _round: int) -> None:
    async with HostPool(run_dir_of(tmp_path), idle_seconds=60, start_seconds=30) as pool:
        task, host, supervisor, grandchildren = await begin(pool, tmp_path)
    assert not [pid for pid in [host, supervisor, *grandchildren] if is_alive(pid)]
    with pytest.raises(ExecutionError):
        await task


@pytest.mark.parametrize("fork", [False, True])
@pytest.mark.parametrize("_round", ROUNDS)
async def test_owner_killed(tmp_path: Path, _round: int, fork: bool) -> None:
    owner, pids = await start_owner(tmp_path, fork=fork)
    os.kill(owner.pid, signal.SIGKILL)
    await owner.wait()
    try:
        await until_dead(pids)
    finally:
        if fork:
            os.kill(int((tmp_path / "forked").read_text()), signal.SIGKILL)


@pytest.mark.parametrize("_round", ROUNDS)
async def test_owner_interrupted(tmp_path: Path, _round: int) -> None:
    owner, pids = await start_owner(tmp_path, fork=False)
    os.kill(owner.pid, signal.SIGINT)
    await owner.wait()
    assert not [pid for pid in pids if is_alive(pid)]


@pytest.mark.parametrize("_round", ROUNDS)
async def test_owner_and_supervisor_killed_at_once(tmp_path: Path, _round: int) -> None:
    """Nobody is left to clean up at that moment; the next owner does it."""
    owner, (host, supervisor, *grandchildren) = await start_owner(tmp_path, fork=False)
    os.kill(owner.pid, signal.SIGSTOP)  # so that the one does not get to act on the end of the other
    os.kill(supervisor, signal.SIGKILL)
    os.kill(owner.pid, signal.SIGKILL)
    await owner.wait()
    await until_dead([host])  # by its death signal
    async with HostPool(run_dir_of(tmp_path / "other"), idle_seconds=60, start_seconds=30):
        assert [pid for pid in grandchildren if is_alive(pid)]  # of another directory: not ours to end
    async with HostPool(run_dir_of(tmp_path), idle_seconds=60, start_seconds=30):
        marked = [pid for pid in grandchildren if is_alive(pid) and b"MLOC_HOST_ID" in _environ(pid)]
        assert not marked
        assert not list(run_dir_of(tmp_path).glob("*.sock"))
    for pid in grandchildren:  # the one that dropped the mark cannot be told from any other process
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)


async def test_hosts_of_a_living_owner_are_left_alone(tmp_path: Path) -> None:
    async with HostPool(run_dir_of(tmp_path), idle_seconds=60, start_seconds=30) as first:
        host = await first.acquire(host_spec())
        async with HostPool(run_dir_of(tmp_path), idle_seconds=60, start_seconds=30) as second:
            other = await second.acquire(host_spec())
            assert other.pid != host.pid
        assert is_alive(host.pid)
        assert Path(host.socket).exists()


async def start_owner(root: Path, *, fork: bool) -> tuple[asyncio.subprocess.Process, list[int]]:
    """Return an owner process, and the pids of host, supervisor and grandchildren."""
    arguments = [sys.executable, "-m", "tests.support.owner", str(root), *(["fork"] if fork else [])]
    owner = await asyncio.create_subprocess_exec(*arguments, cwd=ROOT, stderr=asyncio.subprocess.DEVNULL)
    await until((root / "ready").exists)
    return owner, [*read_pids(root / "host"), *read_pids(root / "grandchildren")]


def _environ(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
