"""Deep copy and deep merge of plain data and its positions [protocol 2.5]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mloc_prefect.diagnostics.positions import Positions

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
    base: Mapping[str, Any], base_position: Positions, over: Mapping[str, Any], over_position: Positions
) -> tuple[dict[str, Any], Positions]:
    """Return `base` overridden by `over`, with the positions of the result.

    Mappings are merged key by key; lists, scalars and null replace. The data is a deep copy; positions are shared,
    because they are never changed. A merged mapping has the position of `over`; its values keep their own.
    """
    data: dict[str, Any] = {}
    children = {**base_position.children, **over_position.children}
    for key, value in base.items():
        if key not in over:
            data[key] = copied(value)
            continue
        own = over[key]
        if type(own) is dict and type(value) is dict:
            data[key], children[key] = merged(value, base_position.children[key], own, over_position.children[key])
        else:
            data[key] = copied(own)
    for key, value in over.items():
        if key not in base:
            data[key] = copied(value)
    position = Positions(
        over_position.line, over_position.column, over_position.key_line, over_position.key_column, children
    )
    return data, position
