"""Hosts as real processes: what they answer, how they end, and what the caller gets to know."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from mloc_prefect.errors import DispatchError, ExecutionError
from mloc_prefect.execution import client
from mloc_prefect.execution.dirs import run_dir
from mloc_prefect.execution.hosts import HostPool, HostSpec
from tests.support.hosts import (
    TROUBLE,
    Runner,
    echo_request,
    host_spec,
    is_alive,
    names,
    read_json,
    read_pids,
    run_dir_of,
    trouble_request,
    until,
    until_dead,
)


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[HostPool]:
    async with HostPool(run_dir_of(tmp_path), idle_seconds=60, start_seconds=30) as pool:
        yield pool


@pytest.fixture
def run(pool: HostPool, tmp_path: Path) -> Runner:
    return Runner(pool, tmp_path)


def late_spec(root: Path) -> HostSpec:
    """Return the spec of a host that begins when the file `begin` is there."""
    python = root / "late-python"
    python.write_text(f'#!/bin/sh\nwhile [ ! -e {root}/begin ]; do sleep 0.02; done\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return replace(host_spec(), python=str(python))


async def failure_of(run: Runner, *steps: list, **limits: float):
    with pytest.raises(ExecutionError) as caught:
        await run.trouble(*steps, **limits)
    return caught.value.failure


class TestAnswers:
    async def test_echo_gives_back_its_spec_and_rows(self, run: Runner, tmp_path: Path) -> None:
        request = echo_request(tmp_path, data={"type": "list", "items": ["a", {"b": 1}]})
        result = await run(request, host_spec())
        answer = read_json(result.path)
        assert answer["ok"] is True
        assert answer["echo"] == request.spec
        assert answer["items"] == [
            {"index": 0, "output": "a", "finish_reason": "stop"},
            {"index": 1, "output": {"b": 1}, "finish_reason": "stop"},
        ]
        assert result.summary == {"rows": 2}
        assert run.events[-1].data == {"done": 2, "total": 2}
        assert names(request.attempt_dir) == ["items.jsonl", "result.json"]

    async def test_second_task_meets_the_same_process(self, run: Runner, tmp_path: Path) -> None:
        pids = {(await run(echo_request(tmp_path), host_spec())).host_pid for _ in range(3)}
        assert len(pids) == 1
        assert os.getpid() not in pids

    async def test_other_options_mean_another_process(self, run: Runner, tmp_path: Path) -> None:
        one = await run(echo_request(tmp_path), host_spec())
        two = await run(echo_request(tmp_path), host_spec(model="other"))
        assert one.host_pid != two.host_pid

    async def test_a_model_is_shown_while_it_is_loaded(self, pool: HostPool, run: Runner, tmp_path: Path) -> None:
        spec = host_spec(TROUBLE, model="org/name")

        async def shown_after(*steps: list) -> str | None:
            with suppress(ExecutionError):
                await run(trouble_request(tmp_path, *steps), spec)
            (host,) = pool.snapshot()
            return host["model"]

        assert await shown_after(["fail", "user", "no such model"]) is None
        assert await shown_after(["load"]) == "org/name"
        assert await shown_after(["unload"], ["fail", "user", "no such model"]) is None
        await shown_after(["load"])
        await pool.close()
        assert list(run_dir_of(tmp_path).glob("*.loaded")) == []

    async def test_racing_clients_start_one_host(self, run: Runner, tmp_path: Path) -> None:
        requests = [echo_request(tmp_path, echo={"delay": 1.0}) for _ in range(40)]
        started = time.monotonic()
        results = await asyncio.gather(*(run(request, host_spec()) for request in requests))
        assert len({r.host_pid for r in results}) == 1
        assert time.monotonic() - started < 40 * 1.0  # at once, not one after the other

    async def test_engine_runs_on_the_main_thread_without_our_libraries(self, run: Runner) -> None:
        answer = await run.trouble(["note_thread"], ["note_modules"])
        assert answer["main_thread"] is True
        heavy = {"prefect", "pydantic", "asyncio", "yaml", "fsspec", "torch"}
        assert not heavy & set(answer["modules"])

    async def test_environment_of_a_host(self, pool: HostPool, tmp_path: Path) -> None:
        run = Runner(pool, tmp_path)
        spec = HostSpec(
            TROUBLE, sys.executable, devices=("gpu:1", "gpu:3"), env={**host_spec().env, "MLOC_EXTRA": "yes"}
        )
        result = await run(trouble_request(tmp_path, ["note_environment"]), spec)
        environment = read_json(result.path)["environment"]
        assert environment["CUDA_VISIBLE_DEVICES"] == "1,3"
        assert environment["MLOC_EXTRA"] == "yes"
        first = environment["PYTHONPATH"].split(":")[0]
        assert names(first) == ["mloc_prefect"]  # our package, and nothing else of our environment
        assert "MLOC_HOST_CONFIG" not in environment

    async def test_noise_stays_off_the_protocol(self, run: Runner) -> None:
        answer = await run.trouble(["print_everywhere"])
        assert answer["ok"] is True
        host = await run.hosts.acquire(host_spec(TROUBLE))
        assert Path(host.log).read_text().count('"/forged"') == 6

    async def test_large_requests_and_large_results(self, run: Runner, tmp_path: Path) -> None:
        upstream = {"before": {"result": {"text": "ä" * 3_000_000}}}
        request = trouble_request(tmp_path, ["count_upstream"], ["stream", 20_000], upstream=upstream)
        result = await run(request, host_spec(TROUBLE))
        answer = read_json(result.path)
        assert answer["upstream_bytes"] > 3_000_000
        assert len(answer["items"]) == 20_000
        assert names(request.attempt_dir) == ["result.json"]

    async def test_an_event_that_is_too_large_becomes_a_note(self, run: Runner) -> None:
        await run.trouble(["big_event", 6_000_000])
        assert "metric event of 6000" in run.events[0].data["message"]


class TestFailures:
    async def test_exceptions(self, run: Runner) -> None:
        error = await failure_of(run, ["fail", "error", "went wrong"])
        assert (error.kind, error.message, error.retryable) == ("error", "RuntimeError: went wrong", True)
        assert "executors_for_tests.py" in error.traceback
        user = await failure_of(run, ["fail", "user", "no such column"])
        assert (user.kind, user.message, user.retryable, user.traceback) == ("user", "no such column", False, None)
        final = await failure_of(run, ["fail", "final", "never again"])
        assert (final.kind, final.hint) == ("user", "a hint")
        left = await failure_of(run, ["sys_exit"])
        assert (left.kind, left.message) == ("error", "the executor called sys.exit(4)")
        assert len({(await run.trouble())["pid"] for _ in range(2)}) == 1  # the host lives on

    async def test_missing_library_names_the_extra(self, run: Runner, tmp_path: Path) -> None:
        missing = await failure_of(run, ["import_library", "qdrant_client.not_there"])
        assert missing.kind == "missing"
        assert "'qdrant_client'" in missing.message
        assert missing.hint == "pip install 'mloc-prefect[rag]'"
        with pytest.raises(ExecutionError, match="plans such tasks but has no executor for them"):
            await run(echo_request(tmp_path), host_spec("mloc_prefect.executors.unwritten:Executor"))

    @pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGTERM"])
    async def test_killed(self, run: Runner, name: str) -> None:
        failure = await failure_of(run, ["kill_self", name])
        assert (failure.kind, failure.signal) == ("killed", name)
        assert failure.message == f"the executor process was killed by {name}"
        assert "last words" in failure.log_tail
        assert failure.retryable

    async def test_segmentation_fault_leaves_its_stack_in_the_log(self, run: Runner) -> None:
        failure = await failure_of(run, ["segfault"])
        assert failure.signal == "SIGSEGV"
        assert "in segfault" in failure.log_tail

    async def test_exited(self, run: Runner) -> None:
        failure = await failure_of(run, ["exit", 3])
        assert (failure.kind, failure.exit_code) == ("exited", 3)
        assert "exit code 3" in failure.message
        assert failure.log_tail.endswith("about to leave")

    async def test_out_of_memory(self, run: Runner) -> None:
        before = (await run.trouble())["pid"]
        failure = await failure_of(run, ["limit_memory", 64 << 20], ["allocate", 256 << 20])
        assert failure.kind == "oom"
        assert "out of memory" in failure.message
        assert not is_alive(before)  # its heap may be in any state
        failure = await failure_of(run, ["bad_alloc"])
        assert (failure.kind, failure.signal) == ("oom", "SIGABRT")

    async def test_interpreter_that_is_not_there(self, run: Runner, tmp_path: Path) -> None:
        with pytest.raises(DispatchError, match="no Python interpreter at /not/there"):
            await run(echo_request(tmp_path), HostSpec("x:Y", "/not/there"))

    async def test_interpreter_that_does_not_start_the_host(self, run: Runner, tmp_path: Path) -> None:
        python = tmp_path / "python"
        python.write_text("#!/bin/sh\necho this is no interpreter; exit 2\n")
        python.chmod(0o755)
        with pytest.raises(DispatchError, match="ended before it listened: this is no interpreter"):
            await run(echo_request(tmp_path), HostSpec("x:Y", str(python)))
        python.write_text("#!/bin/sh\nsleep 300\n")
        hosts = HostPool(run_dir_of(tmp_path), idle_seconds=60, start_seconds=0.3)
        with pytest.raises(DispatchError, match=r"did not listen within 0\.3 s"):
            await Runner(hosts, tmp_path)(echo_request(tmp_path), HostSpec("x:Y", str(python)))
        await hosts.close()


class TestLimits:
    async def test_timeout_ends_the_task_and_keeps_a_host_that_listens(
        self, run: Runner, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mloc_prefect.execution.client.CANCEL_SECONDS", 30.0)
        before = (await run.trouble())["pid"]
        failure = await failure_of(run, ["wait_cancelled"], timeout=0.2)
        assert failure.kind == "timeout"
        assert "limit of 0.2 s" in failure.message
        assert (await run.trouble())["pid"] == before

    async def test_timeout_counts_from_the_start_of_the_task(self, run: Runner, tmp_path: Path) -> None:
        """A task that waits for a worker is not late."""
        started = tmp_path / "started"
        first = asyncio.create_task(run.trouble(["note_pid", str(started)], ["wait_cancelled", 2.5]))
        await until(started.exists)
        second = await run.trouble(["wait_cancelled", 0.1], timeout=2.0, stall=2.0)
        assert second["ok"]
        assert (await first)["ok"]

    async def test_stall_ends_the_host(self, run: Runner) -> None:
        pid = (await run.trouble())["pid"]
        failure = await failure_of(run, ["hang"], stall=0.5)
        assert failure.kind == "stalled"
        await until_dead([pid])

    async def test_events_keep_the_watchdog_away(self, run: Runner) -> None:
        answer = await run.trouble(["beat", 16, 0.2], stall=3.0)
        assert answer["ok"] is True
        assert len(run.events) == 16

    async def test_cancelling_frees_the_host_within_three_seconds(
        self, run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert client.CANCEL_SECONDS == 3.0
        for step, survives, patience in (["wait_cancelled"], True, 30.0), (["hang"], False, 3.0):
            monkeypatch.setattr(client, "CANCEL_SECONDS", patience)
            pids = tmp_path / step[0]
            task = asyncio.create_task(run.trouble(["note_pid", str(pids)], step))
            await until(pids.exists)
            started = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert time.monotonic() - started < 15
            host = read_pids(pids)[0]
            assert is_alive(host) is survives
            assert (await run.trouble())["ok"] is True  # there is a host for the next one

    async def test_cancelling_a_task_that_waits_does_not_touch_the_running_one(
        self, run: Runner, tmp_path: Path
    ) -> None:
        end = tmp_path / "end"
        first = asyncio.create_task(run.trouble(["beat", 1, 0.0], ["wait_for", str(end)]))
        await until(lambda: run.events)
        second = asyncio.create_task(run.trouble(["wait_cancelled"]))
        await asyncio.sleep(0.1)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert not first.done()  # nor did the second one wait for it
        end.touch()
        assert (await first)["ok"] is True

    async def test_client_that_vanishes_cancels_its_task(self, pool: HostPool, tmp_path: Path) -> None:
        host = await pool.acquire(host_spec(TROUBLE))
        done = tmp_path / "pid"
        code = (
            "import socket, sys, json, os\n"
            "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
            "s.sendall(json.dumps({'op': 'run', 'request': json.loads(sys.argv[2])}).encode() + b'\\n')\n"
            "s.recv(100)\nos.kill(os.getpid(), 9)\n"
        )
        request = trouble_request(tmp_path, ["note_pid", str(done)], ["wait_cancelled"])
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, host.socket, json.dumps(request.to_wire())
        )
        await child.wait()
        started = time.monotonic()
        assert (await Runner(pool, tmp_path).trouble())["pid"] == host.pid
        assert time.monotonic() - started < 30


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
