"""Submissions: bodies, errors, answers, idempotency, dependencies. [protocol 1.3]"""

from __future__ import annotations

import asyncio
import json

import pytest

from mloc_prefect import __version__
from mloc_prefect.bridge.states import Mark, Phase
from mloc_prefect.orchestrate import preflight
from tests.support.endpoint import SPEC, YAML, add_worker, served, spec

JSON = {"content-type": "application/json"}
TASKS = "/api/v1/tasks"
FIVE = {"apiVersion": "mloc/v1", "kind": "EchoTask", "metadata": {"name": "x"}}


def document(**changes):
    base = json.loads(spec())
    return {**base, **changes}


def hardware(**fields) -> str:
    return spec(resources={"replicas": 1, "hardware": {"cpu": "2", "memory": "4Gi", **fields}})


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/yaml", SPEC),
        ("text/plain", SPEC),
        ("application/x-yaml", SPEC),
        ("application/x-www-form-urlencoded", SPEC),
        ("application/octet-stream", SPEC),
        ("text/yaml", spec()),
        ("text/yaml; charset=utf-8", "\ufeff" + SPEC),
        ("application/json", json.dumps({"yaml": SPEC})),
        ("application/json; charset=utf-8", json.dumps({"yaml": SPEC, "other": 1})),
        ("Application/Vnd.MLOC+JSON", json.dumps({"yaml": SPEC})),
        ("application/json", json.dumps(SPEC)),
        (None, json.dumps({"yaml": SPEC})),
    ],
)
async def test_bodies_that_are_taken(tmp_path, kind, body):
    async with served(tmp_path) as endpoint:
        headers = {"content-type": kind} if kind else {}
        answer = await endpoint.client.post(TASKS, content=body.encode(), headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.json()["count"] == 1


INVALID_JSON = {"type": "json_invalid", "loc": ["body", 1], "msg": "JSON decode error"}
MISSING_BODY = {"type": "missing", "loc": ["body"], "msg": "Field required", "input": None}


@pytest.mark.parametrize(
    ("kind", "body", "status", "detail"),
    [
        ("text/yaml", b"", 422, [MISSING_BODY]),
        ("application/json", b"", 422, [MISSING_BODY]),
        ("application/json", b"null", 422, [MISSING_BODY]),
        ("application/json", b'{"a": 1}', 400, 'Expected YAML string or {"yaml":"..."}'),
        (
            "application/json",
            b"[1]",
            422,
            [
                {"type": "string_type", "loc": ["body", "str"], "msg": "Input should be a valid string", "input": [1]},
                {
                    "type": "dict_type",
                    "loc": ["body", "dict[str,any]"],
                    "msg": "Input should be a valid dictionary",
                    "input": [1],
                },
            ],
        ),
        ("application/json", b'{"yaml": null}', 400, "Missing required field: apiVersion"),
        ("application/json", b'{"yaml": 5}', 400, "Missing required field: apiVersion"),
        ("text/yaml", json.dumps({"yaml": SPEC}).encode(), 400, "Missing required field: apiVersion"),
        ("text/yaml", b"  \n", 400, "Missing required field: apiVersion"),
        ("text/yaml", b"just text", 400, "Missing required field: apiVersion"),
        ("text/yaml", b"- 1\n- 2", 400, "Missing required field: apiVersion"),
    ],
)
async def test_bodies_that_are_refused(tmp_path, kind, body, status, detail):
    async with served(tmp_path) as endpoint:
        answer = await endpoint.client.post(TASKS, content=body, headers={"content-type": kind})
        assert (answer.status_code, answer.json()["detail"]) == (status, detail)


@pytest.mark.parametrize("kind", [None, "application/json"])
async def test_yaml_that_says_it_is_json(tmp_path, kind):
    async with served(tmp_path) as endpoint:
        headers = {"content-type": kind} if kind else {}
        answer = await endpoint.client.post(TASKS, content=SPEC, headers=headers)
        assert answer.status_code == 422
        entry = answer.json()["detail"][0]
        assert (entry["type"], entry["loc"], entry["msg"]) == ("json_invalid", ["body", 0], "JSON decode error")


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"\xff\xfe a: 1", 400, "UTF-16"),
        (b"a: \xe9", 400, "not UTF-8"),
        (SPEC.encode() + b"---\n" + SPEC.encode(), 400, "Invalid YAML: the text holds more than one document"),
        (b"a: [1", 400, "Invalid YAML: "),
        (b"a: !!python/object:os.system {}", 400, ""),
        (SPEC.encode() + b"\0", 400, "Invalid YAML: "),
        (b"[" * 5000, 400, ""),
        (b"a: &a [*a]", 400, ""),
        (b"x: " + b"y" * (1 << 20), 413, "at most"),
    ],
)
async def test_broken_texts_are_told_with_their_place(tmp_path, body, status, words):
    async with served(tmp_path) as endpoint:
        answer = await endpoint.client.post(TASKS, content=body, headers=YAML)
        assert answer.status_code == status
        assert words in answer.json()["detail"]


@pytest.mark.parametrize("body", [b'"\xff"', b"[" * 100_000, b"1" * 5000, b'"\\ud800"'])
async def test_json_that_cannot_be_read_is_the_clients_fault(tmp_path, body):
    async with served(tmp_path) as endpoint:
        answer = await endpoint.client.post(TASKS, content=body, headers=JSON)
        assert 400 <= answer.status_code < 500, answer.text


@pytest.mark.parametrize(
    ("gone", "detail"),
    [
        (("apiVersion",), "apiVersion"),
        (("kind",), "kind"),
        (("metadata",), "metadata.name"),
        (("metadata", "name"), "metadata.name"),
        (("spec",), "spec.taskType"),
        (("spec", "taskType"), "spec.taskType"),
        (("spec", "resources"), "spec.resources.replicas"),
        (("spec", "resources", "replicas"), "spec.resources.replicas"),
        (("spec", "resources", "hardware"), "spec.resources.hardware.cpu"),
        (("spec", "resources", "hardware", "cpu"), "spec.resources.hardware.cpu"),
        (("spec", "resources", "hardware", "memory"), "spec.resources.hardware.memory"),
    ],
)
async def test_the_first_missing_field_is_named_as_mloc_names_it(tmp_path, gone, detail):
    broken = document()
    here = broken
    for name in gone[:-1]:
        here = here[name]
    del here[gone[-1]]
    async with served(tmp_path) as endpoint:
        answer = await endpoint.client.post(TASKS, content=json.dumps(broken), headers=YAML)
        assert answer.status_code == 400
        assert answer.json()["detail"] == f"Missing required field: {detail}"


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        (hardware(gpu={"type": "any"}), "Missing spec.resources.hardware.gpu.count"),
        (hardware(gpu={"count": None, "type": "any"}), "Missing spec.resources.hardware.gpu.count"),
        (hardware(gpu={"count": 1}), "Missing spec.resources.hardware.gpu.type"),
        (hardware(gpu=1), "Missing spec.resources.hardware.gpu.count"),
        (spec(dependsOn="x"), "spec.dependsOn must be a list of task_ids"),
        (spec(stages=[{"dependsOn": "x"}]), "stage.dependsOn must be a list"),
        (spec(graph={"nodes": [{"name": "  "}]}), "Each graph node requires a non-empty name"),
        (spec(graph={"nodes": [{"name": "a"}, {"name": "a"}]}), "Duplicate graph node name 'a'"),
        (spec(graph={"nodes": [{"name": "a", "dependsOn": "b"}]}), "Node 'a' dependsOn must be a list"),
        (
            spec(graph={"nodes": [{"name": "a", "dependsOn": ["b"]}, {"name": "b", "dependsOn": ["a"]}]}),
            "Graph contains cycles or unresolved deps: a, b",
        ),
        (
            spec(graph={"nodes": [{"name": "a", "dependsOn": ["a"]}]}),
            "Graph contains cycles or unresolved deps: a",
        ),
    ],
)
async def test_texts_of_mloc(tmp_path, text, detail):
    async with served(tmp_path) as endpoint:
        answer = await endpoint.client.post(TASKS, content=text, headers=YAML)
        assert (answer.status_code, answer.json()["detail"]) == (400, detail)
        assert answer.json()["diagnostics"][0]["line"] == 1


@pytest.mark.parametrize("gpu", [{}, 0, None, {"count": 0, "type": "any"}])
async def test_no_gpu_in_four_spellings(tmp_path, gpu):
    async with served(tmp_path) as endpoint:
        assert (await endpoint.submit(hardware(gpu=gpu)))["count"] == 1


@pytest.mark.parametrize("entry", ["text", 5, ["a"], None])
@pytest.mark.parametrize("fields", [{"stages": [None]}, {"graph": {"nodes": [None]}}])
async def test_a_stage_that_is_no_mapping_is_400(tmp_path, entry, fields):
    given = {"stages": [entry]} if "stages" in fields else {"graph": {"nodes": [entry]}}
    async with served(tmp_path) as endpoint:
        answer = await endpoint.client.post(TASKS, content=spec(**given), headers=YAML)
        assert answer.status_code == 400
        assert "must be a mapping" in answer.json()["detail"]


async def test_a_fault_that_only_we_know_is_told_with_its_place(tmp_path):
    async with served(tmp_path) as endpoint:
        broken = SPEC + "  note: ${nobody.result.x}\n"
        answer = await endpoint.client.post(TASKS, content=broken, headers=YAML)
        assert answer.status_code == 400
        assert "reads from 'nobody', which is no stage of this workflow at line 7, column 9" in answer.json()["detail"]
        (row,) = answer.json()["diagnostics"]
        assert (row["code"], row["line"], row["column"], row["severity"]) == ("unknown-stage", 7, 9, "error")


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
        await endpoint.stores.tasks.transition(first, Mark(1, Phase.FAILED), {"error": "out of memory"})
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
        await endpoint.stores.tasks.transition(first.json()["tasks"][0]["task_id"], Mark(1, Phase.FAILED))
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
            assert (answer.status_code, answer.json()["detail"]) == (400, "parameters must be an object of texts")
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
        ("auto", "ours", NO_CODE + "a worker of the original protocol might, but none is registered"),
        (
            "ours",
            "original",
            NO_CODE + "MLOC_DISPATCH=ours keeps it from workers of the original protocol, which might",
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
