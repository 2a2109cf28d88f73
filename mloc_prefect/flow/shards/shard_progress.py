"""Adds up the progress of the shards of a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class ShardProgress:
    """Adds up `progress` events.

    Args:
        shards: Number of shards.
        rows: Rows of the whole task, or None when only its readers know.
    """

    def __init__(self, shards: int, rows: int | None) -> None:
        self._shards, self._rows = shards, rows
        self._latest: dict[int, dict[str, float]] = {}

    def add(self, index: int, data: Mapping[str, Any]) -> dict[str, Any]:
        """Take a progress report of one shard, and return the progress of the whole task.

        `total` is None until it is known of every shard.
        """
        self._latest[index] = {
            name: value
            for name, value in data.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        sums: dict[str, Any] = {}
        for numbers in self._latest.values():
            for name, value in numbers.items():
                sums[name] = sums.get(name, 0) + value
        known = len(self._latest) == self._shards and all("total" in numbers for numbers in self._latest.values())
        return {**sums, "total": sums["total"] if known else self._rows}

    def finished(self, index: int, summary: Mapping[str, Any]) -> dict[str, Any]:
        """Take a shard that an earlier attempt finished, by the facts in its manifest."""
        rows = summary.get("rows")
        return self.add(index, {"done": rows, "total": rows} if isinstance(rows, int) else {"done": 0})
