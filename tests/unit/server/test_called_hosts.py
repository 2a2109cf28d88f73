"""Whom a submitter may make a worker call: hosts that the operator allows. Refused when it is submitted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.endpoint import YAML, served, spec

if TYPE_CHECKING:
    from pathlib import Path

TASKS = "/api/v1/tasks"


def place(fields: str, value: Any) -> dict[str, Any]:
    """Return `value` under dotted names; `*` is the only item of a list."""
    for name in reversed(fields.split(".")):
        value = [value] if name == "*" else {name: value}
    return value


FIELDS = [
    "data.url",
    "data.dataset_name",
    "data.jsonl.path",
    "model.source.identifier",
    "model.adapters.*.path",
    "model.adapters.*.url",
    "model.vllm.tokenizer",
    "checkpoint.load.path",
    "checkpoint.load.uri",
    "checkpoint.load.url",
    "checkpoint.load.base_url",
    "checkpoint.load.baseUrl",
    "reward_model.identifier",
    "output.destination.path",
    "training.resume_from_path",
    "training.vllm_server_base_url",
    "training.deepspeed",
    "qdrant.url",
    "agent.tools.*.url",
    "model.config.server",
]


@pytest.mark.parametrize("field", FIELDS)
async def test_hosts_that_are_not_allowed_are_refused_in_every_field(tmp_path: Path, field: str) -> None:
    fields = place(field, "sftp://inner.example/x" if field == "output.destination.path" else "http://inner.example/x")
    if field.startswith("checkpoint.load."):
        fields["checkpoint"]["load"] |= {"type": "http", "task_id": "t"}
    text = spec(**fields)
    async with served(tmp_path / "home") as endpoint:
        answer = await endpoint.client.post(TASKS, content=text, headers=YAML)
        rows = [row for row in answer.json()["diagnostics"] if row["code"] == "host-not-allowed"]
        assert [row["path"] for row in rows] == [f"spec.{field.replace('.*', '[0]')}"]
        assert "MLOC_ALLOWED_HOSTS=inner.example" in rows[0]["suggestion"]
        assert await endpoint.stores.tasks.list() == []
    async with served(tmp_path / "home", allowed_hosts="inner.example") as endpoint:
        answer = await endpoint.client.post(TASKS, content=text, headers=YAML)
        assert "host-not-allowed" not in answer.text


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/x.json",
        "http://2130706433:8080/x.json",
        "http://127.1:8080/x.json",
        "http://[::ffff:127.0.0.1]:8080/x.json",
        "http://0.0.0.0:8080/x.json",
        "http://127.0.0.1:22/x.json",
        "http://127.0.0.1:8080@inner.example/x.json",
        "ftp://inner.example/x.json",
        "smb://inner.example/x.json",
    ],
)
async def test_spellings_of_other_hosts(tmp_path: Path, url: str) -> None:
    async with served(tmp_path / "home") as endpoint:
        answer = await endpoint.client.post(TASKS, content=spec(data={"type": "dataset", "url": url}), headers=YAML)
        assert answer.status_code == 400, answer.text
        assert "MLOC_ALLOWED_HOSTS" in answer.text or "MLOC_LOOPBACK_PORTS" in answer.text


async def test_a_destination_of_http_is_judged(tmp_path: Path) -> None:
    text = spec(output={"destination": {"type": "http", "url": "http://inner.example/x"}})
    async with served(tmp_path / "home") as endpoint:
        answer = await endpoint.client.post(TASKS, content=text, headers=YAML)
        (row,) = answer.json()["diagnostics"]
        assert (row["code"], row["path"]) == ("host-not-allowed", "spec.output.destination.url")


async def test_own_services_are_refused(tmp_path: Path) -> None:
    text = spec(data={"type": "dataset", "url": "http://127.0.0.1:6390/x.json"})
    async with served(tmp_path / "home", redis_url="redis://127.0.0.1:6390/0") as endpoint:
        answer = await endpoint.client.post(TASKS, content=text, headers=YAML)
        assert "is a service of MLOC itself" in answer.text


async def test_the_loopback_and_mirrors_are_accepted(tmp_path: Path) -> None:
    async with served(tmp_path / "home") as endpoint:
        await endpoint.submit(spec(data={"type": "dataset", "url": "http://127.0.0.1:8080/x.json"}))
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home" / "mirrors.yaml").write_text('datasets: {"https://inner.example/x.json": /data/x.jsonl}\n')
    async with served(tmp_path / "home") as endpoint:
        await endpoint.submit(spec(data={"type": "dataset", "url": "https://inner.example/x.json"}))
