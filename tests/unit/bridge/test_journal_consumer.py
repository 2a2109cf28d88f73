"""From the journal to Prefect."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from redis.exceptions import ResponseError

from mloc_prefect.artifacts import atomic
from mloc_prefect.artifacts.layout import RESPONSES, task_dir
from mloc_prefect.artifacts.manifest import read_manifest
from mloc_prefect.artifacts.result_guard import note_posted
from mloc_prefect.bridge import journal_consumer, journal_handlers
from mloc_prefect.bridge.journal_consumer import JournalConsumer
from mloc_prefect.errors import StoreError
from mloc_prefect.flow import spec_parameters
from mloc_prefect.process.backoff import Backoff
from mloc_prefect.server.posted_results import complete
from mloc_prefect.settings import get_settings
from tests.support.bridging import (
    BridgeBench,
    running,
    started,
    until,
    view,
    workflow_run,
)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_consumer, "_WAITS", Backoff(first=0.0))


def refused(status: int, text: str = "") -> httpx.HTTPStatusError:
    answer = httpx.Response(status, request=httpx.Request("POST", "http://x"), text=text)
    return httpx.HTTPStatusError(f"answer {status}", request=answer.request, response=answer)


class FakePrefect:
    """What the dispatcher asks of Prefect's API."""

    def __init__(self) -> None:
        self.created: list[dict[str, Any]] = []
        self.states: list[tuple[str, str]] = []
        self.errors: list[Exception] = []
        self.malformed: dict[str, Exception] = {}
        self.ready: list[int] = []
        self.busy = self.most = 0

    async def create_flow_run_from_deployment(self, deployment: Any, **fields: Any) -> Any:
        self.busy += 1
        self.most = max(self.most, self.busy)
        await asyncio.sleep(0)
        self.busy -= 1
        if self.errors:
            raise self.errors.pop(0)
        if (error := self.malformed.get(fields["idempotency_key"])) is not None:
            raise error
        known = {c["idempotency_key"] for c in self.created}
        if fields["idempotency_key"] not in known:
            self.created.append(fields)
        return SimpleNamespace(id=f"root-of-{fields['idempotency_key']}")

    async def request(self, method: str, path: str, json: Any = None) -> Any:
        if path == "/ready":
            if self.ready and self.ready.pop(0) != 200:
                raise refused(503)
            return httpx.Response(200, json={})
        if (error := self.malformed.get(path)) is not None:
            raise error
        assert method == "POST"
        self.states.append((path.split("/")[2], json["state"]["type"]))
        return httpx.Response(200, json={})


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> FakePrefect:
    async def ensured(*_: Any) -> str:
        return "deployment"

    monkeypatch.setattr(journal_handlers, "ensure_deployment", ensured)
    return FakePrefect()


def dispatcher(bench: BridgeBench, prefect: FakePrefect, **limits: int) -> JournalConsumer:
    return JournalConsumer(bench.stores, prefect, bench.runs, bench.settings, **limits)  # type: ignore[arg-type]


async def drain(bench: BridgeBench, prefect: FakePrefect) -> None:
    async with running(dispatcher(bench, prefect).consume_journal()):

        async def empty() -> bool:
            return not await bench.stores.journal.depth()

        await until(empty)


async def test_a_submission_becomes_one_run(prefect):
    bench = BridgeBench()
    await bench.submitted(raw_yaml="a: 1", parameters={"who": "me"}, file="x.yaml")
    await drain(bench, prefect)
    (run,) = prefect.created
    assert run["idempotency_key"] == "s1"
    assert run["work_queue_name"] == "coordinator"
    assert run["tags"] == ["mloc", "mloc-submission:s1"]
    assert run["parameters"] == {"spec": "a: 1", "parameters": {"who": "me"}, "submission_id": "s1", "file": "x.yaml"}
    assert (await bench.stores.tasks.submission("s1")).flow_run == "root-of-s1"


async def test_results_that_were_posted_before_a_run_was_made_are_committed(prefect, tmp_path):
    bench = BridgeBench(results_dir=tmp_path)
    await bench.submitted("all")
    await bench.submitted("part", "open", submission="s2")
    for task_id in ("all", "part"):
        atomic.write_json(task_dir(tmp_path, task_id) / RESPONSES, {"task_id": task_id, "result": {"answer": 42}})
        note_posted(task_dir(tmp_path, task_id))
        await complete(bench.stores.tasks, task_id)
    await drain(bench, prefect)
    assert [run["idempotency_key"] for run in prefect.created] == ["s2"], "whose stage runner commits the other"
    directory = task_dir(tmp_path, "all")
    manifest = read_manifest(directory)
    assert manifest is not None
    entry = manifest.entry(RESPONSES)
    assert entry is not None
    assert (entry.size, entry.sha256) == atomic.digest(directory / RESPONSES)
    assert read_manifest(task_dir(tmp_path, "part")) is None


async def test_a_long_spec_goes_by_its_content(prefect):
    bench = BridgeBench()
    text = "a: " + "x" * 20_000
    await bench.submitted(raw_yaml=text)
    await drain(bench, prefect)
    assert prefect.created[0]["parameters"]["spec"].startswith("sha256:")


async def test_secrets_are_in_no_parameter_of_a_run(prefect):
    bench = BridgeBench()
    await bench.submitted(raw_yaml="api_key: hidden-value", parameters={"hf_token": "hidden-value", "topic": "x"})
    await drain(bench, prefect)
    parameters = prefect.created[0]["parameters"]
    assert "hidden-value" not in str(parameters)
    assert parameters["parameters"]["topic"] == "x"
    root = get_settings().results_root
    assert spec_parameters.unpack(parameters["spec"], root) == "api_key: hidden-value"
    assert spec_parameters.unpack_values(parameters["parameters"], root)["hf_token"] == "hidden-value"


async def test_several_go_at_once_but_not_all(prefect):
    bench = BridgeBench()
    for number in range(40):
        await bench.submitted(f"t{number}", submission=f"s{number}")
    await drain(bench, prefect)
    assert len(prefect.created) == 40
    assert 2 <= prefect.most <= journal_consumer.AT_ONCE


async def test_while_prefect_is_away_entries_stay(prefect, caplog, monkeypatch):
    monkeypatch.setattr(journal_consumer, "_WAITS", Backoff(first=0.001, most=2.0))
    bench = BridgeBench()
    await bench.submitted()
    prefect.errors = [httpx.ConnectError("refused"), refused(503), refused(502)]
    prefect.ready = [503]
    await drain(bench, prefect)
    assert len(prefect.created) == 1
    assert caplog.text.count("submit of s1 is waiting") == 1


async def test_entries_that_always_fail_stop_no_others_and_are_given_up(prefect, monkeypatch):
    monkeypatch.setattr(journal_consumer, "_WAITS", Backoff(first=0.01, most=0.01))
    bench = BridgeBench()
    malformed = [f"s{number}" for number in range(journal_consumer.AT_ONCE + 4)]
    wrong = StoreError("Redis did not like it")
    wrong.__cause__ = ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")
    prefect.malformed = dict.fromkeys(malformed, KeyError("part")) | {
        malformed[0]: refused(500),
        malformed[1]: refused(404),
        malformed[3]: wrong,
    }
    for number, name in enumerate([*malformed, "fine"]):
        await bench.submitted(f"t{number}", submission=name)
    async with running(dispatcher(bench, prefect).consume_journal()):
        await until(lambda: prefect.created)
        assert (await bench.record("t0")).status == "PENDING", "a submission behind all of them was not kept waiting"
        await bench.submitted("later", submission="later")
        await until(lambda: len(prefect.created) == 2)

        async def empty() -> bool:
            return not await bench.stores.journal.depth()

        await until(empty)
    records = [await bench.record(f"t{number}") for number in range(3)]
    assert [r.status for r in records] == ["FAILED"] * 3
    assert [r.error for r in records] == [f"could not be started: {e}" for e in ("answer 500", "answer 404", "'part'")]


async def test_while_prefect_is_not_ready_its_500s_are_waited_for(prefect):
    bench = BridgeBench()
    await bench.submitted()
    away = 3 * journal_consumer.MOST_FAILURES
    prefect.errors = [refused(500) for _ in range(away)]
    prefect.ready = [503] * away
    await drain(bench, prefect)
    assert len(prefect.created) == 1
    assert (await bench.record()).status == "PENDING"


@pytest.mark.parametrize("status", [500, 503])
async def test_a_database_error_about_one_submission_blocks_no_others(prefect, status):
    """PostgreSQL refuses one record; Prefect says that in the same words as that its database is away."""
    bench = BridgeBench()
    bad = [f"s{number}" for number in range(journal_consumer.AT_ONCE)]
    prefect.malformed = dict.fromkeys(bad, refused(status, "invalid byte sequence"))
    for number, name in enumerate([*bad, "fine"]):
        await bench.submitted(f"t{number}", submission=name)
    await drain(bench, prefect)
    assert [run["idempotency_key"] for run in prefect.created] == ["fine"]
    assert {(await bench.record(f"t{n}")).error for n in range(len(bad))} == {f"could not be started: answer {status}"}


async def test_errors_of_a_server_that_is_ready_fail_nothing_soon_while_nothing_else_succeeds(prefect):
    bench = BridgeBench()
    await bench.submitted()
    prefect.errors = [refused(503) for _ in range(3 * journal_consumer.MOST_FAILURES)]
    await drain(bench, prefect)
    assert len(prefect.created) == 1


async def test_a_cancellation_waits_for_its_submission_and_not_for_others(prefect):
    bench = BridgeBench(workflow_run("RUNNING", run="root-2", submission="s2"))
    await bench.submitted("t1")
    await bench.submitted("t2", submission="s2")
    await bench.stores.tasks.dispatched("s2", "root-2")
    prefect.errors = [KeyError("malformed")] * 3
    await bench.stores.tasks.request_cancel("s1", "t1")
    await bench.stores.tasks.request_cancel("s2")
    await drain(bench, prefect)
    assert [run["idempotency_key"] for run in prefect.created] == ["s1"], "it was made, and ended after that"
    assert prefect.states == [("root-2", "CANCELLING")]
    assert (await bench.record("t1")).status == "CANCELLED"


async def test_a_cancellation_that_always_fails_is_noted_in_the_record_of_the_running_task(prefect):
    bench = BridgeBench(workflow_run(), view("RUNNING"))
    await bench.submitted()
    await bench.stores.tasks.dispatched("s1", "root-1")
    for event in started():
        await bench.projector.apply(event)
    await bench.stores.tasks.request_cancel("s1", "t1")
    prefect.malformed = {"/flow_runs/run-t1/set_state": refused(405)}
    await drain(bench, prefect)
    record = await bench.record()
    assert (record.status, record.error) == ("DISPATCHED", "could not be cancelled: answer 405; cancel it again")


async def test_no_more_is_read_than_can_be_held(prefect, monkeypatch):
    bench = BridgeBench()
    for number in range(20):
        await bench.submitted(f"t{number}", submission=f"s{number}")
    consumer = dispatcher(bench, prefect, most_held=4, batch=2)
    most = 0
    enqueue = consumer._enqueue

    def noted(entries, tasks):
        nonlocal most
        enqueue(entries, tasks)
        most = max(most, len(consumer._held))

    monkeypatch.setattr(consumer, "_enqueue", noted)
    async with running(consumer.consume_journal()):
        await until(lambda: len(prefect.created) == 20)
    assert most <= 5


async def test_an_entry_that_comes_again_runs_nothing_twice(prefect):
    bench = BridgeBench()
    await bench.submitted()
    (entry,) = await bench.stores.journal.read("dead", count=1)
    consumer = dispatcher(bench, prefect)
    await consumer.dispatch([entry])
    await consumer.dispatch([entry])
    assert len(prefect.created) == 1
    prefect.created.clear()
    for event in started():  # known to have begun, even if nobody noted the run
        await bench.projector.apply(event)
    bench.stores.tasks._submissions["s1"] = replace(await bench.stores.tasks.submission("s1"), flow_run=None)
    await dispatcher(bench, prefect).dispatch([entry])
    assert prefect.created == []


async def test_what_prefect_refuses_for_good_fails(prefect):
    bench = BridgeBench()
    await bench.submitted()
    prefect.errors = [refused(422, "name too long")]
    await drain(bench, prefect)
    assert (await bench.record()).error == "Prefect refused its run: name too long"


async def test_a_submission_that_was_cancelled_first_gets_no_run(prefect):
    bench = BridgeBench()
    await bench.submitted()
    await bench.stores.tasks.request_cancel("s1")
    await drain(bench, prefect)
    assert prefect.created == []
    assert (await bench.record()).status == "CANCELLED"


async def test_a_running_submission_is_cancelled(prefect):
    bench = BridgeBench(workflow_run(), view("RUNNING"))
    await bench.submitted("t1", "t2")
    await bench.stores.tasks.dispatched("s1", "root-1")
    for event in started():
        await bench.projector.apply(event)
    await bench.stores.tasks.request_cancel("s1")
    await drain(bench, prefect)
    assert prefect.states == [("root-1", "CANCELLING")]
    assert [(await bench.record(t)).status for t in ("t1", "t2")] == ["DISPATCHED", "CANCELLED"]


async def test_one_task_is_cancelled(prefect):
    bench = BridgeBench(workflow_run(), view("RUNNING"), view("RUNNING", run="run-t2", task="t2"))
    await bench.submitted("t1", "t2")
    await bench.stores.tasks.dispatched("s1", "root-1")
    for event in started():
        await bench.projector.apply(event)
    await bench.stores.tasks.request_cancel("s1", "t1")
    await drain(bench, prefect)
    assert prefect.states == [("run-t1", "CANCELLING")]
    assert (await bench.record("t2")).status == "PENDING"
