"""Data-parallel shards: how many, and which rows each one has. [protocol 2.7].

Ranges are exact numbers of rows, after the split was cut, shuffled and bounded: every row is in exactly one shard, and
the shards in order give the rows in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mloc_prefect.plan.resources import is_true

SHARDED_TYPES = frozenset({"inference", "echo"})
"""Task types (lower case) that are divided; in MLOC only inference is."""

MULTI = "MULTI"
"""Worker of a task that is divided. [protocol 2.1]."""

_FORM = "a mapping with index (from 0) and total, e.g. {index: 0, total: 4}"


@dataclass(frozen=True, slots=True)
class Shard:
    """One part of a task's rows.

    Attributes:
        index: Number of the part, from 0.
        total: Number of parts.
        parent_task_id: The whole task, or None.
        first: When the spec's own data holds only the rows of this part: the number of the first of them in the whole;
            else None.
    """

    index: int
    total: int
    parent_task_id: str | None = None
    first: int | None = None

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Shard | None:
        """Return what `spec.shard` says, None without it.

        Raises:
            ValueError: It is not understood; the text says what it must be.
        """
        found = spec.get("shard")
        if found is None:
            return None
        data = _mapping(found)
        index, total, first = (_whole(data.get(name)) for name in ("index", "total", "first"))
        if index is None or total is None or index >= total or (first is None and data.get("first") is not None):
            raise ValueError(f"spec.shard must be {_FORM}, found {found!r}")
        return cls(index, total, data.get("parent_task_id"), first)

    def rows(self, count: int) -> range:
        """Return which of `count` rows are in this part: contiguous, the first parts one more if it does not divide.

        These are the ranges of `datasets.Dataset.shard(total, index, contiguous=True)`, too.
        """
        size, more = divmod(count, self.total)
        start = self.index * size + min(self.index, more)
        return range(start, start + size + (self.index < more))

    def to_spec(self) -> dict[str, Any]:
        """Return `spec.shard`."""
        found: dict[str, Any] = {"index": self.index, "total": self.total, "parent_task_id": self.parent_task_id}
        return found if self.first is None else {**found, "first": self.first}


@dataclass(frozen=True, slots=True)
class Wish:
    """What a spec says about shards.

    Attributes:
        replicas: `resources.replicas`: at least so many, when there is room.
        most: `parallel.max_shards`, or the default.
        rows: Rows of the data when the spec itself holds them, or None.
    """

    replicas: int
    most: int
    rows: int | None

    @classmethod
    def of(cls, spec: Mapping[str, Any], *, default_most: int) -> Wish | None:
        """Return the wish of a task, or None when it is not to be divided.

        A task that is itself a shard is not divided again, nor is a `graph_template`: it is one prompt.

        Args:
            spec: The resolved `spec`.
            default_most: Shards of a task that names no number (`MLOC_MAX_AUTO_SHARDS`).
        """
        parallel, data = _mapping(spec.get("parallel")), _mapping(spec.get("data"))
        if not is_true(parallel.get("enabled")) or spec.get("shard") or data.get("type") not in {"list", "dataset"}:
            return None
        items = data.get("items") if data.get("type") == "list" else None
        return cls(
            replicas=_number(_mapping(spec.get("resources")).get("replicas"), 1),
            most=max(1, _number(parallel.get("max_shards"), default_most)),
            rows=len(items) if isinstance(items, list) else None,
        )

    def count(self, capacity: int) -> int:
        """Return the number of shards where `capacity` of them could start now. [protocol 2.7]."""
        wanted = min(max(self.replicas, min(capacity, self.most)), capacity)
        return max(1, wanted if self.rows is None else min(wanted, self.rows))


def shard_spec(spec: Mapping[str, Any], shard: Shard) -> dict[str, Any]:
    """Return the spec of one shard: its part of a list, or the whole data set with the part named in `spec.shard`.

    Its result stays with us, so destination and export are those of the whole task only.
    """
    own = {**spec, "shard": shard.to_spec()}
    data = _mapping(spec.get("data"))
    items = data.get("items")
    if data.get("type") == "list" and isinstance(items, list):
        part = shard.rows(len(items))
        cut = {
            name: _cut(data[name], len(items), part) for name in ("items", "metadata", "items_metadata") if name in data
        }
        own["data"] = {**data, **cut}
        own["shard"] = Shard(shard.index, shard.total, shard.parent_task_id, part.start).to_spec()
    if "output" in own:
        own["output"] = {**_mapping(spec.get("output")), "destination": {"type": "local"}, "artifacts": []}
    if "postprocess" in own:
        own["postprocess"] = {k: v for k, v in _mapping(spec.get("postprocess")).items() if k != "jsonl_export"}
    return own


def _cut(value: Any, count: int, part: range) -> Any:
    """Return the part of something that runs beside the items; what does not is left for the executor to refuse."""
    return value[part.start : part.stop] if isinstance(value, list) and len(value) == count else value


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _number(value: Any, default: int) -> int:
    text = str(value).strip() if not isinstance(value, bool) else ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else default


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
