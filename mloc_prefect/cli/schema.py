"""`mloc schema`: JSON Schema of a spec, for editors."""

from __future__ import annotations

import json

from mloc_prefect.cli.boundary import examples

EXAMPLES = examples("mloc schema > mloc.schema.json")


def schema() -> None:
    """Print the JSON Schema of MLOC specs, for completion and checks in an editor."""
    from mloc_prefect.spec.schema import json_schema

    print(json.dumps(json_schema(), indent=2, sort_keys=True))
