"""Shards of data sets for MLOC workers, which know row ranges but not `spec.shard`. [protocol 2.7].

The shard of a list is cut before it is sent. For a data set the split is replaced by exact row numbers, for which its
rows are counted here once.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mloc_prefect.errors import ExecutionError
from mloc_prefect.execution.protocol import UserError
from mloc_prefect.executors.common.spec_reader import SpecReader
from mloc_prefect.executors.sources.datasets_source import load_table
from mloc_prefect.executors.sources.source_lookup import SourceLookup
from mloc_prefect.executors.sources.splits import parse_split
from mloc_prefect.plan.resources import is_true
from mloc_prefect.plan.shard_ranges import ShardRange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mloc_prefect.execution.protocol import ExecutionRequest


_LOOKUP = ("home", "mirrors", "base_dir", "allowed_hosts", "loopback", "loopback_ports", "own_services", "inputs")


def exact_spec(request: ExecutionRequest) -> dict[str, Any]:
    """Return the spec of a shard with a split of exact rows, any other spec unchanged. May read the data set.

    The rows of a shuffled set are divided before the worker shuffles its own: all are there once, in another order.

    Raises:
        ExecutionError: The rows cannot be counted here, or `max_samples` bounds a shuffled set; not retryable.
    """
    spec = request.spec
    shard, data = ShardRange.of(spec), spec.get("data")
    if shard is None or shard.first is not None or not isinstance(data, dict) or data.get("type") != "dataset":
        return spec
    most = data.get("max_samples")
    if most is not None and is_true(data.get("shuffle")):
        raise ExecutionError(
            "MLOC workers cannot have shards of a shuffled data set that max_samples bounds",
            retryable=False,
            hint="remove spec.parallel, shuffle or max_samples, or use workers of this package (MLOC_DISPATCH=ours)",
        )
    try:
        parts = parse_split(str(data.get("split") or "train"))
        rows = [(part.name, part.rows(_count(request, part.name))) for part in parts]
    except UserError as error:
        raise ExecutionError(f"the rows cannot be counted for sharding: {error}", retryable=False) from None
    total = sum(len(found) for _, found in rows)
    wanted = shard.rows(total if most is None else min(total, int(most)))
    own = {name: value for name, value in data.items() if name != "max_samples"}
    return {**spec, "data": {**own, "split": split_of(rows, wanted)}}


def split_of(parts: Sequence[tuple[str, range]], wanted: range) -> str:
    """Return the split that has the rows `wanted` of `parts` laid end to end, e.g. `train[90:100]+test[0:7]`."""
    texts, at = [], 0
    for name, rows in parts:
        first, last = max(wanted.start - at, 0), min(wanted.stop - at, len(rows))
        if first < last:
            texts.append(f"{name}[{rows.start + first}:{rows.start + last}]")
        at += len(rows)
    return "+".join(texts) or f"{parts[0][0]}[0:0]"


def _count(request: ExecutionRequest, split: str) -> int:
    data = {"split": split, **{k: request.spec["data"].get(k) for k in ("type", "url", "name", "revision")}}
    named = {k: request.settings.get(k) for k in _LOOKUP}
    return _counted(str((request.spec.get("shard") or {}).get("parent_task_id")), json.dumps([data, named]))


@lru_cache(maxsize=64)
def _counted(_task: str, text: str) -> int:
    """Return the number of rows of a whole split, cached: every shard of a task must get the same number."""
    data, settings = json.loads(text)
    return len(load_table(SpecReader(data, "spec.data"), SourceLookup.of(settings)).rows)
