"""Records: list, pages, filters, cancel, masking; workers and cleanup. [protocol 1.2, 2.1]"""

from __future__ import annotations

import json
from dataclasses import replace

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from mloc_prefect.errors import MlocError
from mloc_prefect.store.interfaces import TASK_EVENTS, WORKER_EVENTS
from mloc_prefect.store.records import ORIGINAL_KEYS
from mloc_prefect.store.states import Phase, StatusMark
from tests.support.endpoint import HARDWARE, add_worker, served, spec

TASKS = "/api/v1/tasks"
DATA = {"type": "list", "items": ["hello"]}
CHAIN = spec("pipe", stages=[{"name": "a"}, {"name": "b"}, {"name": "c"}])


async def test_a_record_has_the_keys_of_the_original_in_their_order(tmp_path):
    async with served(tmp_path) as endpoint:
        task_id = await endpoint.one()
        record = (await endpoint.client.get(f"{TASKS}/{task_id}")).json()
        assert tuple(record)[: len(ORIGINAL_KEYS)] == ORIGINAL_KEYS
        assert record | {"task_id": task_id, "status": "WAITING", "retries": 0, "max_retries": 3} == record
        assert (record["attempts"], record["max_attempts"], record["task_type"]) == (0, 4, "echo")
        assert record["graph_node_name"] is None
        lost = await endpoint.client.get(f"{TASKS}/nobody")
        assert (lost.status_code, lost.json()) == (404, {"detail": "task not found"})


@pytest.mark.parametrize("task_id", ["%00", "a%00b", "%F0%9F%98%80", "%ff", "x" * 3000, "%20"])
async def test_odd_ids_are_not_found(tmp_path, task_id):
    async with served(tmp_path) as endpoint:
        assert (await endpoint.client.get(f"{TASKS}/{task_id}")).status_code == 404
        assert (await endpoint.client.post(f"{TASKS}/{task_id}/cancel")).status_code == 404


async def test_secrets_are_shown_nowhere(tmp_path):
    headers = {"Authorization": "Bearer top-secret-token", "X-Key": "other-secret"}
    text = spec(output={"destination": {"type": "http", "url": "http://u:hidden-pw@lab/x", "headers": headers}})
    async with served(tmp_path, allowed_hosts="lab") as endpoint:
        task_id = await endpoint.one(text)
        answers = [
            await endpoint.client.get(f"{TASKS}/{task_id}"),
            await endpoint.client.get(TASKS),
            await endpoint.client.get(TASKS, params={"limit": 1}),
            await endpoint.client.post(f"{TASKS}/validate", content=text, headers={"content-type": "text/yaml"}),
        ]
        for answer in answers:
            assert answer.status_code == 200
            assert "Bearer ***" in answer.text
            for secret in ("top-secret-token", "other-secret", "hidden-pw"):
                assert secret not in answer.text
        submission_id = answers[0].json()["submission_id"]
        stored = await endpoint.stores.tasks.submission(submission_id)
        assert stored is not None
        assert "top-secret-token" in stored.raw_yaml, "the run itself needs it"


async def test_lists_have_outlines_and_the_id_leads_to_the_whole(tmp_path):
    text = spec("large", data={"type": "list", "items": ["x" * 100_000]})
    async with served(tmp_path) as endpoint:
        task_id = await endpoint.one(text)
        for params in ({}, {"limit": 5}):
            answer = await endpoint.client.get(TASKS, params=params)
            (entry,) = answer.json()
            assert len(answer.content) < 5000
            assert (entry["raw_yaml"], entry["parsed"]["metadata"]) == (None, {"name": "large"})
        whole = (await endpoint.client.get(f"{TASKS}/{task_id}")).json()
        assert (whole["raw_yaml"], whole["parsed"]) == (text, json.loads(text))
        assert list(whole) == list(entry)


async def test_the_list_is_whole_and_in_order(tmp_path):
    async with served(tmp_path) as endpoint:
        ids = [task["task_id"] for _ in range(70) for task in (await endpoint.submit(CHAIN))["tasks"]]
        answer = await endpoint.client.get(TASKS)
        assert answer.headers["content-type"] == "application/json"
        assert [record["task_id"] for record in answer.json()] == ids, "210 records are more than one page"


async def test_pages_lead_to_each_other(tmp_path):
    async with served(tmp_path) as endpoint:
        ids = [await endpoint.one() for _ in range(5)]
        for newest_first, wanted in ((False, ids), (True, ids[::-1])):
            seen: list[str] = []
            url: httpx.URL | None = httpx.URL(TASKS, params={"limit": 2, "newest_first": newest_first})
            while url is not None:
                answer = await endpoint.client.get(url)
                assert len(answer.json()) <= 2
                seen += [record["task_id"] for record in answer.json()]
                url = httpx.URL(answer.links["next"]["url"]) if "next" in answer.links else None
            assert seen == wanted


async def test_filters(tmp_path):
    async with served(tmp_path) as endpoint:
        chain = await endpoint.submit(CHAIN)
        first, *_ = (task["task_id"] for task in chain["tasks"])
        other = await endpoint.one(
            spec("other", taskType="inference", model={"source": {"identifier": "m"}}, data=DATA)
        )

        async def ids(**query) -> list[str]:
            return [record["task_id"] for record in (await endpoint.client.get(TASKS, params=query)).json()]

        assert await ids(task_type="inference") == [other]
        assert len(await ids(submission_id=chain["submission_id"])) == 3
        assert await ids(name="other") == [other]
        assert len(await ids(name="pipe")) == 3
        assert await ids(status="WAITING") == [first, other]
        assert await ids(status="WAITING", task_type="echo") == [first]
        assert await ids(after=other) == []
        assert await ids(after="nobody") == []


@pytest.mark.parametrize("query", ["status=nope", "limit=0", "limit=1001", "limit=x", "newest_first=maybe"])
async def test_bad_filters_are_422(tmp_path, query):
    async with served(tmp_path) as endpoint:
        answer = await endpoint.client.get(f"{TASKS}?{query}")
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == ["query", query.partition("=")[0]]


async def test_cancelling_what_has_not_started_takes_its_dependants_along(tmp_path):
    async with served(tmp_path) as endpoint:
        chain = await endpoint.submit(CHAIN)
        first, second, third = (task["task_id"] for task in chain["tasks"])
        answer = await endpoint.client.post(f"{TASKS}/{second}/cancel")
        assert answer.json() == {
            "ok": True,
            "submission_id": chain["submission_id"],
            "cancelled": [second, third],
            "stopping": [],
        }
        records = {record["task_id"]: record for record in (await endpoint.client.get(TASKS)).json()}
        assert [records[task_id]["status"] for task_id in (first, second, third)] == [
            "WAITING",
            "CANCELLED",
            "CANCELLED",
        ]
        assert records[second]["error"] == "cancelled"
        entries = await endpoint.stores.journal.read("test")
        assert [(entry.kind, entry.task_id) for entry in entries] == [("submit", None), ("cancel", second)]
        events = [message for channel, message in endpoint.stores.publisher.sent if channel == TASK_EVENTS]  # type: ignore[attr-defined]
        assert [(e["type"], e["task_id"], e["error"]) for e in events] == [
            ("TASK_FAILED", second, "cancelled"),
            ("TASK_FAILED", third, "cancelled"),
        ]
        again = await endpoint.client.post(f"{TASKS}/{second}/cancel")
        assert (again.status_code, again.json()["cancelled"]) == (200, [])


async def test_a_task_whose_result_is_stored_is_not_called_cancelled(tmp_path):
    """Its stage has committed; the event that makes the record DONE is under way."""
    async with served(tmp_path) as endpoint:
        chain = await endpoint.submit(CHAIN)
        first, second, third = (task["task_id"] for task in chain["tasks"])
        (endpoint.results / first).mkdir(parents=True)
        (endpoint.results / first / "manifest.json").write_text("{}")
        body = (await endpoint.client.post(f"{TASKS}/{first}/cancel", params={"submission": True})).json()
        assert (body["cancelled"], body["stopping"]) == ([second, third], [first])


async def test_what_runs_is_told_to_stop(tmp_path):
    async with served(tmp_path) as endpoint:
        chain = await endpoint.submit(CHAIN)
        first, second, third = (task["task_id"] for task in chain["tasks"])
        await endpoint.stores.tasks.transition(first, StatusMark(1, Phase.STARTED))
        one = (await endpoint.client.post(f"{TASKS}/{first}/cancel")).json()
        assert (one["cancelled"], one["stopping"]) == ([], [first])
        every = (await endpoint.client.post(f"{TASKS}/{first}/cancel", params={"submission": True})).json()
        assert (every["cancelled"], every["stopping"]) == ([second, third], [first])
        entries = await endpoint.stores.journal.read("test")
        assert [(entry.kind, entry.task_id) for entry in entries][1:] == [("cancel", first), ("cancel", None)]


@pytest.mark.parametrize("phase", [Phase.DONE, Phase.FAILED])
async def test_what_has_ended_cannot_be_cancelled(tmp_path, phase):
    async with served(tmp_path) as endpoint:
        task_id = await endpoint.one()
        await endpoint.stores.tasks.transition(task_id, StatusMark(1, phase))
        for query in ({}, {"submission": True}):
            answer = await endpoint.client.post(f"{TASKS}/{task_id}/cancel", params=query)
            assert (answer.status_code, "ended" in answer.json()["detail"]) == (409, True)
        assert await endpoint.stores.journal.depth() == 1


async def test_a_part_of_a_divided_task_ends_only_with_the_whole(tmp_path):
    async with served(tmp_path) as endpoint:
        whole = await endpoint.one()
        parent = await endpoint.stores.tasks.get(whole)
        assert parent is not None
        part = replace(parent, task_id="part-1", parent_task_id=whole, shard_index=0, shard_total=2)
        await endpoint.stores.tasks.create([part])
        for task_id in (whole, "part-1"):
            await endpoint.stores.tasks.transition(task_id, StatusMark(1, Phase.STARTED))
        answer = await endpoint.client.post(f"{TASKS}/part-1/cancel")
        told = f"the task is a shard of {whole}, which can be cancelled only as a whole"
        assert (answer.status_code, answer.json()["detail"]) == (409, told)
        assert await endpoint.stores.journal.depth() == 1, "nobody was asked to end anything"
        answer = await endpoint.client.post(f"{TASKS}/{whole}/cancel")
        assert (answer.status_code, answer.json()["stopping"]) == (200, [whole])


async def test_workers(tmp_path):
    async with served(tmp_path) as endpoint:
        await add_worker(endpoint.stores, "w-a", pid=4242, tags=("cpu", "lab"))
        (listed,) = (await endpoint.client.get("/workers")).json()
        shown = (await endpoint.client.get("/workers/w-a")).json()
        assert shown == listed
        assert list(shown)[:9] == [
            "worker_id",
            "status",
            "started_at",
            "pid",
            "env",
            "hardware",
            "tags",
            "last_seen",
            "stale",
        ]
        assert (shown["hardware"], shown["tags"], shown["stale"]) == (HARDWARE, ["cpu", "lab"], False)
        assert (shown["cached_models"], shown["elastic_disabled"]) == ([], False)
        lost = await endpoint.client.get("/workers/nobody")
        assert (lost.status_code, lost.json()) == (404, {"detail": "worker not found"})


async def test_cleanup_removes_the_stale_and_tells_of_it(tmp_path):
    async with served(tmp_path) as endpoint:
        await add_worker(endpoint.stores, "w-new")
        await add_worker(endpoint.stores, "w-old")
        endpoint.stores.workers._workers["w-old"] = (  # type: ignore[attr-defined]
            endpoint.stores.workers._workers["w-old"][0],  # type: ignore[attr-defined]
            0.0,
        )
        for removed in (1, 0):
            answer = await endpoint.client.post("/admin/cleanup")
            assert (answer.status_code, answer.json()) == (200, {"ok": True, "removed": removed})
        assert [worker["worker_id"] for worker in (await endpoint.client.get("/workers")).json()] == ["w-new"]
        sent = [message for channel, message in endpoint.stores.publisher.sent if channel == WORKER_EVENTS]  # type: ignore[attr-defined]
        assert [(message["type"], message["worker_id"], "ts" in message) for message in sent] == [
            ("UNREGISTER", "w-old", True)
        ]


async def test_elastic(tmp_path):
    async with served(tmp_path) as endpoint:
        await add_worker(endpoint.stores, "w-a")
        for enabled in (False, True):
            answer = await endpoint.client.post("/workers/w-a/elastic", json={"enabled": enabled})
            assert answer.json() == {"worker_id": "w-a", "enabled": enabled, "elastic_disabled": not enabled}
            assert (await endpoint.client.get("/workers/w-a")).json()["elastic_disabled"] is not enabled
        await endpoint.client.post("/workers/w-a/elastic", json={"enabled": False})
        assert (await endpoint.submit())["tasks"][0]["status"] == "WAITING", "it gets no new work"
        lost = await endpoint.client.post("/workers/nobody/elastic", json={"enabled": True})
        assert (lost.status_code, lost.json()) == (404, {"detail": "worker not found"})
        for bad in (b"", b"{}", b'{"enabled": "no"}', b"[1]", b"5"):
            answer = await endpoint.client.post(
                "/workers/w-a/elastic", content=bad, headers={"content-type": "application/json"}
            )
            assert answer.status_code == 422, bad


async def test_metrics_as_json_and_as_text(tmp_path):
    async with served(tmp_path) as endpoint:
        await add_worker(endpoint.stores, "w-a", started_at="2026-01-01T00:00:00+00:00", cost_per_hour=2.0)
        task_id = await endpoint.one()
        await endpoint.client.post("/api/v1/results", json={"task_id": task_id, "result": {}})
        found = (await endpoint.client.get("/metrics")).json()
        assert (found["counters"]["tasks_submitted"], found["counters"]["tasks_succeeded"]) == (1, 1)
        assert (found["completed_tasks"], found["active_workers_count"]) == ([task_id], 1)
        assert set(found["task_timings"]) == {"overall", "inference", "training", "other"}
        overall = found["task_timings"]["overall"]
        assert (overall["total_count"], overall["execution_count"], overall["execution_avg_sec"]) == (1, 0, None)
        assert found["workers"]["totals"]["accrued_cost_usd"] > 0
        text = await endpoint.client.get("/metrics", headers={"accept": "text/plain"})
        assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
        families = {family.name for family in text_string_to_metric_families(text.text)}
        assert families >= {"mloc_tasks", "mloc_active_workers", "mloc_task_total_seconds", "mloc_http_answers"}
        assert families >= {f"mloc_{name}" for name in found["counters"]}
        assert "mloc_tasks_succeeded_total 1.0" in text.text
        assert 'mloc_tasks{status="DONE"} 1.0' in text.text
        assert 'mloc_http_answers_total{method="POST",route="/api/v1/tasks",status="200"} 1.0' in text.text


async def test_an_error_of_ours_has_the_status_of_its_class(tmp_path):
    class Odd(MlocError):
        http_status = 418

    async with served(tmp_path) as endpoint:

        @endpoint.app.get("/odd")
        async def odd() -> None:
            raise Odd("short and stout", hint="tip me over")

        answer = await endpoint.client.get("/odd")
        assert (answer.status_code, answer.json()) == (418, {"detail": "short and stout; tip me over"})
