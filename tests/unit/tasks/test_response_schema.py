"""`response_schema`: faults that engines would find after minutes, and slips that they accept."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mloc_prefect.tasks.response_schema import schema_fault

DRAFT_7 = "http://json-schema.org/draft-07/schema#"


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "sting"}
    for _ in range(levels):
        schema = {"properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("value", "place", "text"),
    [
        ({"type": "sting"}, ("type",), "'sting' is not valid"),
        ({"json_schema": {"type": "sting"}}, ("json_schema", "type"), "'sting' is not valid"),
        ('{"type": "sting"}', (), "'sting' is not valid"),
        ({"exclusiveMinimum": True}, ("exclusiveMinimum",), "True is not of type 'number'"),
        ({"$schema": 5, "type": "object"}, ("$schema",), "5 is not of type 'string' (at $.$schema)"),
        ({"schema": {"$schema": ["a"]}}, ("schema", "$schema"), "['a'] is not of type 'string'"),
        ({"title": 5, "properties": {"a": {"type": "sting"}}}, ("properties", "a", "type"), "'sting' is not valid"),
        ({"properties": {"title": 5}}, ("properties", "title"), "5 is not of type 'object'"),
        ({"properties": {"properties": {"title": 5}}, "required": 3}, ("required",), "3 is not of type 'array'"),
        ({"required": [1]}, ("required", 0), "1 is not of type 'string'"),
        (
            {"$schema": DRAFT_7, "items": {"title": 5, "type": "sting"}},
            ("items", "type"),
            "'sting' is not valid",
        ),
    ],
)
def test_faults_have_their_place(value: Any, place: tuple[str | int, ...], text: str) -> None:
    found = schema_fault(value)
    assert found is not None
    assert found[0] == place
    assert found[1].startswith(text)


@pytest.mark.parametrize(
    "schema",
    [
        {"title": 5},
        {"description": None},
        {"examples": "x"},
        {"deprecated": "yes"},
        {"$comment": 1, "readOnly": 1, "writeOnly": "no", "$id": 5, "default": None},
        {"required": ["a", "a"]},
        {"properties": {"a": {"type": "string", "required": True}}},
        {"properties": {"properties": {"title": 5}, "title": {"title": 5}}},
        {"$schema": DRAFT_7, "items": {"title": 5}},
        {"$schema": DRAFT_7, "items": [{"title": 5}, {"description": 5}]},
        {"$schema": "my own"},
    ],
)
def test_slips_that_engines_accept_pass(schema: dict[str, Any]) -> None:
    assert schema_fault(schema) is None
    assert schema_fault(json.dumps(schema)) is None


@pytest.mark.parametrize(
    "value",
    [{"$schema": "http://[::1", "type": "sting"}, "[" * 100_000, json.dumps(nested(300)), nested(300), nested(5000)],
    ids=["no-url", "brackets", "deep-text", "deep", "deeper"],
)
def test_what_cannot_be_judged_is_left_to_the_engine(value: Any) -> None:
    assert schema_fault(value) is None
