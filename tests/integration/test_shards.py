"""Divided tasks on real executor processes: the rows of the whole, whatever the data and the number of shards."""

from __future__ import annotations

import json
import logging
import os
import signal
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from mloc_prefect.errors import ExecutionError
from mloc_prefect.execution.hosts import HostPool
from mloc_prefect.flow.dispatcher import InProcessDispatcher
from mloc_prefect.flow.fencing import NoFence
from mloc_prefect.flow.options import RunOptions
from mloc_prefect.flow.shards.sharding_dispatcher import ShardingDispatcher, ShardScope
from mloc_prefect.flow.stage_runner import RunScope, StageRun, run_stage
from mloc_prefect.hardware.inventory import GpuDevice, Inventory
from mloc_prefect.leases import MemoryLeaseBook
from mloc_prefect.process.run_dir import run_dir
from mloc_prefect.settings import get_settings
from tests.support.counts import count
from tests.support.flows import SUPPORT, Holding, Recorder, graph
from tests.support.smollm import prepared_home

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mloc_prefect.execution.protocol import ExecutionEvent
    from mloc_prefect.flow.outcome import StageOutcome

ROWS = 37
DATA: dict[str, dict[str, Any]] = {
    "list": {"type": "list", "items": [f"row {i}" for i in range(ROWS)]},
    "jsonl": {"type": "dataset", "url": "rows.jsonl"},
    "percentage": {"type": "dataset", "url": "rows.jsonl", "split": "train[5%:77%]"},
    "row-range": {"type": "dataset", "url": "rows.jsonl", "split": "train[:23]"},
    "shuffled": {"type": "dataset", "url": "rows.jsonl", "split": "train[3:30]", "shuffle": True, "seed": 11},
}
ONE_GPU = {"resources": {"replicas": 1, "hardware": {"cpu": 1, "memory": "1Gi", "gpu": {"count": 1, "type": "any"}}}}


class Machine:
    """Five declared GPUs, so five executor processes at most."""

    def __init__(self, root: Path, pool: HostPool, **settings: Any) -> None:
        self.root, self.pool = root, pool
        self.settings = get_settings(home=root / "home", results_dir=root / "results", retry_base_delay=0, **settings)
        inventory = Inventory(8, None, tuple(GpuDevice(i, "declared") for i in range(5)))
        self.leases = MemoryLeaseBook(inventory)
        self.inner = InProcessDispatcher(settings=self.settings, hosts=pool, leases=self.leases, inventory=inventory)
        self.events: list[ExecutionEvent] = []
        self.let_go = root / "let-go"

    async def run(
        self, task_id: str, spec: dict[str, Any], *, run_count: int = 1, on_event: Any = None
    ) -> StageOutcome:
        plan = graph({"a": ([], spec)})
        options = RunOptions(settings=self.settings, base_dir=self.root)
        shards = ShardScope(dispatcher=Holding(self.inner), settings=self.settings, root=options.root)
        scope = RunScope(
            options=options,
            dispatcher=ShardingDispatcher(shards),
            observer=Recorder(),
            fence=NoFence(),
            run_count=run_count,
            task_ids={"a": task_id},
        )
        self.events = []

        def heard(event: ExecutionEvent) -> None:
            self.events.append(event)
            if on_event is not None:
                on_event(event)

        return await run_stage(plan.stage("a"), scope, StageRun(log=logging.getLogger("test"), on_event=heard))

    def done(self) -> list[dict[str, Any]]:
        return [e.data for e in self.events if e.kind == "shard" and e.data["step"] == "done"]

    def busy(self) -> list[int]:
        """Return the executor processes on leased devices."""
        leased = {device for held in self.leases.snapshot() for device in held.lease.devices}
        return [host["pid"] for host in self.pool.snapshot() if host["pid"] and set(host["devices"]) & leased]


@asynccontextmanager
async def machine(root: Path, **settings: Any) -> AsyncIterator[Machine]:
    """Run one; a task with `hold` waits until its file `let_go` is there."""
    (root / "rows.jsonl").write_text("".join(json.dumps({"text": f"line {i}"}) + "\n" for i in range(ROWS)))
    async with HostPool(run_dir(root / "home"), 60, 60) as pool:
        yield Machine(root, pool, **settings)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def echoes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Machine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", SUPPORT)
        async with machine(tmp_path_factory.mktemp("echoes")) as found:
            yield found


def divided(spec: dict[str, Any], shards: int) -> dict[str, Any]:
    return {**spec, "parallel": {"enabled": shards > 0, "max_shards": max(shards, 1)}}


def result(outcome: StageOutcome) -> dict[str, Any]:
    assert outcome.result_path is not None
    found = json.loads(Path(outcome.result_path).read_text())
    return found["result"] if found.get("worker_id") == "MULTI" else found


def computed(root: Path, task_ids: list[str]) -> list[int]:
    """Return how many lines each shard has in its journals."""
    lines = [(root / "results" / t).glob("attempts/*/items.jsonl") for t in task_ids]
    return [sum(len(f.read_text().splitlines()) for f in files) for files in lines]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("form", DATA)
async def test_shards_have_the_rows_of_the_whole_in_content_and_order(echoes: Machine, form: str) -> None:
    spec = {"echo": {"load": form != "list"}, "data": DATA[form], **ONE_GPU}
    whole = result(await echoes.run(f"{form}-0", divided(spec, 0)))["items"]
    assert len(whole) == {"percentage": 26, "row-range": 23, "shuffled": 27}.get(form, ROWS)
    assert [item["index"] for item in whole] == list(range(len(whole)))
    for number in (1, 2, 3, 5):
        found = result(await echoes.run(f"{form}-{number}", divided(spec, number)))
        assert (found["merged"] if number > 1 else found)["items"] == whole, number
        if number > 1:
            ids = [e["task_id"] for e in found["shards"]]
            assert len(set(ids)) == number
            assert sum(computed(echoes.root, ids)) == len(whole)


@pytest.mark.counted
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("number", range(count("shard_kill", 2, 20)))
async def test_a_shard_whose_process_is_killed_goes_on_alone_where_it_was(echoes: Machine, number: int) -> None:
    echoes.let_go.unlink(missing_ok=True)
    hold = [11, str(echoes.let_go)]  # of the twelve or thirteen rows of each shard
    spec = divided({"echo": {"row_delay": 0.02}, "data": DATA["list"], "hold": hold, **ONE_GPU}, 3)
    victim: list[int] = []

    def kill_late(event: ExecutionEvent) -> None:
        late = event.kind == "progress" and event.data["done"] >= 6 + number
        if late and not victim and len(busy := echoes.busy()) == 3:
            victim.append(busy[number % 3])
            os.kill(victim[0], signal.SIGKILL)
            echoes.let_go.touch()

    found = result(await echoes.run(f"killed-{number}", spec, on_event=kill_late))
    assert [i["output"] for i in found["merged"]["items"]] == DATA["list"]["items"]
    ids = [e["task_id"] for e in found["shards"]]
    assert computed(echoes.root, ids) == [13, 12, 12]  # no row twice, in the killed shard neither
    attempts = [len(list((echoes.root / "results" / t).glob("attempts/*-*"))) for t in ids]
    assert sorted(attempts) == [1, 1, 2]
    assert victim


@pytest.mark.asyncio(loop_scope="module")
async def test_a_later_start_repeats_no_finished_shard(echoes: Machine) -> None:
    items = list("abcd")  # the first shard has two, and stops at the second one
    echoes.let_go.unlink(missing_ok=True)
    data = {"type": "list", "items": items}
    spec = divided({"echo": {"row_delay": 0.2}, "data": data, "hold": [1, str(echoes.let_go)], **ONE_GPU}, 3)
    settings = echoes.settings
    echoes.settings = settings.model_copy(update={"max_retries": 0})
    killed: list[int] = []

    def kill_one(event: ExecutionEvent) -> None:
        if event.kind == "shard" and event.data["step"] == "done" and not killed:
            killed.extend(echoes.busy())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
            echoes.let_go.touch()

    with pytest.raises(ExecutionError, match="Child shard failed"):
        await echoes.run("again", spec, on_event=kill_one)
    first = echoes.done()
    echoes.settings = settings
    found = result(await echoes.run("again", spec, run_count=2))
    reused = [d["part"]["index"] for d in echoes.done() if d.get("reused")]
    assert sorted(reused) == sorted(d["part"]["index"] for d in first)  # shards are found side by side
    assert reused
    assert [i["output"] for i in found["merged"]["items"]] == items
    assert computed(echoes.root, [e["task_id"] for e in found["shards"]]) == [2, 1, 1]


async def test_a_real_model_answers_alike_in_shards(tmp_path: Path) -> None:
    prompts = [f"The number {i} is" for i in range(5)]
    spec = {
        "taskType": "inference",
        "model": {"source": {"identifier": "smollm2"}, "transformers": {"dtype": "float32"}},
        "inference": {"temperature": 0, "max_tokens": 6, "batch_size": 1},
        "data": {"type": "list", "items": prompts},
        **ONE_GPU,
    }
    async with machine(tmp_path, mirrors=prepared_home() / "mirrors.yaml") as place:
        whole = result(await place.run("whole", divided(spec, 0)))
        found = result(await place.run("two", divided(spec, 2)))
    assert found["merged"]["items"] == whole["items"]
    assert found["merged"]["usage"] == whole["usage"]
    assert found["merged"]["model"] == whole["model"]
    assert len({item["output"] for item in whole["items"]}) > 1
