"""Checks that the JSON Schema in `inference.response_schema` is valid."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from mloc_prefect.tasks.fields import is_deferred

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

_WRAPPERS = ("json_schema", "schema")
_MOST_VALUES = 2000
"""Values of a schema that are judged: larger ones are left to the engine, as the time of judging grows faster."""

_ANNOTATIONS = frozenset(
    {"title", "description", "examples", "deprecated", "default", "$comment", "readOnly", "writeOnly", "$id"}
)


def schema_fault(value: Any) -> tuple[tuple[str | int, ...], str] | None:
    """Return where the JSON Schema in `value` is invalid and why, or None if it is valid or another kind of rule.

    Also None for what cannot be checked here, such as a schema that is nested too deeply or very large, and for errors
    that engines accept: an invalid annotation, and a `required` that is a boolean, as in draft 3, or that lists a name
    twice.

    Args:
        value: `response_schema`: a schema, also as JSON text or in `json_schema:`; or a regex or choices, which only
            the engine can check.
    """
    try:
        return _fault(value)
    except (RecursionError, ValueError, TypeError):  # too deep, a $schema that is not a URL, keys of mixed types
        return None


def _fault(value: Any) -> tuple[tuple[str | int, ...], str] | None:
    above: tuple[str | int, ...] = ()
    if isinstance(value, str):
        schema = json.loads(value)
    elif isinstance(value, dict) and len(value) == 1 and (name := next(iter(value))) in _WRAPPERS:
        schema, above = value[name], (name,)
    else:
        schema = value
    if not isinstance(schema, dict) or is_deferred(json.dumps(schema, default=str)):
        return None
    if _count_values(schema) > _MOST_VALUES:
        return None
    found = _first_error(schema)
    if found is None:
        return None
    path, text = found
    return () if isinstance(value, str) else (*above, *path), text


def _count_values(value: Any) -> int:
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(_count_values, below))


def _first_error(schema: dict[str, Any]) -> tuple[tuple[str | int, ...], str] | None:
    if not isinstance(draft := schema.get("$schema", ""), str):
        return ("$schema",), f"{draft!r} is not of type 'string' (at $.$schema)"
    # Imported here: the import takes longer than reading most specs.
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match
    from jsonschema.validators import validator_for

    kind = validator_for(schema, default=Draft202012Validator)
    error = best_match(filter(_is_refused, kind(kind.META_SCHEMA).iter_errors(schema)))
    return None if error is None else (tuple(error.absolute_path), f"{error.message} (at {error.json_path})")


def _is_refused(error: ValidationError) -> bool:
    """Return whether engines refuse this too; removes from the alternatives of `error` those that they accept."""
    if error.context:  # of anyOf: an alternative that has only accepted errors matches
        kept = [inner for inner in error.context if _is_refused(inner)]
        alternatives = {inner.relative_schema_path[0] for inner in error.context}
        error.context = kept
        return {inner.relative_schema_path[0] for inner in kept} == alternatives
    if not error.absolute_path:
        return True
    keyword, rules = error.absolute_path[-1], list(error.absolute_schema_path)
    if ("properties", keyword) not in pairwise(rules):  # the name of a property, not a keyword
        return True
    if keyword == "required":
        return error.validator != "uniqueItems" and not isinstance(error.instance, bool)
    return keyword not in _ANNOTATIONS
