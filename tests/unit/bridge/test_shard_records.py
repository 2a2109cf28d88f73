"""Records of the parts of a divided task, and what is published of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mloc_prefect.bridge.shard_records import shard_record
from mloc_prefect.store.states import Phase, StatusMark
from tests.support.bridging import BridgeBench, stage_event, view, workflow_run
from tests.support.records import record, submission

if TYPE_CHECKING:
    from mloc_prefect.bridge.event_sources import RunEvent

MULTI = {"worker": "MULTI", "protocol": "ours"}


def part(step: str, index: int = 0, attempt: int = 1, **facts: Any) -> RunEvent:
    named = {"task_id": f"p{index}", "index": index, "total": 2}
    return stage_event("shard", step=step, part=named, part_attempt=attempt, **facts)


async def divided(*events: RunEvent) -> BridgeBench:
    bench = BridgeBench()
    spec = {"taskType": "inference", "data": {"type": "list", "items": ["a", "b", "c"]}}
    whole = record("t1", submission_id="s1", parsed={"metadata": {"name": "t1"}, "spec": spec})
    await bench.stores.tasks.submit(submission("s1", "t1"), [whole])
    for event in (stage_event("placed", **MULTI), stage_event("started", **MULTI), *events):
        await bench.projector.apply(event)
    return bench


async def test_a_part_has_a_record_with_its_rows_and_its_parent() -> None:
    bench = await divided(part("placed", 1, worker="w-1", protocol="ours"))
    found = await bench.record("p1")
    assert (found.parent_task_id, found.shard_index, found.shard_total) == ("t1", 1, 2)
    assert (found.submission_id, found.graph_node_name, found.depends_on) == ("s1", None, ())
    assert (found.mark, found.assigned_worker) == (StatusMark(1, Phase.STARTED), "w-1")
    assert found.parsed["spec"]["data"]["items"] == ["c"]
    assert found.parsed["spec"]["shard"] == {"index": 1, "total": 2, "parent_task_id": "t1", "first": 2}
    whole = await bench.record()
    assert (whole.status, whole.assigned_worker) == ("DISPATCHED", "MULTI")


async def test_the_document_of_a_part_names_its_rows_by_shard_and_has_no_files_of_its_own() -> None:
    """Documented in docs/compatibility.md: the original cuts `data.split` by percentages."""
    data = {"type": "dataset", "url": "rows.jsonl", "split": "train[:64]"}
    output = {"destination": {"type": "http", "url": "http://h/"}, "artifacts": ["model.zip"]}
    parent = record("t1", parsed={"metadata": {"name": "t1"}, "spec": {"data": data, "output": output}})
    found = shard_record(parent, {"task_id": "p1", "index": 1, "total": 2}, 1.0)
    spec = found.parsed["spec"]
    assert spec["data"] == data
    assert spec["shard"] == {"index": 1, "total": 2, "parent_task_id": "t1"}
    assert spec["output"] == {"destination": {"type": "local"}, "artifacts": []}


async def test_nothing_says_that_a_worker_of_the_name_multi_got_work() -> None:
    bench = await divided(part("placed", worker="w-1", protocol="ours"))
    assert bench.messages == ["TASK_STARTED", "tasks", "STATUS RUNNING", "TASK_STARTED", "STATUS RUNNING"]
    message = next(m for c, m in bench.stores.publisher.sent if c == "tasks")  # type: ignore[attr-defined]
    assert (message["task_id"], message["parent_task_id"]) == ("p0", "t1")
    assert (message["shard_index"], message["shard_total"]) == (0, 2)
    await bench.projector.end_task(view())
    assert [w.worker_id for w in await bench.stores.workers.list()] == []


async def test_a_part_waits_fails_goes_on_and_ends_alone() -> None:
    where = {"worker": "w-1", "protocol": "ours"}
    bench = await divided(part("waiting", reason="no room"))
    assert ((await bench.record("p0")).status, (await bench.record("p0")).error) == ("WAITING", "no room")
    await bench.projector.apply(part("waiting", reason="two ahead"))
    assert (await bench.record("p0")).error == "two ahead"
    for event in (
        part("placed", **where),
        part("failed", error="killed", final=False, next_retry_at="soon", **where),
    ):
        await bench.projector.apply(event)
    found = await bench.record("p0")
    assert (found.mark, found.error, found.next_retry_at) == (StatusMark(2, Phase.WAITING), "killed", "soon")
    assert (await bench.record()).status == "DISPATCHED"
    await bench.projector.apply(part("placed", 0, 2, worker="w-2", protocol="ours"))
    await bench.projector.apply(part("done", 0, 2, worker="w-2"))
    done = await bench.record("p0")
    assert (done.mark, done.assigned_worker) == (StatusMark(2, Phase.DONE), "w-2")


async def test_what_comes_twice_changes_nothing() -> None:
    events = [part("placed", worker="w-1", protocol="ours"), part("done", worker="w-1")]
    bench = await divided(*events)
    before = bench.messages
    for event in events:
        await bench.projector.apply(event)
    assert bench.messages == before


async def test_a_part_at_a_worker_of_the_original_protocol_is_silent_and_begins_later() -> None:
    where = {"worker": "o-1", "protocol": "original"}
    bench = await divided(part("placed", begun=False, **where))
    assert (await bench.record("p0")).mark == StatusMark(1, Phase.DISPATCHED)
    await bench.projector.apply(part("placed", begun=True, **where))
    assert (await bench.record("p0")).mark == StatusMark(1, Phase.STARTED)
    assert bench.messages == ["TASK_STARTED"]


async def test_parts_end_with_their_whole() -> None:
    bench = await divided(part("placed", worker="w-1", protocol="ours"), part("waiting", 1, reason="no room"))
    await bench.projector.end_task(view("FAILED", message="Child shard failed: p0"))
    assert (await bench.record()).status == "FAILED"
    for name in ("p0", "p1"):
        found = await bench.record(name)
        assert (found.status, found.error) == ("FAILED", "not finished: task t1, of which it is a part, has failed")


async def test_parts_are_done_or_cancelled_when_their_whole_is() -> None:
    bench = await divided(part("placed", worker="w-1", protocol="ours"))
    await bench.projector.end_task(view())
    assert (await bench.record("p0")).status == "DONE"
    bench = await divided(part("placed", worker="w-1", protocol="ours"))
    await bench.projector.end_workflow_run(workflow_run("CANCELLED"))
    assert ((await bench.record("p0")).status, (await bench.record()).status) == ("CANCELLED", "CANCELLED")
