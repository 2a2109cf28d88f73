"""The JSON Schema that editors get agrees with what the loader says."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import yaml

from mloc_prefect.spec.loader import read_spec
from mloc_prefect.spec.spec_schema import json_schema
from mloc_prefect.tasks.registry import TASK_TYPES
from tests.support.mloc_specs import spec_files
from tests.unit.spec.test_loader import BASE, STAGES


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_it_is_json_and_knows_every_task_type() -> None:
    text = json.dumps(json_schema())
    for kind in TASK_TYPES:
        assert f'"const": "{kind.name}"' in text
        assert f'"{kind.model.__name__}"' in text


@pytest.mark.parametrize("file", spec_files())
def test_shared_specs_fit(file: Any, validator: Any) -> None:
    assert [e.message for e in validator.iter_errors(yaml.safe_load(file.read_text()))] == []


@pytest.mark.parametrize(
    "more, fits",
    [
        ("", True),
        (STAGES, True),
        ("  inference: {temperature: '0.5', max_tokens: '${a.result.n}', unknown: 1}\n", True),
        ("  inference: {temperature: hot}\n", False),
        ("  inference: {max_tokens: -5}\n", False),
        ("  enforce_cpu: maybe\n", False),
        ("  inference: {chat_template: '{{ messages }}', chat_template_kwargs: {a: 1}}\n", True),
        ("  inference: {chat_template: [1], add_generation_prompt: false}\n", False),
        ("  stages: [{name: a, spec: {taskType: lora_sft, lora: {r: 0}}}]\n", False),
        ("  stages: [{name: a, spec: {taskType: lora_sft, lora: {r: 8}, data: {prompts: [x]}}}]\n", True),
        ("  stages: [{name: a, dependsOn: b}]\n", False),
        ("  graph: {nodes: [hello]}\n", False),
    ],
)
def test_it_refuses_what_the_loader_refuses(more: str, fits: bool, validator: Any) -> None:
    text = BASE + more
    assert validator.is_valid(yaml.safe_load(text)) is fits
    assert any(d.severity == "error" for d in read_spec(text)[1]) is not fits


@pytest.mark.parametrize("field", ["apiVersion", "kind", "metadata", "taskType", "replicas", "cpu"])
def test_it_requires_the_base_fields(field: str, validator: Any) -> None:
    assert not validator.is_valid(yaml.safe_load(BASE.replace(field, "other")))
