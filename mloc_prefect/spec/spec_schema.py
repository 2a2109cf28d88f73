"""JSON Schema of a whole spec for editors, generated from the models of the task types."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

from mloc_prefect.tasks.common import CommonSpec
from mloc_prefect.tasks.registry import TASK_TYPES

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REF = "#/$defs/{model}"
_NAME = {"type": ["string", "number"], "description": "Name of the stage; part of ${name.result...} in later ones."}
_DEPENDS = {
    "type": ["array", "null"],
    "items": {"type": ["string", "number", "null"]},
    "description": "Names of stages of this spec, or task ids of other submissions.",
}


class _QuietSchemaGenerator(GenerateJsonSchema):
    # pydantic declares it as an instance attribute and reads it through the class default.
    ignored_warning_kinds: set[Any] = {"non-serializable-default", "skipped-choice"}  # noqa: RUF012


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a spec document: base fields, `stages`, `graph`, and the fields of each task type.

    Editors show the fields of the type that `spec.taskType` names. A stage may leave out `taskType` and any field
    of the base document; it may then use the fields of any type.
    """
    models: list[type[BaseModel]] = [CommonSpec, *dict.fromkeys(kind.model for kind in TASK_TYPES)]
    _, definitions = models_json_schema(
        [(model, "validation") for model in models],
        by_alias=True,
        ref_template=_REF,
        schema_generator=_QuietSchemaGenerator,
    )
    defs: dict[str, Any] = definitions["$defs"]
    _drop_noise(defs)
    return {
        "$schema": _DIALECT,
        "title": "MLOC task",
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"description": "Not read; mloc/v1 by custom.", "examples": ["mloc/v1"]},
            "kind": {"description": "Not read.", "examples": ["InferenceTask", "TrainingTask", "SFTTask", "AgentTask"]},
            "metadata": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": ["string", "number", "null"]}, "annotations": {"type": "object"}},
            },
            "spec": _spec_schema(),
        },
        "$defs": {
            **defs,
            "Stage": _item_schema("Name of the stage; stage-<n> by default."),
            "Node": _item_schema("Name of the node; node-<n> by default."),
            "StageSpec": {"type": "object", **_by_type()},
        },
    }


def _spec_schema() -> dict[str, Any]:
    resources = {
        "type": "object",
        "required": ["replicas", "hardware"],
        "properties": {"hardware": {"type": "object", "required": ["cpu", "memory"]}},
    }
    return {
        "type": "object",
        "required": ["taskType", "resources"],
        "properties": {
            "taskType": {"description": "Type of the task.", "examples": [kind.name for kind in TASK_TYPES]},
            "resources": resources,
            "dependsOn": _DEPENDS,
            "stages": {"type": ["array", "null"], "items": {"$ref": "#/$defs/Stage"}},
            "graph": {
                "type": ["object", "null"],
                "properties": {"nodes": {"type": ["array", "null"], "items": {"$ref": "#/$defs/Node"}}},
            },
        },
        **_by_type(),
    }


def _by_type() -> dict[str, Any]:
    """Return the rules that add the fields of the task type that is named."""
    return {
        "allOf": [
            {
                "if": {"properties": {"taskType": {"const": kind.name}}, "required": ["taskType"]},
                "then": {"$ref": _REF.format(model=kind.model.__name__)},
                "else": True,
            }
            for kind in TASK_TYPES
        ]
    }


def _item_schema(name: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "name": {**_NAME, "description": name},
            "id": {"type": ["string", "number"], "description": "Used when there is no name."},
            "dependsOn": _DEPENDS,
            "spec": {"anyOf": [{"$ref": "#/$defs/StageSpec"}, {"type": "null"}]},
        },
    }


def _drop_noise(defs: dict[str, Any]) -> None:
    """Remove titles that repeat the field name, and defaults that are whole models: noise in editors."""
    for definition in defs.values():
        for prop in definition.get("properties", {}).values():
            if isinstance(prop, dict):
                prop.pop("title", None)
                if isinstance(prop.get("default"), dict):
                    prop.pop("default")
