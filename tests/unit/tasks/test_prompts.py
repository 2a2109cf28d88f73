"""What a spec says of prompts, exports and adapters without effect, or in vain: told when it is checked."""

from __future__ import annotations

from typing import Any

import pytest

from mloc_prefect.tasks.checks import check_spec
from mloc_prefect.tasks.inference import InferenceSpec
from mloc_prefect.tasks.postprocess.export_rules import WANTED

LIST = {"type": "list", "items": ["a"]}
TABLE = {"type": "dataset", "url": "rows.jsonl"}
COLUMNS = [{"expr": "a.result.x"}, {"expr": "a.result.y"}]


def found(spec: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (p.severity, ".".join(map(str, p.path)), p.message)
        for p in check_spec(InferenceSpec, {"data": LIST, **spec}).problems
    ]


@pytest.mark.parametrize(
    ("spec", "path", "text"),
    [
        (
            {"data": {"type": "graph_template", "template": {"text": "{col0_value}", "columns": COLUMNS}}},
            "data.template.text",
            "text is not read: the template two_column_briefing has a text of its own",
        ),
        ({"data": {**TABLE, "metadata_columns": ["id", "prompt"]}}, "data.metadata_columns.1", "metadata 'prompt' is"),
        (
            {"data": {**TABLE, "metadata_columns": ["id"], "metadata_include_all": True}},
            "data.metadata_columns",
            "metadata_columns is not read",
        ),
        ({"inference": {"stop": ["END", ""]}}, "inference.stop", "stop holds an empty text"),
        ({"inference": {"stop": ""}}, "inference.stop", "stop holds an empty text"),
        ({"model": {"adapters": [{"path": "a", "apply": "never"}]}}, "model.adapters.0.apply", "apply 'never' is not"),
    ],
)
def test_what_has_no_effect_is_a_warning(spec: dict[str, Any], path: str, text: str) -> None:
    ((severity, where, message),) = found(spec)
    assert (severity, where) == ("warning", path)
    assert message.startswith(text)


@pytest.mark.parametrize(
    ("export", "path", "message"),
    [
        ({"fields": {"a": "promt"}}, "fields.a", f"a {WANTED}"),
        ({"fields": {"a": "metadata"}}, "fields.a", f"a {WANTED}"),
        ({"fields": {"a": {"value": "x"}}}, "fields.a", f"a {WANTED}"),
        ({"fields": {"a": 3}}, "fields.a", f"a {WANTED}"),
        ({"fields": {"a": {"from": "output", "fallback": {"from": "x"}}}}, "fields.a.fallback", f"a {WANTED}"),
        (
            {"required_fields": ["zz"]},
            "required_fields.0",
            "required_fields names 'zz', which the export does not write",
        ),
    ],
)
def test_fields_of_an_export_are_checked_before_anything_runs(export: dict[str, Any], path: str, message: str) -> None:
    prefix = "postprocess.jsonl_export."
    assert found({"postprocess": {"jsonl_export": export}}) == [("error", prefix + path, message)]


@pytest.mark.parametrize(
    "fields",
    [
        {"a": "prompt", "b": "metadata.x", "c": "item.index", "d": {"literal": None}, "e": {"from": "literal"}},
        {"a": "${first.result.field}", "b": {"from": "${first.result.field}", "fallback": "text"}},
        {"a": {"source": "metadata", "key": "x", "fallback": "item.index", "default": 1}},
    ],
)
def test_fields_that_mlocs_specs_have_pass(fields: dict[str, Any]) -> None:
    assert found({"postprocess": {"jsonl_export": {"fields": fields, "required_fields": ["a"]}}}) == []


@pytest.mark.parametrize(
    ("adapter", "path", "message"),
    [
        ({"type": "dora", "path": "a"}, "model.adapters.0.type", "Adapters of type 'dora' cannot be used"),
        ({"name": "mine"}, "model.adapters.0", "The adapter names no weights"),
    ],
)
def test_adapters_that_cannot_be_used(adapter: dict[str, Any], path: str, message: str) -> None:
    assert found({"model": {"adapters": [adapter]}}) == [("error", path, message)]
    assert found({"model": {"adapters": ["${train.result.final_lora_path}", {"task_id": "${train.task_id}"}]}}) == []
