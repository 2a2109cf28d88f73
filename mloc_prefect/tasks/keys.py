"""Which names a mapping of a spec may hold: tables made once from the models, walked for each spec."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, get_args

from mloc_prefect.spec.diagnostics import did_you_mean
from mloc_prefect.tasks.base import SpecModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Names of one mapping.

    Attributes:
        below: Table of each known name; None where anything may stand.
        names: Names to suggest.
        passes_on: Other names are no mistake, unless they are near one of these.
    """

    below: dict[str, Table | None] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    passes_on: bool = False


@cache
def table_of(model: type[SpecModel]) -> Table:
    """Return the table of `model`: field names, their aliases, and names that are accepted without a field."""
    below: dict[str, Table | None] = dict.fromkeys(model.accepted)
    for name, info in model.model_fields.items():
        inner = _model_in(info.annotation)
        table = table_of(inner) if inner else None
        below[name] = table
        if info.alias:
            below[info.alias] = table
    fields = (info.alias or name for name, info in model.model_fields.items())
    names = (*fields, *sorted(name for name in model.accepted if not name.startswith("_")))
    return Table(below, names, model.passes_on)


def name_in(part: str, here: Mapping[str, Any]) -> str:
    """Return the spelling of field `part` that `here` uses; errors name the alias whatever was written."""
    if part in here:
        return part
    folded = part.replace("_", "").lower()
    return next((key for key in here if isinstance(key, str) and key.replace("_", "").lower() == folded), part)


def unknown_keys(value: Mapping[str, Any], table: Table) -> list[tuple[Path, Table]]:
    """Return path of each name in `value` that `table` does not know, with the table of the mapping it stands in."""
    found: list[tuple[Path, Table]] = []
    _walk(value, table, (), found)
    return found


def _walk(value: Any, table: Table, path: Path, found: list[tuple[Path, Table]]) -> None:
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
