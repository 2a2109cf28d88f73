"""Hosts as real processes: what they answer, how they end, and what the caller gets to know."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from mloc_prefect.errors import DispatchError, ExecutionError
from mloc_prefect.execution.hosts import HostPool, HostSpec, attempt_client
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
from tests.support.patience import STOP_SECONDS


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[HostPool]:
    async with HostPool(run_dir_of(tmp_path), idle_seconds=60, start_seconds=30) as pool:
        yield pool


@pytest.fixture
def run(pool: HostPool, tmp_path: Path) -> Runner:
    return Runner(pool, tmp_path)


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
        data = {"type": "list", "items": ["a", "b"]}
        requests = [echo_request(tmp_path, echo={"row_delay": 0.5}, data=data) for _ in range(40)]
        results = await asyncio.gather(*(run(request, host_spec()) for request in requests))
        assert len({r.host_pid for r in results}) == 1
        done = [event.data["done"] for event in run.events if event.kind == "progress"]
        assert done[: done.index(2)].count(1) > 1, "at once, not one after the other"

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
    async def test_timeout_ends_the_task_and_keeps_a_host_that_listens(self, run: Runner) -> None:
        before = (await run.trouble())["pid"]
        failure = await failure_of(run, ["wait_cancelled"], timeout=0.2, cancel_seconds=30.0)
        assert failure.kind == "timeout"
        assert "limit of 0.2 s" in failure.message
        assert (await run.trouble())["pid"] == before

    async def test_timeout_counts_from_the_start_of_the_task(self, run: Runner, tmp_path: Path) -> None:
        """A task that waits for a worker is not late."""
        started = tmp_path / "started"
        first = asyncio.create_task(run.trouble(["note_pid", str(started)], ["wait_cancelled", 5.5]))
        await until(started.exists)
        second = await run.trouble(["wait_cancelled", 0.1], timeout=5.0, stall=5.0)
        assert second["ok"]
        assert (await first)["ok"]

    async def test_stall_ends_the_host(self, run: Runner) -> None:
        pid = (await run.trouble())["pid"]
        failure = await failure_of(run, ["hang"], stall=0.5)
        assert failure.kind == "stalled"
        await until_dead([pid])

    async def test_events_keep_the_watchdog_away(self, run: Runner) -> None:
        answer = await run.trouble(["beat", 28, 0.2], stall=5.0)
        assert answer["ok"] is True
        assert len(run.events) == 28

    async def test_cancelling_frees_the_host_within_three_seconds(self, run: Runner, tmp_path: Path) -> None:
        assert attempt_client.CANCEL_SECONDS == 3.0
        for step, survives, patience in (["wait_cancelled"], True, 30.0), (["hang"], False, 3.0):
            pids = tmp_path / step[0]
            task = asyncio.create_task(run.trouble(["note_pid", str(pids)], step, cancel_seconds=patience))
            await until(pids.exists)
            task.cancel()
            await asyncio.wait([task], timeout=STOP_SECONDS)
            assert task.cancelled()
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
        async with asyncio.timeout(STOP_SECONDS):  # uncancelled it would take 300 s
            assert (await Runner(pool, tmp_path).trouble())["pid"] == host.pid
