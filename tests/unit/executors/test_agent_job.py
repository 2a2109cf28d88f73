"""What a task of agents asks for: which finished steps still hold after a change, and how much it may do at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mloc_prefect.execution.protocol import ExecutionRequest
from mloc_prefect.executors.agent.agent_job import AgentJob

COLLECTION = {"qdrant": {"url": "http://127.0.0.1:6333", "collection": "papers"}}
FIELDS: dict[str, Any] = {
    "instructions": "Answer.",
    "tools": ["fetch", "search"],
    "hosts": ["a.invalid"],
    "mcp": {"shop": {"command": ["shop", "--old"], "env": {"SHOP": "main"}, "tools": ["price"]}},
    "collections": {"papers": COLLECTION},
    "limits": {"steps": 5},
}
LOADED = {"source": {"identifier": "tiny", "revision": "one"}}


def read(folder: Path, fields: dict[str, Any], model: dict[str, Any] | None = None, **agent: Any) -> AgentJob:
    folder.joinpath("default.yaml").write_text(json.dumps(fields))
    options = {"base_url": "http://127.0.0.1:9999/v1", "model": "m", **agent}
    spec: dict[str, Any] = {"taskType": "agent", "agent": options, "data": {"type": "list", "items": ["x", "y"]}}
    settings = {"home": str(folder), "base_dir": str(folder), "loopback": True, "agents": {"folder": str(folder)}}
    if model is not None:
        spec["model"] = model
    return AgentJob.read(
        ExecutionRequest(
            task_id="t",
            name="t",
            task_type="agent",
            executor="",
            spec=spec,
            task_dir=str(folder),
            attempt_dir=str(folder),
            attempt=1,
            settings=settings,
        )
    )


CHANGES: dict[str, dict[str, Any]] = {
    "instructions": {"instructions": "Answer in French."},
    "hosts": {"hosts": ["b.invalid"]},
    "all hosts": {"hosts": None},
    "program of a server": {"mcp": {"shop": {**FIELDS["mcp"]["shop"], "command": ["shop", "--new"]}}},
    "variable of a server": {"mcp": {"shop": {**FIELDS["mcp"]["shop"], "env": {"SHOP": "other"}}}},
    "tools of a server": {"mcp": {"shop": {**FIELDS["mcp"]["shop"], "tools": ["price", "order"]}}},
    "server at a URL": {"mcp": {"shop": {"url": "http://shop.invalid/mcp"}}},
    "collection": {"collections": {"papers": {"qdrant": {**COLLECTION["qdrant"], "collection": "others"}}}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_rows_of_another_configuration_are_not_reused(tmp_path: Path, change: str) -> None:
    before = read(tmp_path, FIELDS).keys
    assert read(tmp_path, FIELDS).keys == before
    assert not set(before) & set(read(tmp_path, {**FIELDS, **CHANGES[change]}).keys)


def test_rows_of_another_endpoint_or_revision_are_not_reused(tmp_path: Path) -> None:
    assert read(tmp_path, FIELDS).keys != read(tmp_path, FIELDS, base_url="http://127.0.0.1:9998/v1").keys
    other = {"source": {**LOADED["source"], "revision": "two"}}
    assert read(tmp_path, FIELDS, LOADED).keys != read(tmp_path, FIELDS, other).keys


def test_rows_are_reused_with_other_limits(tmp_path: Path) -> None:
    assert read(tmp_path, {**FIELDS, "limits": {"steps": 9}}, timeout=90).keys == read(tmp_path, FIELDS).keys


def test_items_at_once_have_a_ceiling(tmp_path: Path) -> None:
    job = read(tmp_path, FIELDS, concurrency=1_000_000)
    assert job.concurrency == 32
    assert job.notes == ("spec.agent.concurrency: 1000000 is more than a task can have; it stays at 32",)
    assert read(tmp_path, FIELDS, concurrency=7).concurrency == 7
    assert read(tmp_path, FIELDS, LOADED, concurrency=7).concurrency == 1
