"""`mloc schema`: the JSON Schema of specs."""

from __future__ import annotations

import json

from mloc_prefect.cli.error_boundary import examples

EXAMPLES = examples("mloc schema > mloc.schema.json")


def schema() -> None:
    """Print the JSON Schema of MLOC specs, for completion and validation in editors."""
    from mloc_prefect.spec.spec_schema import json_schema

    print(json.dumps(json_schema(), indent=2, sort_keys=True))
