"""Stores how a task is divided: later attempts keep the division, so that no finished row is computed again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

from mloc_prefect.artifacts import atomic
from mloc_prefect.execution.row_journal import JOURNAL
from mloc_prefect.plan.shard_ranges import ShardRange, shard_spec

if TYPE_CHECKING:
    from pathlib import Path

    from mloc_prefect.execution.protocol import ExecutionRequest

_FILE = "attempts/shards.json"


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """The division of one task.

    Attributes:
        sha256: Digest of the work (`work_digest`); for other work the task is divided again.
        task_ids: Task id of each shard, in row order.
        rows: Rows of the whole task, or None when only its readers know.
    """

    sha256: str
    task_ids: tuple[str, ...]
    rows: int | None

    def shard(self, index: int, parent: str) -> ShardRange:
        """Return one shard of the task `parent`."""
        return ShardRange(index, len(self.task_ids), parent)

    def spec(self, index: int, request: ExecutionRequest) -> dict[str, Any]:
        """Return the spec of one shard of the task that `request` asks for."""
        return shard_spec(request.spec, self.shard(index, request.task_id))


def read_plan(task_dir: Path, sha256: str) -> ShardPlan | None:
    """Return the stored division, or None without one for the same work."""
    try:
        found = atomic.read_json(task_dir / _FILE)
        plan = ShardPlan(found["sha256"], tuple(found["task_ids"]), found["rows"])
    except (FileNotFoundError, KeyError, TypeError):
        return None
    return plan if plan.sha256 == sha256 else None


def make_plan(task_dir: Path, request: ExecutionRequest, sha256: str, total: int, rows: int | None) -> ShardPlan:
    """Divide a task and store the division; if another process was first, return its division.

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
        atomic.write_json(path, asdict(plan))  # it replaces that of another spec
    return other or plan


def begun_whole(task_dir: Path) -> bool:
    """Return whether an earlier attempt has finished rows of the undivided task."""
    return any((task_dir / "attempts").glob(f"*/{JOURNAL}"))
