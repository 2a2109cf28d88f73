"""Computes data-parallel shards: how many, and which rows each one has. [protocol 2.7].

Ranges are exact numbers of rows, after the split was cut, shuffled and bounded: every row is in exactly one shard, and
the shards in order give the rows in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mloc_prefect.plan.resources import is_true, mapping_of, number_of

if TYPE_CHECKING:
    from mloc_prefect.tasks.base import TaskType

MULTI = "MULTI"
"""Worker of a task that is divided. [protocol 2.1]."""

_FORM = "a mapping with index (from 0) and total, e.g. {index: 0, total: 4}"


@dataclass(frozen=True, slots=True)
class ShardRange:
    """One shard of a task's rows.

    Attributes:
        index: Number of the shard, from 0.
        total: Number of shards.
        parent_task_id: The whole task, or None.
        first: When the spec's own data holds only the rows of this shard: the number of the first of them in the whole;
            else None.
    """

    index: int
    total: int
    parent_task_id: str | None = None
    first: int | None = None

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> ShardRange | None:
        """Return what `spec.shard` says, None without it.

        Raises:
            ValueError: It is malformed; the message says what it must be.
        """
        found = spec.get("shard")
        if found is None:
            return None
        data = mapping_of(found)
        index, total, first = (_whole(data.get(name)) for name in ("index", "total", "first"))
        if index is None or total is None or index >= total or (first is None and data.get("first") is not None):
            raise ValueError(f"spec.shard must be {_FORM}, found {found!r}")
        return cls(index, total, data.get("parent_task_id"), first)

    def rows(self, count: int) -> range:
        """Return which of `count` rows are in this shard: contiguous, and the first shards have one more if need be.

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
class ShardRequest:
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
    def of(cls, kind: TaskType, spec: Mapping[str, Any], *, default_most: int) -> ShardRequest | None:
        """Return the request of a task, or None when it is not to be divided.

        A task that is itself a shard is not divided again, nor is a `graph_template`: it is one prompt.

        Args:
            kind: The task type.
            spec: The resolved `spec`.
            default_most: Shards of a task that names no number (`MLOC_MAX_AUTO_SHARDS`).
        """
        parallel, data = mapping_of(spec.get("parallel")), mapping_of(spec.get("data"))
        if not (kind.shardable and is_true(parallel.get("enabled"))):
            return None
        if spec.get("shard") or data.get("type") not in {"list", "dataset"}:
            return None
        items = data.get("items") if data.get("type") == "list" else None
        return cls(
            replicas=number_of(mapping_of(spec.get("resources")).get("replicas"), 1),
            most=max(1, number_of(parallel.get("max_shards"), default_most)),
            rows=len(items) if isinstance(items, list) else None,
        )

    def count(self, capacity: int) -> int:
        """Return the number of shards if `capacity` of them could start now. [protocol 2.7]."""
        wanted = min(max(self.replicas, min(capacity, self.most)), capacity)
        return max(1, wanted if self.rows is None else min(wanted, self.rows))


def shard_spec(spec: Mapping[str, Any], shard: ShardRange) -> dict[str, Any]:
    """Return the spec of one shard: its rows of a list, or the whole data set with the range in `spec.shard`.

    Its result stays with us, so destination and export are those of the whole task only.
    """
    own = {**spec, "shard": shard.to_spec()}
    data = mapping_of(spec.get("data"))
    items = data.get("items")
    if data.get("type") == "list" and isinstance(items, list):
        part = shard.rows(len(items))
        cut = {
            name: _cut(data[name], len(items), part) for name in ("items", "metadata", "items_metadata") if name in data
        }
        own["data"] = {**data, **cut}
        own["shard"] = ShardRange(shard.index, shard.total, shard.parent_task_id, part.start).to_spec()
    if "output" in own:
        own["output"] = {**mapping_of(spec.get("output")), "destination": {"type": "local"}, "artifacts": []}
    if "postprocess" in own:
        own["postprocess"] = {k: v for k, v in mapping_of(spec.get("postprocess")).items() if k != "jsonl_export"}
    return own


def _cut(value: Any, count: int, part: range) -> Any:
    """Return the shard's part of a list that is parallel to the items; other values are left for the executor."""
    return value[part.start : part.stop] if isinstance(value, list) and len(value) == count else value


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
