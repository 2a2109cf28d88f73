"""Whether `inference.response_schema` holds a JSON Schema that means something."""

from __future__ import annotations

import json
from typing import Any

from mloc_prefect.tasks.fields import PLACEHOLDER

_WRAPPERS = ("json_schema", "schema")


def schema_fault(value: Any) -> tuple[tuple[str | int, ...], str] | None:
    """Return where the JSON Schema in `value` is wrong and why, None when it is right or another kind of rule.

    Args:
        value: `response_schema`: a schema, also as JSON text or in `json_schema:`; or a regex or choices, which only
            the engine can judge.
    """
    above: tuple[str | int, ...] = ()
    if isinstance(value, str):
        try:
            schema = json.loads(value)
        except ValueError:
            return None
    elif isinstance(value, dict) and len(value) == 1 and (name := next(iter(value))) in _WRAPPERS:
        schema, above = value[name], (name,)
    else:
        schema = value
    if not isinstance(schema, dict) or PLACEHOLDER in json.dumps(schema, default=str):
        return None
    # Imported here: it takes longer than to read the whole of most specs.
    from jsonschema.exceptions import best_match
    from jsonschema.validators import validator_for

    kind = validator_for(schema)
    error = best_match(kind(kind.META_SCHEMA).iter_errors(schema))
    if error is None:
        return None
    return () if isinstance(value, str) else (*above, *error.absolute_path), f"{error.message} (at {error.json_path})"
