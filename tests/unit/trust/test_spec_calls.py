"""The list of fields that make a worker call another host: complete, and found where they stand."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mloc_prefect.tasks.keys import table_of
from mloc_prefect.tasks.registry import TASK_TYPES
from mloc_prefect.tasks.training.training_table import KINDS, REPLACED_FIELDS, cells, config_fields, passed_on
from mloc_prefect.trust.spec_calls import CALLED, CALLED_BLOCKS, CALLED_HOSTS, calls_of
from mloc_prefect.trust.spec_inputs import _FIELDS
from tests.support.field_paths import field_paths

CALLS_SOMETHING = re.compile(
    r"url|uri|host|server|endpoint|address|proxy|proxies|(^|_)port$|hub|report_to|tracker|trackio|wandb|webhook|space_id|broker",
    re.IGNORECASE,
)
CALLS_NOTHING = {
    "embedding.server_side": "a flag: the server at `qdrant.url` embeds",
    "output.destination.url": "judged as the destination that it is",
    "training.tracker_project_name": "not read: TensorBoard files know no project",
}


@pytest.mark.parametrize("kind", TASK_TYPES, ids=lambda kind: kind.name)
def test_every_field_that_could_call_a_host_is_listed_or_explained(kind: Any) -> None:
    listed = {name.replace("*.", "") for name in _FIELDS} | {*CALLED, *CALLED_HOSTS} | CALLS_NOTHING.keys()
    replaced = {f"training.{name}" for name in REPLACED_FIELDS}
    named = {path for path in field_paths(table_of(kind.model)) if CALLS_SOMETHING.search(path.rpartition(".")[2])}
    below = {path for path in named if path.startswith(tuple(f"{block}." for block in CALLED_BLOCKS))}
    assert named - listed - replaced - below == set()


@pytest.mark.parametrize("kind", KINDS)
def test_no_argument_of_trl_that_could_call_a_host_is_passed_on(kind: Any) -> None:
    named = {name for name in config_fields(kind) if CALLS_SOMETHING.search(name)}
    assert named  # the expression finds them: `push_to_hub`, `report_to`, `vllm_server_base_url`, ...
    passed = {*passed_on(kind), *(cell.name for cell in cells(kind).values() if cell.way == "config")}
    assert named & passed == set()


def found(spec: dict[str, Any]) -> dict[str, str]:
    return {".".join(map(str, call.path)): call.text for call in calls_of(spec)}


@pytest.mark.parametrize(
    ("spec", "called"),
    [
        ({"data": {"url": " https://h/x.json "}}, {"data.url": "https://h/x.json"}),
        ({"model": {"adapters": [{"url": "http://h/a.zip"}]}}, {"model.adapters.0.url": "http://h/a.zip"}),
        ({"model": {"source": {"identifier": "sftp://h/m"}}}, {"model.source.identifier": "sftp://h/m"}),
        ({"checkpoint": {"load": {"baseUrl": "http://h"}}}, {"checkpoint.load.baseUrl": "http://h"}),
        ({"checkpoint": {"load": {"uri": "http://h/c"}}}, {"checkpoint.load.uri": "http://h/c"}),
        ({"output": {"destination": {"type": "HTTP", "url": "http://h"}}}, {"output.destination.url": "http://h"}),
        ({"output": {"destination": {"path": "sftp://h/r"}}}, {"output.destination.path": "sftp://h/r"}),
        ({"qdrant": {"url": "http://h:6333"}}, {"qdrant.url": "http://h:6333"}),
        ({"training": {"vllm_server_base_url": "http://h"}}, {"training.vllm_server_base_url": "http://h"}),
        ({"training": {"vllm_server_host": "10.0.0.1"}}, {"training.vllm_server_host": "http://10.0.0.1"}),
        (
            {"training": {"deepspeed": {"offload": {"at": "http://h/x"}}}},
            {"training.deepspeed.offload.at": "http://h/x"},
        ),
        ({"agent": {"tools": [{"server": "http://h/mcp"}]}}, {"agent.tools.0.server": "http://h/mcp"}),
        ({"agent": {"prompt": "look at http://h/x and say what it is"}}, {}),
        ({"data": {"url": "file:///x"}, "output": {"destination": {"path": "runs/x"}}}, {}),
        ({"data": {"items": ["http://h"]}, "qdrant": "x", "agent": 5}, {}),
    ],
)
def test_calls_are_found_where_they_stand(spec: dict[str, Any], called: dict[str, str]) -> None:
    assert found(spec) == called


def test_blocks_of_any_form_are_those_of_the_specs() -> None:
    paths = {path for kind in TASK_TYPES for path in field_paths(table_of(kind.model))}
    assert set(CALLED_BLOCKS) <= paths
