"""Hosts as real processes: how long they stay warm, which of them leave for others, and where they lie."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mloc_prefect.errors import DispatchError
from mloc_prefect.execution.hosts import HostPool, HostSpec
from mloc_prefect.process.run_dir import run_dir
from tests.support.hosts import (
    TROUBLE,
    Runner,
    echo_request,
    host_spec,
    is_alive,
    late_spec,
    run_dir_of,
    trouble_request,
    until,
    until_dead,
)


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[HostPool]:
    async with HostPool(run_dir_of(tmp_path), idle_seconds=60, start_seconds=30) as pool:
        yield pool


class TestIdle:
    async def test_warm_host_leaves_when_idle(self, tmp_path: Path) -> None:
        closed = tmp_path / "closed"
        async with HostPool(run_dir_of(tmp_path), idle_seconds=0.3, start_seconds=30) as pool:
            run = Runner(pool, tmp_path)
            spec = host_spec(TROUBLE, closed_file=str(closed))
            result = await run(trouble_request(tmp_path), spec)
            await until_dead([result.host_pid])
            assert closed.read_text() == "closed"  # the executor was told
            await until(lambda: not pool.snapshot())
            assert (await pool.exit_of(spec.key)).exit_code == 0
            again = await run(trouble_request(tmp_path), spec)
            assert again.host_pid != result.host_pid

    async def test_a_host_that_was_still_starting_when_its_task_was_cancelled_does_not_stay(
        self, pool: HostPool, tmp_path: Path
    ) -> None:
        spec = late_spec(tmp_path)
        task = asyncio.ensure_future(pool.acquire(spec))
        await until(pool.snapshot)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        (tmp_path / "begin").touch()
        assert await pool.leave(spec.key)
        assert pool.snapshot() == []

    async def test_a_host_that_another_task_waits_for_does_not_leave(self, pool: HostPool, tmp_path: Path) -> None:
        spec = late_spec(tmp_path)
        given_up, wanted = (asyncio.ensure_future(pool.acquire(spec)) for _ in range(2))
        await until(pool.snapshot)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        assert not await pool.leave(spec.key)
        (tmp_path / "begin").touch()
        assert is_alive((await wanted).pid)
        assert await pool.leave(spec.key)

    async def test_hosts_that_leave_are_replaced_unseen(self, tmp_path: Path) -> None:
        """With an idle time as short as the pauses between tasks, clients meet hosts that are just leaving."""
        async with HostPool(run_dir_of(tmp_path), idle_seconds=0.05, start_seconds=30) as pool:
            run = Runner(pool, tmp_path)
            for pause in range(12):
                await run(echo_request(tmp_path), host_spec())
                await asyncio.sleep(0.04 + 0.002 * pause)

    async def test_one_shot_hosts_serve_one_task_each(self, tmp_path: Path) -> None:
        async with HostPool(run_dir_of(tmp_path), idle_seconds=0, start_seconds=30) as pool:
            run = Runner(pool, tmp_path)
            results = await asyncio.gather(*(run(echo_request(tmp_path), host_spec()) for _ in range(3)))
            pids = [result.host_pid for result in results]
            assert len(set(pids)) == 3
            await until_dead(pids)

    async def test_eviction_takes_idle_hosts_of_the_device_only(self, pool: HostPool, tmp_path: Path) -> None:
        run = Runner(pool, tmp_path)
        idle, busy, other, keep = (
            HostSpec(TROUBLE, sys.executable, {"n": n}, devices=(device,), env=host_spec().env)
            for n, device in enumerate(["cpu", "cpu", "gpu:1", "cpu"])
        )
        pids = [(await run(trouble_request(tmp_path), spec)).host_pid for spec in (idle, busy, other, keep)]
        end = tmp_path / "end"
        task = asyncio.create_task(run(trouble_request(tmp_path, ["beat", 1, 0.0], ["wait_for", str(end)]), busy))
        await until(lambda: run.events)
        assert await pool.evict(["cpu"], keep=keep.key) == 1
        assert [is_alive(pid) for pid in pids] == [False, True, True, True]
        end.touch()
        await task
        new = HostSpec(TROUBLE, sys.executable, {"n": 9}, devices=("gpu:1",), env=host_spec().env)
        await pool.acquire(new)  # an engine takes the whole GPU: the one before has to go
        assert not is_alive(pids[2])

    async def test_no_more_idle_hosts_leave_a_shared_gpu_than_the_new_one_needs(
        self, pool: HostPool, tmp_path: Path
    ) -> None:
        oldest, newer, third, large = (
            HostSpec(TROUBLE, sys.executable, {"n": n}, devices=("gpu:0",), env=host_spec().env, share=share)
            for n, share in enumerate((0.25, 0.5, 0.5, 1.0))
        )
        pids = [(await pool.acquire(spec)).pid for spec in (oldest, newer)]
        pids.append((await pool.acquire(third)).pid)
        assert [is_alive(pid) for pid in pids] == [False, True, True]
        await pool.acquire(large)
        assert [is_alive(pid) for pid in pids] == [False, False, False]

    async def test_an_idle_host_of_another_owner_leaves_a_gpu_that_was_leased_to_us(
        self, pool: HostPool, tmp_path: Path
    ) -> None:
        run, others = Runner(pool, tmp_path), []
        first, second = (
            HostSpec(TROUBLE, sys.executable, {}, devices=(f"gpu:{n}",), env=host_spec().env) for n in range(2)
        )
        end = tmp_path / "end"
        busy = asyncio.create_task(run(trouble_request(tmp_path, ["beat", 1, 0.0], ["wait_for", str(end)]), second))
        others = [(await pool.acquire(first)).pid]
        await until(lambda: run.events)
        async with HostPool(pool._run_dir, 60, 30) as ours:
            await ours.acquire(HostSpec(TROUBLE, sys.executable, {"n": 1}, ("gpu:0", "gpu:1"), env=host_spec().env))
            assert not is_alive(others[0])
        end.touch()
        assert (await busy).host_pid  # a busy one stays: it has a lease itself

    async def test_engines_that_can_sleep_take_turns_on_a_gpu_without_a_reload(
        self, pool: HostPool, tmp_path: Path
    ) -> None:
        run = Runner(pool, tmp_path)
        sleepy = TROUBLE.replace("Trouble", "Sleepy")
        first, second, third = (
            HostSpec(sleepy, sys.executable, options, devices=("gpu:0",), env=host_spec().env)
            for options in ({"n": 1}, {"n": 2}, {"n": 3, "can_sleep": False})
        )
        seen = [await run(trouble_request(tmp_path), spec) for spec in (first, second, first, first, third, second)]
        answers = [json.loads(Path(result.path).read_text()) for result in seen]
        assert [answer["woken"] for answer in answers] == [0, 0, 1, 1, 0, 1]
        assert len({answer["pid"] for answer in answers}) == 3
        assert {host["pid"] for host in pool.snapshot()} == {
            answers[0]["pid"],
            answers[1]["pid"],
        }  # the third had to go
        assert not is_alive(answers[4]["pid"])

    async def test_number_of_warm_hosts_is_bounded(self, tmp_path: Path) -> None:
        async with HostPool(run_dir_of(tmp_path), idle_seconds=60, start_seconds=30, warm_limit=2) as pool:
            run = Runner(pool, tmp_path)
            pids = [(await run(echo_request(tmp_path), host_spec(n=n))).host_pid for n in range(3)]
            assert [is_alive(pid) for pid in pids] == [False, True, True]


class TestPlaces:
    async def test_only_the_user_can_reach_a_host(self, pool: HostPool, tmp_path: Path) -> None:
        old = os.umask(0)
        try:
            host = await pool.acquire(host_spec())
        finally:
            os.umask(old)
        socket = Path(host.socket)
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700

    async def test_long_home(self, tmp_path: Path) -> None:
        home = tmp_path / ("long" * 30)
        directory = run_dir(home)
        assert not directory.is_relative_to(home)
        assert directory == run_dir(home)
        async with HostPool(directory, idle_seconds=60, start_seconds=30) as pool:
            result = await Runner(pool, tmp_path)(echo_request(tmp_path), host_spec())
            assert Path(result.path).is_file()
        assert not list(directory.glob("*.sock*"))
        shutil.rmtree(directory)

    async def test_pool_leaves_nothing(self, tmp_path: Path) -> None:
        async with HostPool(run_dir_of(tmp_path), idle_seconds=60, start_seconds=30) as pool:
            run = Runner(pool, tmp_path)
            pids = [(await run(echo_request(tmp_path), host_spec(n=n))).host_pid for n in range(2)]
            starting = asyncio.create_task(pool.acquire(late_spec(tmp_path)))  # it never begins
            await asyncio.sleep(0.02)
        assert not any(is_alive(pid) for pid in pids)
        assert not list(run_dir_of(tmp_path).glob("*.sock*"))
        with pytest.raises((DispatchError, asyncio.CancelledError)):
            await starting
        with pytest.raises(DispatchError):
            await pool.acquire(host_spec())
