"""What a submitter may name: files below the roots, and code that the operator allows. Refused when it is submitted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.endpoint import YAML, served, spec

if TYPE_CHECKING:
    from pathlib import Path

PACKAGED = "templates/data/questions.jsonl"
TASKS = "/api/v1/tasks"


@pytest.fixture(autouse=True)
def working(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the service, with one file; a secret outside of it."""
    (tmp_path / "work" / "data").mkdir(parents=True)
    (tmp_path / "work" / "own.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.json").write_text("{}")
    (tmp_path / "work" / "link.json").symlink_to(tmp_path / "outside" / "secret.json")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def place(fields: str, value: Any) -> dict[str, Any]:
    """Return `value` under dotted names; `*` is the only item of a list."""
    for name in reversed(fields.split(".")):
        value = [value] if name == "*" else {name: value}
    return value


FIELDS = [
    "data.url",
    "data.dataset_name",
    "data.jsonl.path",
    "data.jsonl_path",
    "model.source.identifier",
    "model.adapters.*.path",
    "model.adapters.*.url",
    "model.vllm.tokenizer",
    "model.vllm.hf_config_path",
    "model.vllm.download_dir",
    "checkpoint.load.path",
    "checkpoint.load.uri",
    "training.resume_from_path",
    "training.deepspeed",
    "training.chat_template_path",
    "reward_model.identifier",
    "inference.chat_template",
    "embedding.model",
    "search.rerank.model",
    "qdrant.path",
    "documents.paths.*",
    "documents.dataset.url",
]
OUTSIDE = ("secret.json", "not-there.json")
SPELLINGS = [start + name for start in ("{}/", "file://{}/", "local://{}/", "/{}/") for name in OUTSIDE]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("field", FIELDS)
async def test_files_outside_are_refused_in_every_field(tmp_path, field, spelling):
    text = spelling.format(tmp_path / "outside")
    async with served(tmp_path / "home") as endpoint:
        answer = await endpoint.client.post(TASKS, content=spec(**place(field, text)), headers=YAML)
        assert answer.status_code == 400, answer.text
        (row,) = answer.json()["diagnostics"]
        assert (row["code"], row["path"]) == ("input-not-allowed", f"spec.{field.replace('.*', '[0]')}")
        assert "MLOC_DATA_ROOTS" in row["suggestion"]
        assert await endpoint.stores.tasks.list() == []


@pytest.mark.parametrize(
    "url",
    [
        "/etc/passwd",
        "file:///etc/passwd?x=.csv",
        "file:///etc/passwd#.json",
        "../../../../../../../../etc/passwd",
        "~/x.json",
        "/proc/self/environ",
        "/proc/self/root/etc/passwd",
        "link.json",
        "../home/valkey/password",
        "../home/results/.specs/x.yaml",
        "../home/results/t/attempts/1-1/job.json",
        "simplecache::file:///etc/passwd",
        "zip://localhost/etc/x",
        "git://127.0.0.1/x",
        "a\x00b",
    ],
)
async def test_spellings_of_files_of_the_host(tmp_path, url):
    async with served(tmp_path / "home") as endpoint:
        answer = await endpoint.client.post(TASKS, content=spec(data={"type": "dataset", "url": url}), headers=YAML)
        assert answer.status_code == 400, answer.text
        assert "input-not-allowed" in answer.text or "\x00" in url


@pytest.mark.parametrize("name", ["../..", "/etc", "a/../../b"])
async def test_a_config_stays_in_its_data_set(tmp_path, name):
    async with served(tmp_path / "home") as endpoint:
        text = spec(data={"type": "dataset", "url": "data", "name": name})
        answer = await endpoint.client.post(TASKS, content=text, headers=YAML)
        assert (answer.status_code, answer.json()["diagnostics"][0]["path"]) == (400, "spec.data.name")


OWN = ("own.jsonl", "./own.jsonl", "data", "org/name", "name", "https://host/x.json", "s3://b/x", PACKAGED)


@pytest.mark.parametrize("url", OWN)
async def test_own_files_names_and_urls_are_accepted(tmp_path, url):
    async with served(tmp_path / "home", allowed_hosts="host") as endpoint:
        assert (await endpoint.submit(spec(data={"type": "dataset", "url": url})))["count"] == 1


async def test_data_roots_results_and_mirrors_are_accepted(tmp_path):
    outside = str(tmp_path / "outside" / "secret.json")
    (tmp_path / "home" / "results" / "t1").mkdir(parents=True)
    (tmp_path / "home" / "results" / "t1" / "x.jsonl").write_text("{}")
    async with served(tmp_path / "home") as endpoint:
        await endpoint.submit(spec(data={"type": "dataset", "url": str(endpoint.results / "t1" / "x.jsonl")}))
    async with served(tmp_path / "home", data_roots=str(tmp_path / "outside")) as endpoint:
        await endpoint.submit(spec(data={"type": "dataset", "url": outside}))
    (tmp_path / "home" / "mirrors.yaml").write_text(f"datasets: {{{json.dumps(outside)}: /data/x.jsonl}}\n")
    async with served(tmp_path / "home") as endpoint:
        await endpoint.submit(spec(data={"type": "dataset", "url": outside}))


async def test_a_value_of_an_earlier_stage_is_left_for_later(tmp_path):
    async with served(tmp_path / "home") as endpoint:
        stages = [{"name": "a"}, {"name": "b", "spec": {"data": {"type": "dataset", "url": "${a.result.path}"}}}]
        assert (await endpoint.submit(spec(stages=stages)))["count"] == 2


async def test_the_position_of_each_refused_field_is_told(tmp_path):
    text = (
        "apiVersion: mloc/v1\nkind: EchoTask\nmetadata: {name: x}\nspec:\n  taskType: echo\n"
        "  resources: {replicas: 1, hardware: {cpu: '1', memory: 1Gi}}\n"
        "  model:\n    source:\n      identifier: /etc/model\n      trust_remote_code: true\n"
    )
    async with served(tmp_path / "home") as endpoint:
        answer = (await endpoint.client.post(TASKS, content=text, headers=YAML)).json()
        rows = [(row["line"], row["column"], row["code"]) for row in answer["diagnostics"]]
        assert rows == [(9, 19, "input-not-allowed"), (10, 26, "code-not-allowed")]
        assert "/etc/model" in answer["detail"]


MODEL = {"source": {"identifier": "org/model", "trust_remote_code": True}}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"model": MODEL}, "spec.model.source.trust_remote_code"),
        ({"model": {"transformers": {"trust_remote_code": "yes"}}}, "spec.model.transformers.trust_remote_code"),
        ({"model": {"vllm": {"trust_remote_code": True}}}, "spec.model.vllm.trust_remote_code"),
        ({"model": {"vllm": {"worker_cls": "a.B"}}}, "spec.model.vllm.worker_cls"),
        ({"model": {"vllm": {"hf_overrides": {"auto_map": {}}}}}, "spec.model.vllm.hf_overrides"),
        ({"data": {"url": "org/data", "trust_remote_code": True}}, "spec.data.trust_remote_code"),
        ({"reward_model": {"identifier": "m", "trust_remote_code": True}}, "spec.reward_model.trust_remote_code"),
    ],
)
async def test_code_of_others_is_refused_with_the_name_of_the_setting(tmp_path, fields, path):
    async with served(tmp_path / "home") as endpoint:
        answer = await endpoint.client.post(TASKS, content=spec(**fields), headers=YAML)
        assert answer.status_code == 400, answer.text
        (row,) = answer.json()["diagnostics"]
        assert (row["code"], row["path"]) == ("code-not-allowed", path)
        assert "MLOC_ALLOW_REMOTE_CODE=" in row["suggestion"]
    async with served(tmp_path / "home", allow_remote_code="on") as endpoint:
        assert (await endpoint.submit(spec(**fields)))["count"] == 1


async def test_code_of_named_models_may_run(tmp_path):
    async with served(tmp_path / "home", allow_remote_code="org/model") as endpoint:
        await endpoint.submit(spec(model=MODEL))
        other = {"source": {**MODEL["source"], "identifier": "org/other"}}
        answer = await endpoint.client.post(TASKS, content=spec(model=other), headers=YAML)
        assert answer.status_code == 400


@pytest.mark.parametrize("path", ["/ignored/by/current-worker", "../out", "file:///var/out", "~/out", "a/../../out"])
async def test_an_output_outside_is_refused_before_anything_is_computed(tmp_path, path):
    text = spec(output={"destination": {"type": "local", "path": path}})
    async with served(tmp_path / "home") as endpoint:
        answer = await endpoint.client.post(TASKS, content=text, headers=YAML)
        assert answer.status_code == 400, answer.text
        (row,) = answer.json()["diagnostics"]
        assert (row["code"], row["path"]) == ("output-not-allowed", "spec.output.destination.path")
        assert "MLOC_ALLOW_OUTSIDE_RESULTS" in row["suggestion"]
    async with served(tmp_path / "open", allow_outside_results=True) as endpoint:
        answer = await endpoint.client.post(TASKS, content=text, headers=YAML)
        assert answer.status_code == 200, answer.text
