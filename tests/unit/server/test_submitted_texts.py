"""Bodies of submissions: content types, broken texts, and the errors of each. [protocol 1.3]"""

from __future__ import annotations

import json

import pytest

from tests.support.endpoint import SPEC, YAML, hardware, served, spec

JSON = {"content-type": "application/json"}
TASKS = "/api/v1/tasks"


def document(**changes):
    base = json.loads(spec())
    return {**base, **changes}


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


@pytest.mark.parametrize(
    ("kind", "text", "problem"),
    [
        (
            "application/x-www-form-urlencoded",
            "apiVersion: mloc/v1kind: EchoTaskmetadata:  name: a",
            "lost its line breaks",
        ),
        ("multipart/form-data; boundary=x", "--x\r\n\r\napiVersion: mloc/v1\r\n--x--", "is a form"),
    ],
)
async def test_what_curl_makes_of_a_spec_names_the_option_that_sends_it(tmp_path, kind, text, problem):
    async with served(tmp_path) as endpoint:
        answer = await endpoint.client.post("/api/v1/tasks", content=text, headers={"content-type": kind})
        assert answer.status_code == 400
        assert problem in answer.json()["detail"]
        assert "--data-binary @FILE" in answer.json()["detail"]
