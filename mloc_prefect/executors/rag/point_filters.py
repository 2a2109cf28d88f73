"""`search.filter` as a filter of Qdrant; `tasks.passage_filters` says what it may hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from mloc_prefect.execution.failures import one_line
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.tasks.passage_filters import filter_fault, is_native

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qdrant_client.models import Filter


def point_filter(wanted: Mapping[str, Any] | None) -> Filter | None:
    """Return the filter that passages must pass, or None for all.

    Raises:
        UserError: It is not a filter.
    """
    if not wanted:
        return None
    from qdrant_client import models

    if found := filter_fault(wanted):
        raise UserError(f"spec.search.filter{''.join(f'.{part}' for part in found[0])}: {found[1]}")
    if is_native(wanted):
        try:
            return models.Filter.model_validate(dict(wanted))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"][:3])
            raise UserError(
                f"spec.search.filter is not a filter of Qdrant: {place}: {one_line(first['msg'])}"
            ) from None
    must: list[Any] = []
    must_not: list[Any] = []
    for name, value in wanted.items():
        if isinstance(value, dict) and "not" in value:
            must_not.append(_condition(name, value["not"]))
        else:
            must.append(_condition(name, value))
    return models.Filter(must=must or None, must_not=must_not or None)


def _condition(name: str, value: Any) -> Any:
    from qdrant_client import models

    if isinstance(value, dict):
        is_text = any(isinstance(bound, str) for bound in value.values())
        bounds: Any = models.DatetimeRange(**value) if is_text else models.Range(**value)
        return models.FieldCondition(key=name, range=bounds)
    if isinstance(value, list):
        return models.FieldCondition(key=name, match=models.MatchAny(any=value))
    if isinstance(value, float):
        return models.FieldCondition(key=name, range=models.Range(gte=value, lte=value))
    return models.FieldCondition(key=name, match=models.MatchValue(value=value))
