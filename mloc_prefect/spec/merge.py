"""Deep copy and deep merge of plain data, and of the places that belong to it [protocol 2.5]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mloc_prefect.spec.positions import Positions

if TYPE_CHECKING:
    from collections.abc import Mapping


def copied(value: Any) -> Any:
    """Return a deep copy of plain JSON data; several times faster than `copy.deepcopy`."""
    kind = type(value)
    if kind is dict:
        return {key: copied(item) if type(item) in _CONTAINERS else item for key, item in value.items()}
    if kind is list:
        return [copied(item) if type(item) in _CONTAINERS else item for item in value]
    return value


_CONTAINERS = frozenset({dict, list})


def merged(
    base: Mapping[str, Any], base_place: Positions, over: Mapping[str, Any], over_place: Positions
) -> tuple[dict[str, Any], Positions]:
    """Return `base` with `over` laid over it, and the places of the result.

    Mappings merge key by key; anything else (lists, scalars, null) replaces. The data is a deep copy; places are
    shared, as nobody changes them. A merged mapping stands where `over` has it, each value in it where it was written.
    """
    data: dict[str, Any] = {}
    children = {**base_place.children, **over_place.children}
    for key, value in base.items():
        if key not in over:
            data[key] = copied(value)
            continue
        mine = over[key]
        if type(mine) is dict and type(value) is dict:
            data[key], children[key] = merged(value, base_place.children[key], mine, over_place.children[key])
        else:
            data[key] = copied(mine)
    for key, value in over.items():
        if key not in base:
            data[key] = copied(value)
    place = Positions(over_place.line, over_place.column, over_place.key_line, over_place.key_column, children)
    return data, place
