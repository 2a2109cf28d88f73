"""Whether `inference.response_schema` holds a JSON Schema that means something."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from mloc_prefect.tasks.fields import PLACEHOLDER

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

_WRAPPERS = ("json_schema", "schema")
_ANNOTATIONS = frozenset(
    {"title", "description", "examples", "deprecated", "default", "$comment", "readOnly", "writeOnly", "$id"}
)


def schema_fault(value: Any) -> tuple[tuple[str | int, ...], str] | None:
    """Return where the JSON Schema in `value` is wrong and why, None when it is right or another kind of rule.

    None also for what cannot be judged here, such as a schema that is nested too deep, and for slips that engines
    accept: a wrong value of an annotation, and a `required` that is a truth value, as in draft 3, or names one twice.

    Args:
        value: `response_schema`: a schema, also as JSON text or in `json_schema:`; or a regex or choices, which only
            the engine can judge.
    """
    try:
        return _fault(value)
    except (RecursionError, ValueError, TypeError):  # too deep, a $schema that is no URL, keys of mixed types
        return None


def _fault(value: Any) -> tuple[tuple[str | int, ...], str] | None:
    above: tuple[str | int, ...] = ()
    if isinstance(value, str):
        schema = json.loads(value)
    elif isinstance(value, dict) and len(value) == 1 and (name := next(iter(value))) in _WRAPPERS:
        schema, above = value[name], (name,)
    else:
        schema = value
    if not isinstance(schema, dict) or PLACEHOLDER in json.dumps(schema, default=str):
        return None
    found = _wrong(schema)
    if found is None:
        return None
    path, text = found
    return () if isinstance(value, str) else (*above, *path), text


def _wrong(schema: dict[str, Any]) -> tuple[tuple[str | int, ...], str] | None:
    if not isinstance(draft := schema.get("$schema", ""), str):
        return ("$schema",), f"{draft!r} is not of type 'string' (at $.$schema)"
    # Imported here: it takes longer than to read the whole of most specs.
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match
    from jsonschema.validators import validator_for

    kind = validator_for(schema, default=Draft202012Validator)
    error = best_match(filter(_matters, kind(kind.META_SCHEMA).iter_errors(schema)))
    return None if error is None else (tuple(error.absolute_path), f"{error.message} (at {error.json_path})")


def _matters(error: ValidationError) -> bool:
    """Return whether engines refuse this too; drops from the alternatives of `error` what they accept."""
    if error.context:  # of anyOf: grouped by alternative, one that has only slips fits
        kept = [inner for inner in error.context if _matters(inner)]
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
