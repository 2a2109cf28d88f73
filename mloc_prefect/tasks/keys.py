"""The names that each mapping of a spec may hold: tables built once from the models."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, get_args

from mloc_prefect.diagnostics.diagnostic import did_you_mean
from mloc_prefect.tasks.base import SpecModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class FieldNames:
    """Names of one mapping.

    Attributes:
        below: Table of each known name; None where any value is allowed.
        names: Names to suggest.
        passes_on: Whether other names are accepted, unless they are similar to one of these.
    """

    below: dict[str, FieldNames | None] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    passes_on: bool = False


@cache
def table_of(model: type[SpecModel]) -> FieldNames:
    """Return the table of `model`: field names, their aliases, and names that are accepted without a field."""
    below: dict[str, FieldNames | None] = dict.fromkeys(model.accepted)
    for name, info in model.model_fields.items():
        inner = _model_in(info.annotation)
        table = table_of(inner) if inner else None
        below[name] = table
        if info.alias:
            below[info.alias] = table
    fields = (info.alias or name for name, info in model.model_fields.items())
    names = (*fields, *sorted(name for name in model.accepted if not name.startswith("_")))
    return FieldNames(below, names, model.passes_on)


def name_in(part: str, mapping: Mapping[str, Any]) -> str:
    """Return the spelling of field `part` that `mapping` uses: pydantic reports the alias, whatever was written."""
    if part in mapping:
        return part
    folded = part.replace("_", "").lower()
    return next((key for key in mapping if isinstance(key, str) and key.replace("_", "").lower() == folded), part)


def unknown_keys(value: Mapping[str, Any], table: FieldNames) -> list[tuple[Path, FieldNames]]:
    """Return the path of each name in `value` that `table` does not know, with the table of its mapping."""
    found: list[tuple[Path, FieldNames]] = []
    _walk(value, table, (), found)
    return found


def _walk(value: Any, table: FieldNames, path: Path, found: list[tuple[Path, FieldNames]]) -> None:
    if type(value) is dict:
        below = table.below
        for key, item in value.items():
            if key not in below:
                if table.passes_on and did_you_mean(str(key), table.names) is None:
                    continue
                found.append(((*path, key), table))
            elif (inner := below[key]) is not None and type(item) in _CONTAINERS:
                _walk(item, inner, (*path, key), found)
    elif type(value) is list:
        for index, item in enumerate(value):
            _walk(item, table, (*path, index), found)


_CONTAINERS = frozenset({dict, list})


def _model_in(annotation: Any) -> type[SpecModel] | None:
    """Return the model inside `Annotated[list[Model] | None, ...]` and the like, or None."""
    return next(_models(annotation), None)


def _models(annotation: Any) -> Iterator[type[SpecModel]]:
    if isinstance(annotation, type) and issubclass(annotation, SpecModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
