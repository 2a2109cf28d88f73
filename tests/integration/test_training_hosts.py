"""Trainings in real host processes: killed, cancelled, in several processes; what a later attempt goes on from."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from mloc_prefect.errors import ExecutionError
from mloc_prefect.execution.host_types import HostSpec
from mloc_prefect.execution.hosts import HostPool
from mloc_prefect.execution.hosts.attempt_client import execute
from tests.support.counts import count
from tests.support.hosts import read_json, run_dir_of, until_dead
from tests.support.tiny_model import save_tiny_model
from tests.support.training import SUMS, TrainingBench, loaded, losses

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from mloc_prefect.execution.protocol import ExecutionEvent

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOST = HostSpec(
    "mloc_prefect.executors.training:TrainingExecutor",
    sys.executable,
    env={"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
)
DATA = {"rows": SUMS, "prompt_column": "question", "response_column": "answer", "separator": " "}
TRAINING = {"batch_size": 4, "learning_rate": 5e-3, "gradient_checkpointing": False, "save_archive": False,
            "logging_steps": 1, "save_steps": 5}  # fmt: skip

REWARD = """
import os

def letters(*, completions, **_):
    if os.environ.get("RANK") == "1" and os.path.exists(os.environ["LAB_BROKEN"]):
        raise ConnectionError("the judge has left")
    return [sum(c.isalpha() for c in text) for text in completions]
"""
PROMPTS = {"prompts": [f"say {n}:" for n in range(16)]}
ROLLOUT: dict[str, dict[str, Any]] = {
    "ppo": {"data": PROMPTS, "rewards": [{"path": "lab_rewards:letters"}], "generation": {"max_new_tokens": 3}},
    "grpo": {"data": {"prompts": PROMPTS["prompts"][:4]}, "rewards": [{"name": "json"}],
             "generation": {"max_new_tokens": 3}},
}  # fmt: skip


class Place:
    """Attempts on real hosts."""

    def __init__(self, root: Path, pool: HostPool) -> None:
        self.bench = TrainingBench(root, save_tiny_model(root / "tiny", window=64))
        self.root, self.pool = root, pool
        own = {"PYTHONPATH": str(root), "LAB_BROKEN": str(root / "broken")}
        self.host = replace(HOST, env={**HOST.env, **own})
        self.events: list[ExecutionEvent] = []

    async def __call__(
        self,
        task: str,
        on_event: Callable[[ExecutionEvent], None] = lambda _event: None,
        kind: str = "sft",
        **training: Any,
    ) -> dict[str, Any]:
        """Run the next attempt of a task."""
        model = {"source": {"identifier": str(self.bench.model)}}
        spec = {"model": model, "data": DATA, "training": {**TRAINING, **training}, **ROLLOUT.get(kind, {})}
        self.events.clear()

        def keep(event: ExecutionEvent) -> None:
            self.events.append(event)
            on_event(event)

        request = self.bench.request(kind, spec, task)
        result = await execute(request, self.host, self.pool, on_event=keep, timeout=None, stall=120.0)
        return {**read_json(result.path), "pid": result.host_pid}

    async def cancel_after(self, steps: int, task: str, **training: Any) -> None:
        """Cancel an attempt when so many steps are done, and wait for its end."""
        self.events.clear()
        running = asyncio.create_task(self(task, **training))
        while not any(e.kind == "progress" and e.data["done"] >= steps for e in self.events):
            await asyncio.sleep(0.02)
            assert not running.done(), running.exception()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    async def pid(self) -> int:
        return (await self.pool.acquire(self.host)).pid

    def logs(self) -> list[str]:
        return [e.data["message"] for e in self.events if e.kind == "log"]

    def after(self, steps: int, do: Callable[[], None]) -> Callable[[ExecutionEvent], None]:
        """Return what calls `do` once, when so many steps are done."""
        done: list[int] = []

        def look(event: ExecutionEvent) -> None:
            if event.kind == "progress" and event.data["done"] >= steps and not done:
                done.append(event.data["done"])
                do()

        return look


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    root = tmp_path_factory.mktemp("training")
    (root / "lab_rewards.py").write_text(REWARD)
    async with HostPool(run_dir_of(root), 300, 60) as pool:
        yield Place(root, pool)


@pytest.mark.counted
@pytest.mark.parametrize("number", range(count("training_kill", 1, 10)))
async def test_a_killed_training_goes_on_from_its_last_checkpoint(number: int, place: Place) -> None:
    steps = 150
    whole = await place(f"whole-{number}", max_steps=steps)
    pid = await place.pid()
    kill = place.after(20 + 9 * number, lambda: os.kill(pid, signal.SIGKILL))
    with pytest.raises(ExecutionError) as caught:
        await place(f"killed-{number}", kill, max_steps=steps)
    assert caught.value.failure is not None
    assert caught.value.failure.kind == "killed"
    result = await place(f"killed-{number}", max_steps=steps)
    assert result["pid"] != pid
    resumed = result["resumed_from_step"]
    assert 0 < resumed < steps
    assert resumed % 5 == 0
    assert result["steps"] == whole["steps"] == steps
    assert f"resuming from the checkpoint of step {resumed} of an earlier attempt" in place.logs()[0]
    # The same rows, the same optimiser: the end is that of a training that nobody killed.
    assert losses(result) == pytest.approx(losses(whole), rel=1e-4)
    one, other = (loaded(r["final_model_path"])[0].state_dict() for r in (whole, result))
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-4


async def test_a_cancelled_training_ends_and_its_host_lives_on(place: Place) -> None:
    endless = {"max_steps": 100_000, "save_steps": 100_000}
    await place.cancel_after(3, "cancelled", **endless)
    pid = await place.pid()
    checkpoints = [p.name for p in (place.root / "cancelled" / "checkpoints").glob("checkpoint-*")]
    assert len(checkpoints) == 1
    step = int(checkpoints[0].removeprefix("checkpoint-"))
    assert step >= 3
    result = await place("cancelled", **endless, steps=1)
    assert (result["pid"], result["resumed_from_step"]) == (pid, None), "another spec is another training"


async def test_two_processes_train_as_one(place: Place) -> None:
    """Real launcher, gloo: cancelled, then a process killed, then to the end, as one process would have done it."""
    alone = await place("alone", batch_size=8, max_steps=30)
    two = {"batch_size": 4, "nproc_per_node": 2, "max_steps": 30}
    ranks = place.root / "two" / "attempts"

    await place.cancel_after(2, "two", **two)
    assert list((place.root / "two" / "checkpoints").glob("checkpoint-*"))

    def kill() -> None:
        os.kill(int((ranks / "1-2" / "ranks" / "rank-1.pid").read_text()), signal.SIGKILL)

    with pytest.raises(ExecutionError, match="rank 1 of 2 was killed by SIGKILL"):
        await place("two", place.after(8, kill), **two)
    assert place.logs()[0].startswith("resuming from the checkpoint of step ")

    result = await place("two", **two)
    assert (result["world_size"], result["spawned_torchrun"], result["steps"]) == (2, True, 30)
    assert result["resumed_from_step"] > 0
    assert losses(result) == pytest.approx(losses(alone), rel=1e-3)
    state = json.loads((place.root / "two" / "checkpoints" / "checkpoint-30" / "complete.json").read_text())
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(state)


async def test_ppo_in_two_processes_stops_goes_on_and_leaves_a_policy(place: Place) -> None:
    """Its trainer reads no flag that stops it, and saves a policy only when it finds one below the wrapper."""
    place.bench.settings["allowed_rewards"] = "lab_rewards"
    sizes = {"batch_size": 8, "mini_batch_size": 4, "ppo_epochs": 1, "nproc_per_node": 2}
    two: dict[str, Any] = {"kind": "ppo", **sizes, "max_steps": 60, "save_steps": 1000}
    await place.cancel_after(2, "ppo", **two)
    result = await place("ppo", **two)
    assert 2 <= result["resumed_from_step"] < 60
    assert (result["world_size"], result["steps"]) == (2, 60)
    model, _ = loaded(result["final_model_path"])
    assert model.num_parameters() == loaded(place.bench.model)[0].num_parameters()
    curve = losses(result, "objective/scores")
    assert len(curve) == 60
    assert sum(curve[-10:]) > sum(curve[:10])

    (place.root / "broken").touch()
    try:
        with pytest.raises(ExecutionError, match="rank 1 of 2 failed: ConnectionError: the judge has left") as caught:
            await place("unjust", **two)
    finally:
        (place.root / "broken").unlink()
    assert caught.value.failure is not None
    assert "lab_rewards.py" in (caught.value.failure.traceback or ""), "where it failed"


async def test_grpo_in_two_processes_takes_its_prompts_as_they_are(place: Place) -> None:
    """Two processes with 8 answers each, 4 for each prompt, need 4 prompts, and an epoch is one step."""
    two: dict[str, Any] = {"kind": "grpo", "nproc_per_node": 2, "batch_size": 8, "num_generations": 4}
    result = await place("grpo", **two, num_train_epochs=1)
    assert [line for line in place.logs() if "repeated" in line] == []
    assert (result["world_size"], result["dataset_size"], result["steps"]) == (2, 4, 1)
    await place("grpo-repeated", **two, num_train_epochs=1, gradient_accumulation_steps=2)
    assert "4 prompts are fewer than the 8 of one batch, so they are repeated" in place.logs()


async def test_no_process_outlives_its_host(place: Place) -> None:
    pids: list[int] = []

    def kill_host() -> None:
        folder = place.root / "orphans" / "attempts" / "1-1" / "ranks"
        pids.extend(int(file.read_text()) for file in folder.glob("rank-*.pid"))
        os.kill(host, signal.SIGKILL)

    host = await place.pid()
    with pytest.raises(ExecutionError, match="SIGKILL"):
        await place("orphans", place.after(2, kill_host), nproc_per_node=2, max_steps=100_000)
    assert len(pids) == 2
    await until_dead(pids)


async def test_a_mistake_in_one_process_is_a_mistake_of_the_user(place: Place) -> None:
    with pytest.raises(ExecutionError, match="none is not a valid OptimizerNames") as caught:
        await place("mistake", nproc_per_node=2, max_steps=1, optim="none")
    assert not caught.value.retryable
    failed = read_json(place.root / "mistake" / "attempts" / "1-1" / "failed.json")
    assert failed["error_message"] == caught.value.message
