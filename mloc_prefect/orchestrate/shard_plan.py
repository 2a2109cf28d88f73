"""How a task is divided, decided once: later attempts keep the division, so that no finished row is computed again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

from mloc_prefect.artifacts import atomic
from mloc_prefect.execution.rows import JOURNAL
from mloc_prefect.plan.shards import Shard, shard_spec

if TYPE_CHECKING:
    from pathlib import Path

    from mloc_prefect.execution.protocol import ExecutionRequest

_FILE = "attempts/shards.json"


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """The division of one task.

    Attributes:
        sha256: Of the task's type, spec and prompts' sources: with another one the division is made anew.
        task_ids: Task id of each shard, in row order.
        rows: Rows of the whole task, or None when only its readers know.
    """

    sha256: str
    task_ids: tuple[str, ...]
    rows: int | None

    def shard(self, index: int, parent: str) -> Shard:
        """Return one part of the task `parent`."""
        return Shard(index, len(self.task_ids), parent)

    def spec(self, index: int, request: ExecutionRequest) -> dict[str, Any]:
        """Return the spec of one shard of the task that `request` asks for."""
        return shard_spec(request.spec, self.shard(index, request.task_id))


def digest_of(request: ExecutionRequest) -> str:
    """Return what makes two requests the same work."""
    text = json.dumps([request.task_type, request.spec, request.upstream], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_plan(task_dir: Path, sha256: str) -> ShardPlan | None:
    """Return how the task was divided before, None when it was not, or when its spec has changed since."""
    try:
        found = atomic.read_json(task_dir / _FILE)
        plan = ShardPlan(found["sha256"], tuple(found["task_ids"]), found["rows"])
    except (FileNotFoundError, KeyError, TypeError):
        return None
    return plan if plan.sha256 == sha256 else None


def make_plan(task_dir: Path, request: ExecutionRequest, sha256: str, total: int, rows: int | None) -> ShardPlan:
    """Divide a task and write that down; when another process was first, its division is returned.

    Raises:
        ArtifactError: It cannot be written.
    """
    names = (f"mloc-shard:{request.task_id}:{sha256}:{index}/{total}" for index in range(total))
    plan = ShardPlan(sha256, tuple(str(uuid5(NAMESPACE_URL, name)) for name in names), rows)
    path = task_dir / _FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    if atomic.create_exclusive(path, atomic.encode_json(asdict(plan))):
        return plan
    other = read_plan(task_dir, sha256)
    if other is None:
        atomic.write_json(path, asdict(plan))  # that of another spec
    return other or plan


def begun_whole(task_dir: Path) -> bool:
    """Return whether an earlier attempt finished rows of the task in one piece."""
    return any((task_dir / "attempts").glob(f"*/{JOURNAL}"))
