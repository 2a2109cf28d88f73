"""Submissions that are accepted: answers, idempotency, dependencies, parameters. [protocol 1.3]"""

from __future__ import annotations

import asyncio
import json

import pytest

from mloc_prefect import __version__
from mloc_prefect.flow import preflight
from mloc_prefect.store.states import Phase, StatusMark
from tests.support.endpoint import SPEC, YAML, add_worker, hardware, served, spec

JSON = {"content-type": "application/json"}
TASKS = "/api/v1/tasks"


async def test_the_answer_has_the_keys_of_both_generations(tmp_path):
    async with served(tmp_path) as endpoint:
        await add_worker(endpoint.stores)
        answer = await endpoint.submit(spec(stages=[{"name": "a"}, {"name": "b"}]))
        first, second = answer["tasks"]
        assert list(first)[:7] == [
            "task_id",
            "status",
            "assigned_worker",
            "topic",
            "waiting_on",
            "retries",
            "max_retries",
        ]
        assert (answer["ok"], answer["count"], first["status"], first["waiting_on"]) == (True, 2, "PENDING", [])
        assert (second["status"], second["waiting_on"], second["depends_on"]) == (
            "PENDING",
            [first["task_id"]],
            [first["task_id"]],
        )
        assert (first["attempts"], first["max_attempts"], first["retries"], first["max_retries"]) == (0, 4, 0, 3)
        entries = await endpoint.stores.journal.read("test")
        assert [(entry.kind, entry.submission_id) for entry in entries] == [("submit", answer["submission_id"])]
        stored = await endpoint.stores.tasks.submission(answer["submission_id"])
        assert stored is not None
        assert stored.task_ids == (first["task_id"], second["task_id"])


async def test_the_stored_text_is_the_one_that_came(tmp_path):
    text = "# über\r\n" + SPEC + "\n\n"
    async with served(tmp_path) as endpoint:
        task_id = await endpoint.one(text)
        assert (await endpoint.client.get(f"{TASKS}/{task_id}")).json()["raw_yaml"] == text


@pytest.mark.parametrize(
    ("gpu", "workers", "words"),
    [
        (None, 0, "no live worker is registered"),
        ({"count": 1, "type": "a100"}, 1, "w-0: needs 1x a100, it has no gpu"),
        ({"count": 1, "type": "any"}, 5, "and 2 more"),
    ],
)
async def test_a_task_that_no_live_worker_fits_waits_with_the_reason(tmp_path, gpu, workers, words):
    async with served(tmp_path) as endpoint:
        for number in range(workers):
            await add_worker(endpoint.stores, f"w-{number}")
        task = (await endpoint.submit(hardware(gpu=gpu)))["tasks"][0]
        assert task["status"] == "WAITING"
        error = (await endpoint.client.get(f"{TASKS}/{task['task_id']}")).json()["error"]
        assert error.startswith("No suitable IDLE worker; retrying shortly (")
        assert words in error


async def test_a_task_that_fits_is_pending(tmp_path):
    async with served(tmp_path) as endpoint:
        await add_worker(endpoint.stores)
        assert (await endpoint.submit())["tasks"][0]["status"] == "PENDING"


@pytest.mark.parametrize(("tags", "status"), [(("Lab", "cpu"), "PENDING"), (("cpu",), "WAITING")])
async def test_tags_are_looked_for_among_those_of_the_workers(tmp_path, tags, status):
    async with served(tmp_path) as endpoint:
        await add_worker(endpoint.stores, tags=tags)
        resources = {"replicas": 1, "tags": ["lab"], "hardware": {"cpu": "2", "memory": "4Gi"}}
        task = (await endpoint.submit(spec(resources=resources)))["tasks"][0]
        assert task["status"] == status
        error = (await endpoint.client.get(f"{TASKS}/{task['task_id']}")).json()["error"]
        assert (error is None) == (status == "PENDING")


async def test_dependencies_on_other_submissions(tmp_path):
    unknown = "11111111-2222-4333-8444-555555555555"
    async with served(tmp_path) as endpoint:
        first = await endpoint.one()
        second = (await endpoint.submit(spec(dependsOn=[first, " "])))["tasks"][0]
        assert (second["status"], second["waiting_on"]) == ("PENDING", [first])
        for text in (spec(dependsOn=[first, unknown]), spec(graph={"nodes": [{"name": "a", "dependsOn": [unknown]}]})):
            answer = await endpoint.client.post(TASKS, content=text, headers=YAML)
            assert (answer.status_code, unknown in answer.json()["detail"]) == (400, True)
        typo = await endpoint.client.post(TASKS, content=spec(dependsOn=["nope"]), headers=YAML)
        assert (typo.status_code, "'nope'" in typo.json()["detail"]) == (400, True)
        await endpoint.stores.tasks.transition(first, StatusMark(1, Phase.FAILED), {"error": "out of memory"})
        failed = await endpoint.client.post(TASKS, content=spec(dependsOn=[first]), headers=YAML)
        assert (failed.status_code, failed.json()["detail"]) == (409, f"Dependency {first} failed: out of memory")
        assert len(await endpoint.stores.tasks.list()) == 2


async def test_the_same_key_gives_the_same_submission(tmp_path):
    headers = {**YAML, "Idempotency-Key": "abc"}
    async with served(tmp_path) as endpoint:
        first = await endpoint.client.post(TASKS, content=SPEC, headers=headers)
        again = await endpoint.client.post(TASKS, content=SPEC, headers=headers)
        assert first.json() == again.json()
        assert (first.headers.get("idempotent-replayed"), again.headers["idempotent-replayed"]) == (None, "true")
        other = await endpoint.client.post(TASKS, content=spec("other"), headers=headers)
        follower = spec("follower", dependsOn=[first.json()["tasks"][0]["task_id"]])
        mine = {**YAML, "Idempotency-Key": "follower"}
        followed = (await endpoint.client.post(TASKS, content=follower, headers=mine)).json()
        await endpoint.stores.tasks.transition(first.json()["tasks"][0]["task_id"], StatusMark(1, Phase.FAILED))
        late = await endpoint.client.post(TASKS, content=follower, headers=mine)
        assert late.json() == followed, "what it depends on has failed since, but it was accepted"
        assert (other.status_code, "'abc'" in other.json()["detail"]) == (409, True)
        assert len(await endpoint.stores.tasks.list()) == 2


@pytest.mark.parametrize("key", ["", "k" * 256, "tab\there", "ümlaut"])
async def test_bad_keys(tmp_path, key):
    async with served(tmp_path) as endpoint:
        answer = await endpoint.client.post(TASKS, content=SPEC, headers={**YAML, "Idempotency-Key": key.encode()})
        assert answer.status_code == 400
        assert "Idempotency-Key" in answer.json()["detail"]


async def test_many_clients_with_one_key_make_one_submission(tmp_path):
    headers = {**YAML, "Idempotency-Key": "abc"}
    async with served(tmp_path) as endpoint:
        posts = [endpoint.client.post(TASKS, content=SPEC, headers=headers) for _ in range(20)]
        answers = await asyncio.gather(*posts)
        assert len({answer.json()["submission_id"] for answer in answers}) == 1
        assert len(await endpoint.stores.tasks.list()) == 1


async def test_parameters(tmp_path):
    text = spec(note="${param.topic}")
    async with served(tmp_path) as endpoint:
        answer = await endpoint.client.post(TASKS, json={"yaml": text, "parameters": {"topic": "tides"}})
        assert answer.status_code == 200, answer.text
        stored = await endpoint.stores.tasks.submission(answer.json()["submission_id"])
        assert stored is not None
        assert stored.parameters == {"topic": "tides"}
        missing = await endpoint.client.post(TASKS, json={"yaml": text})
        assert missing.status_code == 400
        for bad in ("x", {"a": 1}, [1]):
            answer = await endpoint.client.post(TASKS, json={"yaml": text, "parameters": bad})
            assert (answer.status_code, answer.json()["detail"]) == (
                400,
                "parameters must be an object whose values are texts",
            )
        for name, half in ((r"topic", r"\ud800"), (r"\udc00", "x")):
            sent = f'{{"yaml": {json.dumps(text)}, "parameters": {{"topic": "", "{name}": "{half}"}}}}'
            answer = await endpoint.client.post(TASKS, content=sent, headers=JSON)
            assert (answer.status_code, "surrogate" in answer.json()["detail"]) == (400, True)
        assert len(await endpoint.stores.tasks.list()) == 1


async def test_warnings_are_told_and_strict_refuses_them(tmp_path):
    odd = SPEC + "  unheard_of: 1\n"
    async with served(tmp_path) as endpoint:
        answer = await endpoint.submit(odd)
        assert answer["warnings"][0].startswith("line 7, column 3: ")
        strict = await endpoint.client.post(TASKS, content=odd, headers=YAML, params={"strict": "true"})
        assert strict.status_code == 400


async def test_validate_tells_everything_and_stores_nothing(tmp_path):
    broken = SPEC.replace("apiVersion: mloc/v1\n", "") + "  note: ${nobody.result.x}\n"
    async with served(tmp_path) as endpoint:
        good = (await endpoint.client.post(f"{TASKS}/validate", content=SPEC, headers=YAML)).json()
        assert (good["ok"], good["errors"], good["plan"]["tasks"][0]["name"]) == (True, [], "hello")
        answer = await endpoint.client.post(f"{TASKS}/validate", content=broken, headers=YAML)
        bad = answer.json()
        assert (answer.status_code, bad["ok"], bad["plan"]) == (200, False, None)
        assert {(d["code"], d["line"], d["column"]) for d in bad["errors"]} >= {("missing-field", 1, 1)}
        assert len(bad["errors"]) == 2
        assert await endpoint.stores.tasks.list() == []
        empty = await endpoint.client.post(f"{TASKS}/validate", content=b"", headers=YAML)
        assert empty.status_code == 422


async def test_dates_are_text_in_the_record(tmp_path):
    async with served(tmp_path) as endpoint:
        task_id = await endpoint.one(SPEC + "  when: 2025-01-02\n")
        record = (await endpoint.client.get(f"{TASKS}/{task_id}")).json()
        assert record["parsed"]["spec"]["when"] == "2025-01-02"


RAG = """\
apiVersion: mloc/v1
kind: RagTask
metadata: {name: find}
spec:
  taskType: rag
  resources: {replicas: 1, hardware: {cpu: "2", memory: 4Gi}}
  qdrant: {url: "http://127.0.0.1:6333", collection: docs}
  query: what
"""
NO_CODE = f"stage 'find' (rag) cannot run: this version ({__version__}) plans such tasks but has no executor for them; "


@pytest.mark.parametrize(
    ("mode", "protocol", "detail"),
    [
        ("auto", "ours", NO_CODE + "an MLOC worker may support it, but none is registered"),
        (
            "ours",
            "original",
            NO_CODE + "MLOC workers may support it, but MLOC_DISPATCH=ours excludes them",
        ),
        ("auto", "original", None),
        ("original", "ours", None),
    ],
)
async def test_what_nobody_can_run_is_refused_and_what_an_original_worker_might_run_is_taken(
    tmp_path, monkeypatch, mode, protocol, detail
):
    monkeypatch.setattr(preflight, "_there", lambda name: name != "mloc_prefect.executors.rag")
    async with served(tmp_path, dispatch=mode) as endpoint:
        await add_worker(endpoint.stores, protocol=protocol)
        answer = await endpoint.client.post(TASKS, content=RAG, headers=YAML)
        assert (answer.status_code, answer.json().get("detail")) == (200 if detail is None else 400, detail)
        assert len(await endpoint.stores.tasks.page()) == (detail is None)
